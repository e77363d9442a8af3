//! Timings and options of the cloud that are not a fault.

use std::time::Duration;

/// How long things take and how containers are told about their surroundings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// PROVISIONING: time to attach a network interface.
    pub provision: Duration,
    /// DEPROVISIONING: time to detach it.
    pub deprovision: Duration,
    /// RUNNING time after which a service counts a task without essential health check as healthy (ECS: 40 s).
    pub steady_after: Duration,
    /// How long stopped tasks and inactive services can be described (ECS: at least 1 hour).
    pub retention: Duration,
    /// First delay before a service tries again after a failed task; doubles up to 15 minutes.
    pub retry: Duration,
    /// Base of `ECS_CONTAINER_METADATA_URI_V4`, as containers reach it; the credentials endpoint is at the same address.
    pub metadata_base: String,
    /// More environment for each container, such as `AWS_ENDPOINT_URL`. AWS sets nothing of the kind; tests need it.
    pub container_environment: Vec<(String, String)>,
    /// The API's throttle buckets work (aws-facts 2.1).
    pub throttling: bool,
    /// EventBridge: first retry delay to a target; doubles up to 5 minutes.
    pub event_retry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            provision: Duration::from_secs(2),
            deprovision: Duration::from_secs(2),
            steady_after: Duration::from_secs(40),
            retention: Duration::from_secs(3600),
            retry: Duration::from_secs(5),
            metadata_base: "http://169.254.170.2".into(),
            container_environment: Vec::new(),
            throttling: true,
            event_retry: Duration::from_secs(1),
        }
    }
}
