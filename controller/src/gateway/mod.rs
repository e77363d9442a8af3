//! What agents talk to: authentication, policy, heartbeats, findings.
