//! The real AWS SDKs against the in-process server: signatures, error types, long polling.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ecs::config::{Credentials, SharedCredentialsProvider};
use serde_json::json;
use support::{Lab, REGION};
use tasuki_cloud::cloud::Options;

async fn serve(lab: &Lab) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(tasuki_cloud::http::serve(lab.cloud.clone(), listener));
    url
}

async fn config(url: &str, key: &str, secret: &str, token: Option<String>) -> SdkConfig {
    let credentials = Credentials::new(key, secret, token, None, "test");
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(url)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .retry_config(aws_config::retry::RetryConfig::disabled())
        .load()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_signed_typed_and_scoped_to_their_account() {
    let lab = Lab::new(Options::default());
    lab.cloud.add_role("arn:aws:iam::222222222222:role/tasuki-read", vec!["111122223333".into()], None);
    let url = serve(&lab).await;
    let root = config(&url, "AKIAROOT", "secret", None).await;
    let ecs = aws_sdk_ecs::Client::new(&root);
    ecs.create_cluster().cluster_name("web").send().await.unwrap();
    assert_eq!(ecs.list_clusters().send().await.unwrap().cluster_arns().len(), 1);
    let missing = ecs.list_services().cluster("none").send().await.unwrap_err().into_service_error();
    assert!(missing.is_cluster_not_found_exception(), "{missing:?}");

    let sts = aws_sdk_sts::Client::new(&root);
    let role = "arn:aws:iam::222222222222:role/tasuki-read";
    let session = sts.assume_role().role_arn(role).role_session_name("hub").send().await.unwrap();
    let keys = session.credentials().unwrap();
    let member = config(&url, keys.access_key_id(), keys.secret_access_key(), Some(keys.session_token().into())).await;
    let who = aws_sdk_sts::Client::new(&member).get_caller_identity().send().await.unwrap();
    assert_eq!(who.arn(), Some("arn:aws:sts::222222222222:assumed-role/tasuki-read/hub"));
    let theirs = aws_sdk_ecs::Client::new(&member);
    assert!(
        theirs.list_clusters().send().await.unwrap().cluster_arns().is_empty(),
        "another account sees nothing of ours"
    );

    lab.advance(3601);
    let expired = theirs.list_clusters().send().await.unwrap_err().into_service_error();
    assert_eq!(expired.meta().code(), Some("ExpiredTokenException"));
    let wrong = aws_sdk_ecs::Client::new(&config(&url, "AKIAROOT", "other", None).await);
    let refused = wrong.list_clusters().send().await.unwrap_err().into_service_error();
    assert_eq!(refused.meta().code(), Some("InvalidSignatureException"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_ends_with_the_event() {
    let lab = Lab::new(Options::default());
    lab.cluster(0);
    lab.queue(json!({}), true);
    lab.fargate("app:1");
    let url = serve(&lab).await;
    let sqs = aws_sdk_sqs::Client::new(&config(&url, "AKIAROOT", "secret", None).await);
    let queue = sqs.get_queue_url().queue_name("q").send().await.unwrap().queue_url.unwrap();
    let poll = tokio::spawn(async move { sqs.receive_message().queue_url(queue).wait_time_seconds(20).send().await });
    lab.service(1, json!({}));
    let messages = poll.await.unwrap().unwrap();
    assert!(messages.messages()[0].body().unwrap().contains("PROVISIONING"));
}
