//! A sweep at a quarter of AWS's limits, against a cloud that throttles as AWS does: no call is
//! refused, and no call is made that the formula does not have. Everything runs on virtual time,
//! cloud and controller in one thread, so time passes only while all of it waits for tokens.

// Helpers of tests may stop a test that cannot go on; clippy knows only the test functions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tasuki::observe::Observer;
use tasuki::scope::Scopes;
use tasuki_cloud::cloud::{Cloud, Options};
use tasuki_cloud::effect::Place;
use tasuki_core::fleet::Change;
use tokio::sync::mpsc;

const ACCOUNT: &str = "111122223333";
const REGION: &str = "eu-central-1";
/// Enough that every bucket of AWS's is emptied several times over.
const CLUSTERS: usize = 120;
/// The cloud's clock follows the runtime's in these steps.
const STEP: Duration = Duration::from_millis(10);

/// Clusters with one service of one task each.
fn filled() -> Cloud {
    let (cloud, _runtime) = Cloud::virtual_cloud(Options { seed: 3, ..Options::default() });
    cloud.add_root_key(ACCOUNT, "AKIAROOT", "local");
    let place = Place { account: ACCOUNT.to_owned(), region: REGION.to_owned() };
    let call = |operation: &str, input: Value| {
        let mut world = cloud.world();
        let answer = world.with(&place, "test", |region, context| {
            tasuki_cloud::ecs::call(&mut region.ecs, context, operation, input)
        });
        answer.expect("the operation is offered").expect("the call is right");
    };
    call(
        "RegisterTaskDefinition",
        json!({"family": "app", "networkMode": "awsvpc", "cpu": "256", "memory": "512",
               "requiresCompatibilities": ["FARGATE"], "executionRoleArn": format!("arn:aws:iam::{ACCOUNT}:role/exec"),
               "containerDefinitions": [{"name": "app", "image": "app:1", "essential": true}]}),
    );
    for number in 0..CLUSTERS {
        let cluster = format!("cluster-{number}");
        call("CreateCluster", json!({"clusterName": cluster}));
        call(
            "CreateService",
            json!({"cluster": cluster, "serviceName": "app", "taskDefinition": "app", "desiredCount": 1,
                   "launchType": "FARGATE", "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"]}}}),
        );
    }
    cloud.advance(Duration::from_secs(120));
    cloud
}

/// Calls made, calls throttled, tasks found, virtual seconds.
async fn sweep(share: f64) -> (u64, u64, usize, u64) {
    let cloud = filled();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(tasuki_cloud::http::serve(cloud.clone(), listener));
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(url)
        .credentials_provider(Credentials::new("AKIAROOT", "local", None, None, "test"))
        .load()
        .await;
    let scopes = Arc::new(Scopes::new(config));
    let spec = serde_json::from_value(json!({"regions": [REGION], "accounts": [ACCOUNT], "share": "100%"})).unwrap();
    assert!(scopes.sync(&BTreeMap::from([("own".into(), spec)])).await.is_empty());
    let scope = scopes.all().pop().unwrap();
    scope.budget.set_share(share);
    let start = tokio::time::Instant::now();
    let clock = tokio::spawn(async move {
        loop {
            tokio::time::sleep(STEP).await;
            cloud.advance(STEP);
        }
    });
    let (sender, mut changes) = mpsc::channel(1000);
    let mut observer = Observer::new(scopes, sender);
    observer.sync();
    let mut tasks = 0;
    loop {
        match changes.recv().await.unwrap() {
            Change::TaskRead { .. } => tasks += 1,
            Change::ScopeSwept { .. } => break,
            _ => {}
        }
    }
    let counters = scope.budget.counters();
    clock.abort();
    server.abort();
    (
        counters.iter().map(|(_, counted)| counted.taken).sum(),
        counters.iter().map(|(_, counted)| counted.throttled).sum(),
        tasks,
        start.elapsed().as_secs(),
    )
}

/// ListClusters and DescribeClusters by the hundred; of each cluster three lists, and one
/// description each of its service and its task.
const FORMULA: u64 = 2 * (CLUSTERS as u64).div_ceil(100) + 5 * CLUSTERS as u64;

#[tokio::test(start_paused = true)]
async fn a_sweep_at_a_quarter_of_the_limits_is_never_throttled() {
    let (calls, throttled, tasks, seconds) = sweep(0.25).await;
    assert_eq!((calls, throttled, tasks), (FORMULA, 0, CLUSTERS));
    // 360 calls of the largest group, 25 at once and then 5 a second: the budget did hold it back.
    assert!(seconds >= 60, "{seconds} virtual seconds");
}

#[tokio::test(start_paused = true)]
async fn the_same_sweep_without_a_budget_is_throttled() {
    let (calls, throttled, tasks, _) = sweep(1000.0).await;
    assert!(throttled > 0 && calls > FORMULA, "{calls} calls, {throttled} throttled");
    assert!(tasks <= CLUSTERS);
}
