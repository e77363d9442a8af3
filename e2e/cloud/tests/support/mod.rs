//! A virtual cloud with one account, called directly or through the real SDKs.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tasuki_cloud::auth::identity::Caller;
use tasuki_cloud::auth::sigv4::Verified;
use tasuki_cloud::cloud::{Cloud, Options};
use tasuki_cloud::effect::Place;
use tasuki_cloud::error::ApiResult;
use tasuki_cloud::runtime::Virtual;
use tasuki_cloud::world::Service;

pub const ACCOUNT: &str = "111122223333";
pub const REGION: &str = "eu-central-1";

pub struct Lab {
    pub cloud: Cloud,
    pub runtime: Arc<Virtual>,
}

impl Lab {
    pub fn new(options: Options) -> Self {
        let (cloud, runtime) = Cloud::virtual_cloud(options);
        cloud.add_root_key(ACCOUNT, "AKIAROOT", "secret");
        Self { cloud, runtime }
    }

    pub fn place(&self) -> Place {
        Place { account: ACCOUNT.into(), region: REGION.into() }
    }

    pub fn call(&self, service: Service, operation: &str, input: Value) -> ApiResult {
        let arn = format!("arn:aws:iam::{ACCOUNT}:root");
        let caller = Caller { account: ACCOUNT.into(), arn, user_id: ACCOUNT.into() };
        let who = Verified { caller, region: REGION.into(), service: service.name().into() };
        self.cloud.change(|world| world.call(&who, service, operation, input, "localhost"))
    }

    pub fn ecs(&self, operation: &str, input: Value) -> Value {
        self.call(Service::Ecs, operation, input).unwrap_or_else(|error| panic!("{operation}: {error}"))
    }

    pub fn advance(&self, seconds: u64) {
        self.cloud.advance(Duration::from_secs(seconds));
    }

    /// A cluster `c` with that many instances.
    pub fn cluster(&self, instances: usize) -> Vec<String> {
        self.ecs("CreateCluster", json!({"clusterName": "c"}));
        (0..instances).map(|_| self.cloud.add_instance(&self.place(), "c", Default::default()).unwrap()).collect()
    }

    /// Registers a Fargate definition of family `web` with this image.
    pub fn fargate(&self, image: &str) {
        self.ecs(
            "RegisterTaskDefinition",
            json!({"family": "web", "networkMode": "awsvpc", "cpu": "256", "memory": "512", "requiresCompatibilities": ["FARGATE"],
                   "containerDefinitions": [{"name": "app", "image": image}]}),
        );
    }

    /// Service `s` of family `web`.
    pub fn service(&self, desired: usize, configuration: Value) {
        self.ecs(
            "CreateService",
            json!({"cluster": "c", "serviceName": "s", "taskDefinition": "web", "desiredCount": desired, "launchType": "FARGATE",
                   "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"]}}, "deploymentConfiguration": configuration}),
        );
    }

    pub fn describe(&self, service: &str) -> Value {
        self.ecs("DescribeServices", json!({"cluster": "c", "services": [service]}))["services"][0].clone()
    }

    /// A queue `q` that gets every event of this source, through rule `r`.
    pub fn queue(&self, retry: Value, with_policy: bool) {
        let policy = json!({"Statement": {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage"}});
        for (name, allowed) in [("q", with_policy), ("dead", true)] {
            let attributes = if allowed { json!({"Policy": policy.to_string()}) } else { json!({}) };
            self.call(Service::Sqs, "CreateQueue", json!({"QueueName": name, "Attributes": attributes})).unwrap();
        }
        let pattern = json!({"source": ["aws.ecs"], "detail-type": ["ECS Task State Change"]}).to_string();
        self.call(Service::Events, "PutRule", json!({"Name": "r", "EventPattern": pattern})).unwrap();
        let arn = |name: &str| format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}");
        let target =
            json!({"Id": "1", "Arn": arn("q"), "DeadLetterConfig": {"Arn": arn("dead")}, "RetryPolicy": retry});
        self.call(Service::Events, "PutTargets", json!({"Rule": "r", "Targets": [target]})).unwrap();
    }

    /// Takes every visible message out of a queue; the bodies.
    pub fn drain(&self, queue: &str) -> Vec<Value> {
        let url = format!("http://localhost/{ACCOUNT}/{queue}");
        let mut bodies = Vec::new();
        loop {
            let input = json!({"QueueUrl": url, "MaxNumberOfMessages": 10});
            let answer = self.call(Service::Sqs, "ReceiveMessage", input).unwrap();
            let Some(messages) = answer["Messages"].as_array() else { return bodies };
            for message in messages {
                bodies.push(serde_json::from_str(message["Body"].as_str().unwrap()).unwrap());
                let receipt = &message["ReceiptHandle"];
                self.call(Service::Sqs, "DeleteMessage", json!({"QueueUrl": url, "ReceiptHandle": receipt})).unwrap();
            }
        }
    }
}
