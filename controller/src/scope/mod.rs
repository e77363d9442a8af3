//! Credentials and clients per account and Region.
