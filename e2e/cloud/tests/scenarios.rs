//! Scenarios on virtual time: deployments, daemons, events, faults, limits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use serde_json::{Value, json};
use support::Lab;
use tasuki_cloud::cloud::Options;
use tasuki_cloud::faults::{Denial, Faults};
use tasuki_cloud::runtime::Script;
use tasuki_cloud::world::Service;

fn lab() -> Lab {
    Lab::new(Options { seed: 42, ..Options::default() })
}

#[test]
fn a_deployment_rolls_and_replaces_every_task() {
    let lab = lab();
    lab.cluster(0);
    lab.fargate("app:1");
    lab.service(3, json!({}));
    assert_eq!(lab.describe("s")["deployments"][0]["rolloutState"], "IN_PROGRESS");
    lab.advance(120);
    assert_eq!(
        (&lab.describe("s")["runningCount"], &lab.describe("s")["deployments"][0]["rolloutState"]),
        (&json!(3), &json!("COMPLETED"))
    );
    lab.fargate("app:2");
    lab.ecs("UpdateService", json!({"cluster": "c", "service": "s", "taskDefinition": "web"}));
    lab.advance(20);
    assert_eq!(
        lab.describe("s")["deployments"].as_array().unwrap().len(),
        2,
        "the old tasks stay while the new ones are young"
    );
    lab.advance(120);
    let service = lab.describe("s");
    assert_eq!(service["deployments"].as_array().unwrap().len(), 1);
    assert!(service["taskDefinition"].as_str().unwrap().ends_with("web:2"));
    assert_eq!(service["runningCount"], 3);
    assert!(service["events"][0]["message"].as_str().unwrap().contains("steady state"));
}

#[test]
fn the_circuit_breaker_rolls_back() {
    let lab = lab();
    lab.cluster(0);
    lab.fargate("app:1");
    lab.service(2, json!({"deploymentCircuitBreaker": {"enable": true, "rollback": true}}));
    lab.advance(120);
    lab.runtime.script("bad:1", Script { pull_failure: Some("manifest unknown".into()), ..Script::default() });
    lab.fargate("bad:1");
    lab.ecs("UpdateService", json!({"cluster": "c", "service": "s", "taskDefinition": "web"}));
    lab.advance(600);
    let service = lab.describe("s");
    assert!(service["taskDefinition"].as_str().unwrap().ends_with("web:1"), "{service:#}");
    assert_eq!(service["runningCount"], 2);
    let records = lab.ecs("ListServiceDeployments", json!({"cluster": "c", "service": "s"}));
    let statuses: Vec<&Value> =
        records["serviceDeployments"].as_array().unwrap().iter().map(|r| &r["status"]).collect();
    assert_eq!(statuses, ["ROLLBACK_SUCCESSFUL", "SUCCESSFUL"]);
    let stopped = lab.ecs("ListTasks", json!({"cluster": "c", "desiredStatus": "STOPPED"}));
    let tasks = lab.ecs("DescribeTasks", json!({"cluster": "c", "tasks": stopped["taskArns"]}));
    let failed = tasks["tasks"].as_array().unwrap().iter().find(|t| t["stopCode"] == "TaskFailedToStart").unwrap();
    assert_eq!(failed["stoppedReason"], "CannotPullContainerError: manifest unknown");
}

#[test]
fn a_daemon_follows_attributes_without_a_gap() {
    let lab = lab();
    let nodes = lab.cluster(2);
    lab.ecs(
        "RegisterTaskDefinition",
        json!({"family": "agent", "networkMode": "host", "pidMode": "host",
               "containerDefinitions": [{"name": "agent", "image": "agent:1", "memory": 128, "privileged": true}]}),
    );
    let create = |name: &str, expression: &str| {
        lab.ecs(
            "CreateService",
            json!({"cluster": "c", "serviceName": name, "taskDefinition": "agent", "schedulingStrategy": "DAEMON", "launchType": "EC2",
                   "placementConstraints": [{"type": "memberOf", "expression": expression}]}),
        );
    };
    create("tasuki", "attribute:tasuki.hold !exists");
    create("tasuki-next", "attribute:tasuki.next exists");
    lab.advance(60);
    let running = |service: &str| lab.describe(service)["runningCount"].as_u64().unwrap();
    assert_eq!((running("tasuki"), running("tasuki-next")), (2, 0));
    let put = |name: &str| {
        let attribute = json!({"name": name, "value": "1", "targetId": nodes[0]});
        lab.ecs("PutAttributes", json!({"cluster": "c", "attributes": [attribute]}));
        lab.advance(60);
    };
    put("tasuki.next");
    assert_eq!((running("tasuki"), running("tasuki-next")), (2, 1));
    put("tasuki.hold");
    assert_eq!((running("tasuki"), running("tasuki-next")), (1, 1));
    lab.ecs(
        "UpdateContainerInstancesState",
        json!({"cluster": "c", "containerInstances": [nodes[0]], "status": "DRAINING"}),
    );
    lab.advance(60);
    assert_eq!((running("tasuki"), running("tasuki-next")), (1, 0));
}

#[test]
fn a_task_that_does_not_fit_is_said_and_placed_later() {
    let lab = lab();
    lab.cluster(1);
    lab.ecs(
        "RegisterTaskDefinition",
        json!({"family": "big", "containerDefinitions": [{"name": "a", "image": "a", "memory": 5000}]}),
    );
    lab.ecs(
        "CreateService",
        json!({"cluster": "c", "serviceName": "s", "taskDefinition": "big", "desiredCount": 2, "launchType": "EC2"}),
    );
    lab.advance(100);
    let service = lab.describe("s");
    assert_eq!(service["runningCount"], 1);
    assert!(service["events"].to_string().contains("has insufficient memory available"), "{service:#}");
    lab.cloud.add_instance(&lab.place(), "c", Default::default()).unwrap();
    lab.advance(60);
    assert_eq!(lab.describe("s")["runningCount"], 2);
}

#[test]
fn events_carry_rising_versions_and_the_documented_shape() {
    let lab = lab();
    lab.cluster(0);
    lab.queue(json!({}), true);
    lab.fargate("app:1");
    let network = json!({"awsvpcConfiguration": {"subnets": ["subnet-1"]}});
    let run = lab.ecs(
        "RunTask",
        json!({"cluster": "c", "taskDefinition": "web", "launchType": "FARGATE", "networkConfiguration": network}),
    );
    lab.advance(30);
    lab.ecs("StopTask", json!({"cluster": "c", "task": run["tasks"][0]["taskArn"]}));
    lab.advance(30);
    let events = lab.drain("q");
    let seen: Vec<(u64, &str)> = events
        .iter()
        .map(|e| (e["detail"]["version"].as_u64().unwrap(), e["detail"]["lastStatus"].as_str().unwrap()))
        .collect();
    let wanted =
        [(1, "PROVISIONING"), (2, "PENDING"), (3, "RUNNING"), (4, "RUNNING"), (5, "DEPROVISIONING"), (6, "STOPPED")];
    assert_eq!(seen, wanted);
    let running = &events[2];
    assert_eq!(
        (&running["account"], &running["source"], &running["version"]),
        (&json!("111122223333"), &json!("aws.ecs"), &json!("0"))
    );
    assert_eq!(running["detail"]["attachments"][0]["type"], "eni");
    assert!(running["detail"]["createdAt"].as_str().unwrap().ends_with('Z'));
    assert_eq!(running["resources"][0], run["tasks"][0]["taskArn"]);
    lab.advance(3700);
    let gone = lab.ecs("DescribeTasks", json!({"cluster": "c", "tasks": [run["tasks"][0]["taskArn"]]}));
    assert_eq!(gone["failures"][0]["reason"], "MISSING");
}

#[test]
fn faults_happen_as_often_as_asked_and_the_same_for_a_seed() {
    let run = || {
        let faults = Faults { duplicate: 0.3, drop: 0.2, reorder: 0.5, ..Faults::default() };
        let lab = Lab::new(Options { seed: 7, faults, ..Options::default() });
        lab.cluster(0);
        lab.queue(json!({}), true);
        lab.fargate("app:1");
        lab.service(20, json!({}));
        lab.advance(300);
        // The lock must be free again before the next call.
        let counts = lab.cloud.world().fault_counts;
        (counts, lab.drain("q").len())
    };
    let (counts, delivered) = run();
    assert!(counts.dropped > 0 && counts.duplicated > 0 && counts.delayed > 0, "{counts:?}");
    assert_eq!(run(), (counts, delivered));
}

#[test]
fn what_a_queue_refuses_goes_to_the_dead_letters() {
    let lab = lab();
    lab.cluster(0);
    lab.queue(json!({"MaximumRetryAttempts": 2}), false);
    lab.fargate("app:1");
    lab.service(1, json!({}));
    lab.advance(60);
    assert_eq!((lab.drain("q").len(), lab.drain("dead").len()), (0, 3), "provisioning, pending, running");
}

#[test]
fn the_buckets_are_those_of_aws() {
    let lab = lab();
    let register = || {
        let input = json!({"family": "f", "containerDefinitions": [{"name": "a", "image": "a", "memory": 64}]});
        lab.call(Service::Ecs, "RegisterTaskDefinition", input).is_ok()
    };
    assert_eq!((0..40).filter(|_| register()).count(), 20);
    lab.advance(5);
    assert_eq!((0..40).filter(|_| register()).count(), 5);
}

#[test]
fn codedeploy_inactive_and_denied_are_refused_in_aws_words() {
    let lab = lab();
    lab.cluster(0);
    lab.fargate("app:1");
    let network = json!({"awsvpcConfiguration": {"subnets": ["subnet-1"]}});
    lab.ecs(
        "CreateService",
        json!({"cluster": "c", "serviceName": "cd", "taskDefinition": "web", "launchType": "FARGATE", "networkConfiguration": network,
               "deploymentController": {"type": "CODE_DEPLOY"}}),
    );
    let update =
        || lab.call(Service::Ecs, "UpdateService", json!({"cluster": "c", "service": "cd", "taskDefinition": "web"}));
    assert!(update().unwrap_err().message.contains("CODE_DEPLOY deployment controller"));
    lab.ecs("DeregisterTaskDefinition", json!({"taskDefinition": "web:1"}));
    let run =
        json!({"cluster": "c", "taskDefinition": "web:1", "launchType": "FARGATE", "networkConfiguration": network});
    assert_eq!(lab.call(Service::Ecs, "RunTask", run).unwrap_err().message, "TaskDefinition is inactive");
    let deny = vec![Denial { principal: "*".into(), action: "ecs:Update*".into() }];
    lab.cloud.set_faults(Faults { deny, ..Faults::default() });
    assert_eq!(update().unwrap_err().code, "AccessDeniedException");
    assert_eq!(lab.call(Service::Ecs, "CreateDaemon", json!({})).unwrap_err().code, "UnknownOperationException");
}

#[test]
fn a_message_comes_back_after_its_visibility_timeout() {
    let lab = lab();
    lab.call(Service::Sqs, "CreateQueue", json!({"QueueName": "v"})).unwrap();
    let url = "http://localhost/111122223333/v";
    lab.call(Service::Sqs, "SendMessage", json!({"QueueUrl": url, "MessageBody": "hello"})).unwrap();
    let receive =
        || lab.call(Service::Sqs, "ReceiveMessage", json!({"QueueUrl": url, "VisibilityTimeout": 30})).unwrap();
    assert_eq!(receive()["Messages"][0]["MD5OfBody"], "5d41402abc4b2a76b9719d911017c592");
    assert_eq!(receive(), json!({}));
    lab.advance(31);
    assert_eq!(receive()["Messages"][0]["Body"], "hello");
}
