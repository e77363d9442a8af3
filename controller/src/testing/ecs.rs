//! A small ECS: clusters, services, tasks, nodes and definitions as JSON, with the paging, batch
//! limits and the filling in of defaults that the real one has.

use super::{ACCOUNT, Answer, REGION, Wire};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard};

/// A small ECS. Clones are one.
#[derive(Clone, Default)]
pub struct Ecs(Arc<Mutex<State>>);

/// What it holds.
#[derive(Default)]
pub struct State {
    /// Cluster names.
    pub clusters: Vec<String>,
    /// As DescribeServices answers them.
    pub services: Vec<Value>,
    /// As DescribeTasks answers them.
    pub tasks: Vec<Value>,
    /// As DescribeContainerInstances answers them.
    pub nodes: Vec<Value>,
    /// As DescribeTaskDefinition answers them, with `tags` inside.
    pub definitions: Vec<Value>,
    /// Tasks under scale-in protection.
    pub protected: Vec<String>,
    /// As ListServiceDeployments answers them.
    pub running_deployments: Vec<Value>,
}

/// An ARN of the test account.
pub fn arn(rest: &str) -> String {
    format!("arn:aws:ecs:{REGION}:{ACCOUNT}:{rest}")
}

impl Ecs {
    /// A wire to it.
    pub fn wire(&self) -> Wire {
        let ecs = self.clone();
        Wire::new(move |operation, body| ecs.answer(operation, body))
    }

    /// What it holds.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A cluster with so many services, tasks and nodes.
    pub fn fill(&self, cluster: &str, services: usize, tasks: usize, nodes: usize) {
        let mut state = self.state();
        state.clusters.push(cluster.to_owned());
        let cluster_arn = arn(&format!("cluster/{cluster}"));
        for index in 0..services {
            state.services.push(service(cluster, &format!("s{index}"), "web:1"));
        }
        for index in 0..tasks {
            state.tasks.push(
                json!({"taskArn": arn(&format!("task/{cluster}/{index:032x}")), "clusterArn": cluster_arn,
                "taskDefinitionArn": arn("task-definition/web:1"), "lastStatus": "RUNNING", "desiredStatus": "RUNNING",
                "group": "service:s0", "launchType": "FARGATE", "version": 3, "createdAt": 1_700_000_000.5}),
            );
        }
        for index in 0..nodes {
            state.nodes.push(
                json!({"containerInstanceArn": arn(&format!("container-instance/{cluster}/{index:032x}")),
                "ec2InstanceId": format!("i-{index}"), "status": "ACTIVE", "agentConnected": true, "version": 1,
                "attributes": [{"name": "ecs.os-type", "value": "linux"}]}),
            );
        }
    }

    /// Registers a definition as its owner would.
    pub fn define(&self, definition: Value) -> String {
        self.register(&definition)["taskDefinitionArn"].as_str().unwrap().to_owned()
    }

    /// The ACTIVE revisions of a family.
    pub fn revisions(&self, family: &str) -> usize {
        self.state().definitions.iter().filter(|d| d["family"] == family && d["status"] == "ACTIVE").count()
    }

    fn register(&self, definition: &Value) -> Value {
        let mut state = self.state();
        let family = definition["family"].as_str().unwrap_or_default().to_owned();
        let revision = 1 + state.definitions.iter().filter(|known| known["family"] == family.as_str()).count();
        let mut stored = definition.clone();
        stored["taskDefinitionArn"] = arn(&format!("task-definition/{family}:{revision}")).into();
        stored["revision"] = revision.into();
        stored["status"] = "ACTIVE".into();
        stored["registeredAt"] = 1_700_000_000.25.into();
        // What ECS fills in, so that an answer never equals what was sent.
        for container in stored["containerDefinitions"].as_array_mut().into_iter().flatten() {
            for key in ["environment", "mountPoints", "volumesFrom", "portMappings", "systemControls"] {
                if container.get(key).is_none() {
                    container[key] = json!([]);
                }
            }
        }
        state.definitions.push(stored.clone());
        stored
    }

    fn answer(&self, operation: &str, body: &Value) -> Answer {
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let wanted = |key: &str, most: usize| -> Vec<String> {
            let names: Vec<String> =
                body[key].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
            assert!(!names.is_empty() && names.len() <= most, "{operation} of {} {key}", names.len());
            names
        };
        let is = |item: &Value, key: &str, names: &[String]| names.iter().any(|name| item[key] == name.as_str());
        match operation {
            "ListClusters" => {
                let all = self.state().clusters.iter().map(|name| arn(&format!("cluster/{name}"))).collect();
                page(body, "clusterArns", all)
            }
            "DescribeClusters" => {
                let found: Vec<_> = wanted("clusters", 100)
                    .iter()
                    .map(|arn| json!({"clusterArn": arn, "clusterName": arn.rsplit('/').next(), "status": "ACTIVE"}))
                    .collect();
                Answer::Ok(json!({"clusters": found}))
            }
            "ListServices" => self.list(body, "serviceArns", "serviceArn", |state| &state.services),
            "ListTasks" => self.list(body, "taskArns", "taskArn", |state| &state.tasks),
            "ListContainerInstances" => {
                self.list(body, "containerInstanceArns", "containerInstanceArn", |state| &state.nodes)
            }
            "DescribeServices" => {
                let names = wanted("services", 10);
                let state = self.state();
                let found: Vec<_> = state
                    .services
                    .iter()
                    .filter(|item| item["clusterArn"] == body["cluster"])
                    .filter(|item| is(item, "serviceArn", &names) || is(item, "serviceName", &names))
                    .collect();
                Answer::Ok(json!({"services": found, "failures": []}))
            }
            "DescribeTasks" => {
                let names = wanted("tasks", 100);
                let state = self.state();
                Answer::Ok(
                    json!({"tasks": state.tasks.iter().filter(|t| is(t, "taskArn", &names)).collect::<Vec<_>>()}),
                )
            }
            "DescribeContainerInstances" => {
                let names = wanted("containerInstances", 100);
                let state = self.state();
                let found: Vec<_> = state.nodes.iter().filter(|n| is(n, "containerInstanceArn", &names)).collect();
                Answer::Ok(json!({"containerInstances": found}))
            }
            "DescribeTaskDefinition" => self.describe_definition(&text("taskDefinition")),
            "RegisterTaskDefinition" => {
                let mut stored = self.register(body);
                stored.as_object_mut().unwrap().remove("tags");
                Answer::Ok(json!({"taskDefinition": stored}))
            }
            "DeregisterTaskDefinition" => {
                let mut state = self.state();
                let name = text("taskDefinition");
                let found = state.definitions.iter_mut().find(|d| d["taskDefinitionArn"] == name.as_str()).unwrap();
                found["status"] = "INACTIVE".into();
                Answer::Ok(json!({"taskDefinition": found}))
            }
            "ListTaskDefinitionFamilies" => {
                let state = self.state();
                let active = state.definitions.iter().filter(|d| d["status"] == "ACTIVE");
                let mut all: Vec<String> = active.map(|d| d["family"].as_str().unwrap().to_owned()).collect();
                all.dedup();
                page(body, "families", all)
            }
            "ListTaskDefinitions" => {
                let state = self.state();
                let of_family = |d: &&Value| d["status"] == "ACTIVE" && d["family"] == body["familyPrefix"];
                let found = state.definitions.iter().filter(of_family);
                page(
                    body,
                    "taskDefinitionArns",
                    found.map(|d| d["taskDefinitionArn"].as_str().unwrap().to_owned()).collect(),
                )
            }
            "GetTaskProtection" => {
                let state = self.state();
                let protected =
                    |task: &String| json!({"taskArn": task, "protectionEnabled": state.protected.contains(task)});
                Answer::Ok(json!({"protectedTasks": wanted("tasks", 100).iter().map(protected).collect::<Vec<_>>()}))
            }
            "UpdateService" => {
                let mut state = self.state();
                let Some(service) = state.services.iter_mut().find(|s| s["serviceArn"] == body["service"]) else {
                    return Answer::Error("ServiceNotFoundException", "Service not found.".to_owned());
                };
                service["taskDefinition"] = body["taskDefinition"].clone();
                service["deployments"] = json!([deployment(&text("taskDefinition"), "IN_PROGRESS")]);
                Answer::Ok(json!({"service": service}))
            }
            "CreateService" => {
                let mut state = self.state();
                let cluster = text("cluster");
                let mut made = service(cluster.rsplit('/').next().unwrap(), &text("serviceName"), "");
                for key in ["taskDefinition", "tags", "schedulingStrategy", "launchType", "placementConstraints"] {
                    made[key] = body[key].clone();
                }
                state.services.push(made.clone());
                Answer::Ok(json!({"service": made}))
            }
            "DeleteService" => {
                let mut state = self.state();
                let service = state.services.iter_mut().find(|s| s["serviceArn"] == body["service"]).unwrap();
                service["status"] = "DRAINING".into();
                Answer::Ok(json!({"service": service}))
            }
            "PutAttributes" | "DeleteAttributes" => {
                let mut state = self.state();
                let attribute = &body["attributes"][0];
                let node = state.nodes.iter_mut().find(|n| n["containerInstanceArn"] == attribute["targetId"]).unwrap();
                let all = node["attributes"].as_array_mut().unwrap();
                all.retain(|known| known["name"] != attribute["name"]);
                if operation == "PutAttributes" {
                    all.push(json!({"name": attribute["name"]}));
                }
                Answer::Ok(json!({"attributes": [attribute]}))
            }
            "ListServiceDeployments" => Answer::Ok(json!({"serviceDeployments": self.state().running_deployments})),
            "StopServiceDeployment" => Answer::Ok(json!({"serviceDeploymentArn": body["serviceDeploymentArn"]})),
            other => Answer::Error("InvalidAction", format!("{other} is not one of the operations of this ECS")),
        }
    }

    fn describe_definition(&self, name: &str) -> Answer {
        let state = self.state();
        let matches = |d: &&Value| d["taskDefinitionArn"] == name || (d["family"] == name && d["status"] == "ACTIVE");
        match state.definitions.iter().rev().find(matches) {
            Some(found) => {
                let mut definition = found.clone();
                let tags = definition.as_object_mut().unwrap().remove("tags").unwrap_or_else(|| json!([]));
                Answer::Ok(json!({"taskDefinition": definition, "tags": tags}))
            }
            None => Answer::Error("ClientException", "Unable to describe task definition.".to_owned()),
        }
    }

    fn list(&self, body: &Value, answer: &str, key: &str, of: impl Fn(&State) -> &Vec<Value>) -> Answer {
        let state = self.state();
        let cluster = body["cluster"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let all = of(&state).iter().filter_map(|item| item[key].as_str());
        page(body, answer, all.filter(|arn| arn.contains(&format!("/{cluster}/"))).map(str::to_owned).collect())
    }
}

/// A service of the owner's that nothing keeps from a deployment.
pub fn service(cluster: &str, name: &str, definition: &str) -> Value {
    let definition = arn(&format!("task-definition/{definition}"));
    json!({"serviceArn": arn(&format!("service/{cluster}/{name}")), "serviceName": name, "status": "ACTIVE",
        "clusterArn": arn(&format!("cluster/{cluster}")), "taskDefinition": definition, "desiredCount": 2, "runningCount": 2,
        "launchType": "FARGATE", "deployments": [deployment(&definition, "COMPLETED")], "createdAt": 1_700_000_000.0,
        "deploymentConfiguration": {"minimumHealthyPercent": 100, "maximumPercent": 200}})
}

fn deployment(definition: &str, state: &str) -> Value {
    json!({"id": format!("ecs-svc/{}", definition.len()), "status": "PRIMARY", "taskDefinition": definition, "rolloutState": state})
}

fn page(body: &Value, key: &str, all: Vec<String>) -> Answer {
    // ListServices answers ten unless asked for more.
    let size = body["maxResults"].as_u64().unwrap_or(10) as usize;
    let from: usize = body["nextToken"].as_str().map_or(0, |token| token.parse().unwrap());
    let items: Vec<_> = all.iter().skip(from).take(size).collect();
    let mut answer = json!({ (key): items });
    if from + size < all.len() {
        answer["nextToken"] = (from + size).to_string().into();
    }
    Answer::Ok(answer)
}
