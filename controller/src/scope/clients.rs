//! SDK clients: one place that decides on time-outs, retries, user agent and roles.

use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use std::time::Duration;
use tasuki_api::desired::AwsScopeSpec;
use tasuki_core::fleet::ScopeId;

/// Name of the role session, as CloudTrail shows it.
const SESSION: &str = "tasuki";

/// The configuration that every client is made from: credentials, endpoints and proxies from the
/// environment and profile, as for every AWS tool.
///
/// # Errors
/// Where there is no certificate authority to trust: the SDK would panic.
pub(super) async fn base() -> Result<SdkConfig, String> {
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err("there are no CA certificates, so AWS cannot be called; add ca-certificates to the image, or set SSL_CERT_FILE".to_owned());
    }
    Ok(settle(aws_config::defaults(BehaviorVersion::latest()).load().await))
}

/// Sets what must not depend on the environment.
pub(super) fn settle(config: SdkConfig) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(15))
        .operation_attempt_timeout(Duration::from_secs(30))
        .build();
    let mut builder = config
        .into_builder()
        .behavior_version(BehaviorVersion::latest())
        // Every attempt takes a token from our own budget; hidden retries would not.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    builder.set_app_name(AppName::new(concat!("tasuki-", env!("CARGO_PKG_VERSION"))).ok());
    builder.build()
}

/// `base` in another Region.
pub(super) fn in_region(base: &SdkConfig, region: &str) -> SdkConfig {
    base.to_builder().region(Region::new(region.to_owned())).build()
}

/// `base` in the scope's Region with the credentials of `role`, or its own where there is none.
pub(super) async fn as_role(base: &SdkConfig, id: &ScopeId, role: Option<&str>, spec: &AwsScopeSpec) -> SdkConfig {
    let config = in_region(base, &id.region);
    let Some(role) = role else { return config };
    let arn = format!("arn:{}:iam::{}:role/{role}", partition(&id.region), id.account);
    let mut provider =
        AssumeRoleProvider::builder(arn).session_name(SESSION).region(Region::new(id.region.to_string()));
    if let Some(external_id) = &spec.external_id {
        provider = provider.external_id(external_id);
    }
    let provider = provider.configure(&config).build().await;
    config.into_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build()
}

/// SQS: a long poll of 20 s must not meet the time-out of other calls.
pub(super) fn queue_client(base: &SdkConfig, region: &str) -> aws_sdk_sqs::Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(30))
        .operation_attempt_timeout(Duration::from_secs(35))
        .build();
    aws_sdk_sqs::Client::new(&in_region(base, region).into_builder().timeout_config(timeouts).build())
}

/// The ARN partition of a Region.
pub(super) fn partition(region: &str) -> &'static str {
    match region.split('-').next() {
        Some("cn") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// The Region that a queue URL names (`https://sqs.eu-west-1.amazonaws.com/…`); none for other hosts.
pub fn queue_region(url: &str) -> Option<&str> {
    let host = url.split("://").nth(1)?.split(['/', ':']).next()?;
    let mut parts = host.split('.');
    match (parts.next()?, parts.next()?) {
        ("sqs" | "sqs-fips", region) if host.contains(".amazonaws.com") => Some(region),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_name_their_partition_and_queues_their_region() {
        assert_eq!(partition("eu-west-1"), "aws");
        assert_eq!(partition("cn-north-1"), "aws-cn");
        assert_eq!(partition("us-gov-west-1"), "aws-us-gov");
        assert_eq!(queue_region("https://sqs.eu-west-1.amazonaws.com/111122223333/q"), Some("eu-west-1"));
        assert_eq!(queue_region("https://sqs.cn-north-1.amazonaws.com.cn/1/q"), Some("cn-north-1"));
        assert_eq!(queue_region("http://127.0.0.1:4566/111122223333/q"), None);
        assert_eq!(queue_region("nonsense"), None);
    }
}
