//! Observe and act against the local cloud, over real AWS wire protocols: signed requests from the
//! SDK, on virtual time.

// Helpers of tests may stop a test that cannot go on; clippy knows only the test functions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tasuki::act::{Executor, Verdict};
use tasuki::observe::Observer;
use tasuki::scope::Scopes;
use tasuki::store::Store;
use tasuki_cloud::cloud::{Cloud, Options};
use tasuki_cloud::ecs::InstanceOptions;
use tasuki_cloud::effect::Place;
use tasuki_core::action::{Action, ActionKind, AgentSpec, GatewaySpec, SidecarSpec};
use tasuki_core::fleet::{Change, LaunchType, ScopeId};
use tokio::sync::mpsc;

const ACCOUNT: &str = "111122223333";
const REGION: &str = "eu-central-1";

/// A cloud with a cluster `shop` of one node, and an SDK configuration that reaches it.
async fn cloud() -> (Cloud, SdkConfig) {
    let (cloud, _runtime) = Cloud::virtual_cloud(Options { seed: 7, ..Options::default() });
    cloud.add_root_key(ACCOUNT, "AKIAROOT", "local");
    let place = Place { account: ACCOUNT.to_owned(), region: REGION.to_owned() };
    cloud.add_cluster(&place, "shop").unwrap();
    cloud.add_instance(&place, "shop", InstanceOptions::default()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(tasuki_cloud::http::serve(cloud.clone(), listener));
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(url)
        .credentials_provider(Credentials::new("AKIAROOT", "local", None, None, "test"))
        .load()
        .await;
    (cloud, config)
}

fn agent() -> AgentSpec {
    AgentSpec {
        version: "1.0.0".into(),
        image: "registry/tasuki-agent@sha256:0000000000000000000000000000000000000000000000000000000000000001".into(),
        sensor: "auto".into(),
        memory_mib: 64,
        cpu: "10%".into(),
        task_role: None,
        execution_role: None,
        gateway: GatewaySpec::default(),
        pods: None,
    }
}

async fn registry(config: SdkConfig) -> Arc<Scopes> {
    let scopes = Arc::new(Scopes::new(config));
    // No accounts: the own one, by a signed GetCallerIdentity.
    let spec = serde_json::from_value(serde_json::json!({"regions": [REGION], "share": "100%"})).unwrap();
    let problems = scopes.sync(&BTreeMap::from([("own".into(), spec)])).await;
    assert!(problems.is_empty(), "{problems:?}");
    scopes
}

/// One whole sweep's changes.
async fn sweep(scopes: &Arc<Scopes>) -> Vec<Change> {
    let (sender, mut receiver) = mpsc::channel(1000);
    let mut observer = Observer::new(scopes.clone(), sender);
    observer.sync();
    let mut changes = Vec::new();
    loop {
        let change = receiver.recv().await.unwrap();
        let done = matches!(change, Change::ScopeSwept { .. });
        changes.push(change);
        if done {
            return changes;
        }
    }
}

#[tokio::test]
async fn a_daemon_and_a_sidecar_come_and_go_and_leave_nothing() {
    let (cloud, config) = cloud().await;
    let customer = aws_sdk_ecs::Client::new(&config);
    let container =
        aws_sdk_ecs::types::ContainerDefinition::builder().name("app").image("web:1").essential(true).build();
    customer
        .register_task_definition()
        .family("web")
        .network_mode(aws_sdk_ecs::types::NetworkMode::Awsvpc)
        .requires_compatibilities(aws_sdk_ecs::types::Compatibility::Fargate)
        .cpu("512")
        .memory("1024")
        .execution_role_arn(format!("arn:aws:iam::{ACCOUNT}:role/exec"))
        .container_definitions(container)
        .send()
        .await
        .unwrap();
    let network = aws_sdk_ecs::types::AwsVpcConfiguration::builder().subnets("subnet-1").build().unwrap();
    customer
        .create_service()
        .cluster("shop")
        .service_name("web")
        .task_definition("web")
        .desired_count(2)
        .launch_type(aws_sdk_ecs::types::LaunchType::Fargate)
        .network_configuration(
            aws_sdk_ecs::types::NetworkConfiguration::builder().awsvpc_configuration(network).build(),
        )
        .send()
        .await
        .unwrap();
    cloud.advance(Duration::from_secs(300));

    let scopes = registry(config).await;
    let changes = sweep(&scopes).await;
    let scope = ScopeId { account: ACCOUNT.into(), region: REGION.into() };
    let service = changes
        .iter()
        .find_map(|change| match change {
            Change::Service(service) if &*service.name == "web" => Some(service.clone()),
            _ => None,
        })
        .expect("the sweep finds the service");
    assert_eq!((service.desired, service.running, service.deployments.len()), (2, 2, 1));
    let tasks: BTreeSet<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::TaskRead { task, .. } => Some((task.launch, task.address.is_some(), task.containers.len())),
            _ => None,
        })
        .collect();
    assert_eq!(tasks, BTreeSet::from([(LaunchType::Fargate, true, 1)]));
    assert!(
        changes.iter().any(
            |c| matches!(c, Change::NodeRead { node, .. } if node.active && node.connected && node.free_memory > 0)
        )
    );

    let executor = Executor::new(scopes.clone(), Store::open("sqlite::memory:").await.unwrap());
    let act = |kind| Action {
        scope: scope.clone(),
        cluster: service.cluster.clone(),
        monitor: "prod".into(),
        why: "test".to_owned(),
        kind,
    };
    let create = act(ActionKind::CreateDaemon { service: "tasuki".into(), launch: LaunchType::Ec2, agent: agent() });
    assert_eq!(executor.execute(&create, "c").await.verdict, Verdict::Done);
    let sidecar = SidecarSpec { agent: agent(), share_processes: true, fail_closed: false, grow: false };
    let from = service.definition.clone();
    let inject = act(ActionKind::Inject { service: service.arn.clone(), from, sidecar });
    assert_eq!(executor.execute(&inject, "c").await.verdict, Verdict::Done);
    // While the deployment runs the service is left alone.
    assert!(!matches!(executor.execute(&inject, "c").await.verdict, Verdict::Done));
    cloud.advance(Duration::from_secs(600));

    let changes = sweep(&scopes).await;
    let carrying = changes
        .iter()
        .filter(
            |change| matches!(change, Change::TaskRead { task, .. } if task.containers.iter().any(|c| &*c.name == "tasuki-agent")),
        )
        .count();
    assert_eq!(carrying, 3, "two tasks of the service and one daemon");

    let found = executor.inventory(&scope).await.unwrap();
    assert_eq!(found.len(), 4, "{found:?}");
    for owned in found {
        assert_eq!(executor.execute(&owned.removal("prod"), "c").await.verdict, Verdict::Done, "{owned}");
    }
    cloud.advance(Duration::from_secs(600));
    assert!(executor.inventory(&scope).await.unwrap().is_empty());
    let changes = sweep(&scopes).await;
    let back = changes.iter().any(|c| matches!(c, Change::Service(s) if *s.arn == *service.arn && s.definition == service.definition && s.running == 2));
    assert!(back, "the service runs what it ran before");
}

#[tokio::test]
async fn events_arrive_through_the_bus_and_the_queue_twice_and_out_of_order() {
    let (cloud, config) = cloud().await;
    cloud.set_faults(tasuki_cloud::faults::Faults { duplicate: 0.5, reorder: 0.3, ..Default::default() });
    let (sqs, bus) = (aws_sdk_sqs::Client::new(&config), aws_sdk_eventbridge::Client::new(&config));
    let url = sqs.create_queue().queue_name("tasuki").send().await.unwrap().queue_url.unwrap();
    let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:tasuki");
    let rule = bus.put_rule().name("ecs").event_pattern(r#"{"source":["aws.ecs"]}"#).send().await.unwrap();
    let policy = serde_json::json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage", "Resource": arn, "Condition": {"ArnEquals": {"aws:SourceArn": rule.rule_arn()}}}]});
    let named = aws_sdk_sqs::types::QueueAttributeName::Policy;
    sqs.set_queue_attributes().queue_url(&url).attributes(named, policy.to_string()).send().await.unwrap();
    let target = aws_sdk_eventbridge::types::Target::builder().id("q").arn(&arn).build().unwrap();
    bus.put_targets().rule("ecs").targets(target).send().await.unwrap();
    sqs.send_message().queue_url(&url).message_body("garbage").send().await.unwrap();

    let scopes = Arc::new(Scopes::new(config.clone()));
    let spec = serde_json::json!({"regions": [REGION], "share": "100%", "eventQueue": url, "sweepInterval": "1h"});
    scopes.sync(&BTreeMap::from([("own".into(), serde_json::from_value(spec).unwrap())])).await;
    let (sender, mut receiver) = mpsc::channel(1000);
    let mut observer = Observer::new(scopes, sender);
    observer.sync();
    while !matches!(receiver.recv().await.unwrap(), Change::ScopeSwept { .. }) {}

    let customer = aws_sdk_ecs::Client::new(&config);
    let container = aws_sdk_ecs::types::ContainerDefinition::builder().name("app").image("web:1").memory(64).build();
    let definition = customer.register_task_definition().family("job").container_definitions(container);
    definition.send().await.unwrap();
    let ran = customer.run_task().cluster("shop").task_definition("job").send().await.unwrap();
    let task = ran.tasks()[0].task_arn().unwrap().to_owned();
    cloud.advance(Duration::from_secs(60));
    customer.stop_task().cluster("shop").task(&task).send().await.unwrap();
    cloud.advance(Duration::from_secs(120));
    // The last state arrives however the bus shuffles; which of them is the newest is in its version.
    loop {
        if let Change::Task(seen) = receiver.recv().await.unwrap()
            && *seen.arn == *task
            && seen.status == tasuki_core::fleet::TaskStatus::Stopped
        {
            assert!(seen.version > 1 && seen.node.is_some() && seen.stopped_at.is_some(), "{seen:?}");
            break;
        }
    }
    let (_, counters) = observer.queues().next().unwrap();
    assert_eq!(counters.unusable.load(std::sync::atomic::Ordering::Relaxed), 1, "the garbage, and nothing else");
}
