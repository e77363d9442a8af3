//! JSON API, metrics, page.
