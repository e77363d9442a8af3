//! Asking ECS which tasks and containers are here: the agent introspection API on a container
//! instance (`/v1/metadata`, `/v1/tasks`), or task metadata v4 in a sidecar.
//! Shapes: amazon-ecs-agent ecs-agent/introspection/v1/response.go; ECS developer guide, "task
//! metadata endpoint version 4".

use super::{ContainerPath, Description, Source, TaskNames};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of an answer that are read: 100 tasks of 10 containers are about 1 MiB.
const MAX_ANSWER: usize = 8 << 20;
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What ECS said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Containers by name.
    pub containers: Vec<Description>,
    /// In Kubernetes: pods by uid of which a container's id is not known.
    pub pods: Vec<(String, Arc<TaskNames>)>,
    /// ARNs of the running tasks.
    pub tasks: Vec<String>,
    /// In a sidecar: the only container beside the agent's own.
    pub only: Option<Arc<ContainerPath>>,
}

/// Why ECS did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The address is none.
    #[error("{url} is no address to ask ECS at; check TASUKI_INTROSPECTION or ECS_CONTAINER_METADATA_URI_V4")]
    Address {
        /// What was to be asked.
        url: String,
    },
    /// No connection, or a broken one.
    #[error("{url}: {reason}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The answer was not what ECS gives.
    #[error("{url}: answer is not what ECS gives")]
    Shape {
        /// What was asked.
        url: String,
        /// Where it differs.
        #[source]
        source: serde_json::Error,
    },
}

/// Asks once.
///
/// # Errors
/// When there is no answer, or not one that ECS gives.
pub async fn ask(source: &Source) -> Result<Answer, AskError> {
    match source {
        Source::Recording | Source::Kubernetes(_) => Ok(Answer::default()),
        Source::Introspection(base) => {
            let base = base.trim_end_matches('/');
            let metadata: InstanceMetadata = get(&format!("{base}/v1/metadata")).await?;
            let tasks: InstanceTasks = get(&format!("{base}/v1/tasks")).await?;
            Ok(on_node(&metadata, tasks))
        }
        Source::Metadata(base) => {
            let base = base.trim_end_matches('/');
            let own: TaskContainer = get(base).await?;
            let task: TaskMetadata = get(&format!("{base}/task")).await?;
            Ok(in_task(&own.docker_id, task))
        }
    }
}

async fn get<T: DeserializeOwned>(url: &str) -> Result<T, AskError> {
    let address = || AskError::Address { url: url.to_owned() };
    let unreachable = |reason: String| AskError::Unreachable { url: url.to_owned(), reason };
    let uri: http::Uri = url.parse().map_err(|_| address())?;
    let client: Client<_, Empty<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = async {
        let response = client.get(uri).await.map_err(|error| unreachable(error.to_string()))?;
        if !response.status().is_success() {
            return Err(unreachable(format!("status {}", response.status())));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok(body.map_err(|error| unreachable(error.to_string()))?.to_bytes())
    };
    let bytes = tokio::time::timeout(PATIENCE, answer).await.map_err(|_| unreachable("no answer in 2 s".into()))??;
    serde_json::from_slice(&bytes).map_err(|source| AskError::Shape { url: url.to_owned(), source })
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InstanceMetadata {
    cluster: String,
    container_instance_arn: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InstanceTasks {
    tasks: Vec<InstanceTask>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InstanceTask {
    arn: String,
    known_status: String,
    family: String,
    version: String,
    containers: Vec<InstanceContainer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InstanceContainer {
    docker_id: String,
    name: String,
    image: Option<String>,
    #[serde(rename = "ImageID")]
    image_id: Option<String>,
    started_at: Option<jiff::Timestamp>,
}

fn on_node(metadata: &InstanceMetadata, answer: InstanceTasks) -> Answer {
    let mut out = Answer::default();
    for task in answer.tasks {
        if task.known_status == "RUNNING" {
            out.tasks.push(task.arn.clone());
        }
        let names = Arc::new(TaskNames {
            arn: task.arn,
            cluster: some(&metadata.cluster),
            service: None,
            definition: some(&task.family).map(|family| format!("{family}:{}", task.version)),
            launch_type: None,
            node: metadata.container_instance_arn.clone(),
        });
        out.containers.extend(task.containers.into_iter().filter(|one| !one.docker_id.is_empty()).map(|one| {
            Description {
                id: one.docker_id,
                name: one.name,
                image: one.image,
                image_digest: one.image_id.filter(|id| id.starts_with("sha256:")),
                started_at: nanoseconds(one.started_at),
                task: Some(names.clone()),
            }
        }));
    }
    out
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct TaskMetadata {
    cluster: String,
    service_name: Option<String>,
    #[serde(rename = "TaskARN")]
    task_arn: String,
    family: String,
    revision: String,
    launch_type: Option<String>,
    containers: Vec<TaskContainer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct TaskContainer {
    docker_id: String,
    name: String,
    image: Option<String>,
    #[serde(rename = "ImageID")]
    image_id: Option<String>,
    started_at: Option<jiff::Timestamp>,
    r#type: Option<String>,
}

fn in_task(own: &str, task: TaskMetadata) -> Answer {
    let names = Arc::new(TaskNames {
        arn: task.task_arn.clone(),
        cluster: some(&task.cluster),
        service: task.service_name,
        definition: some(&task.family).map(|family| format!("{family}:{}", task.revision)),
        launch_type: task.launch_type,
        node: None,
    });
    let normal = |one: &TaskContainer| one.r#type.as_deref().is_none_or(|kind| kind == "NORMAL");
    let task_id = task.task_arn.rsplit('/').next().map(str::to_owned);
    let containers: Vec<TaskContainer> = task.containers.into_iter().filter(|one| !one.docker_id.is_empty()).collect();
    let mut others = containers.iter().filter(|one| one.docker_id != own && normal(one));
    let only = match (others.next(), others.next()) {
        (Some(one), None) => Some(Arc::new(ContainerPath { id: one.docker_id.clone(), task_id, pod_uid: None })),
        _ => None,
    };
    let describe = |one: TaskContainer| Description {
        id: one.docker_id,
        name: one.name,
        image: one.image,
        image_digest: one.image_id.filter(|id| id.starts_with("sha256:")),
        started_at: nanoseconds(one.started_at),
        task: Some(names.clone()),
    };
    Answer {
        containers: containers.into_iter().map(describe).collect(),
        tasks: vec![task.task_arn],
        only,
        ..Answer::default()
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn nanoseconds(time: Option<jiff::Timestamp>) -> Option<i64> {
    time.and_then(|time| i64::try_from(time.as_nanosecond()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Json;
    use axum::routing::get as route;
    use serde_json::json;

    async fn serve(router: axum::Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn a_node_s_tasks_are_named_by_the_introspection_api() {
        let tasks = json!({ "Tasks": [
            { "Arn": "arn:task/1", "KnownStatus": "RUNNING", "Family": "shop", "Version": "17", "Containers": [
                { "DockerId": "c1", "Name": "web", "Image": "shop:1", "ImageID": "sha256:ab", "StartedAt": "2026-11-24T10:00:00Z" },
                { "DockerId": "", "Name": "not yet" }]},
            { "Arn": "arn:task/2", "KnownStatus": "STOPPED", "Family": "shop", "Version": "16", "Containers": [] }]});
        let metadata = json!({ "Cluster": "prod", "ContainerInstanceArn": "arn:node", "Version": "x" });
        let router = axum::Router::new()
            .route("/v1/tasks", route(move || async move { Json(tasks) }))
            .route("/v1/metadata", route(move || async move { Json(metadata) }));
        let answer = ask(&Source::Introspection(serve(router).await)).await.unwrap();
        assert_eq!(answer.tasks, ["arn:task/1"]);
        assert_eq!(answer.containers.len(), 1);
        let container = &answer.containers[0];
        assert_eq!((container.name.as_str(), container.image_digest.as_deref()), ("web", Some("sha256:ab")));
        let task = container.task.as_ref().unwrap();
        assert_eq!((task.definition.as_deref(), task.node.as_deref()), (Some("shop:17"), Some("arn:node")));
    }

    #[tokio::test]
    async fn a_sidecar_s_task_is_named_by_metadata_v4() {
        let task = json!({ "Cluster": "prod", "TaskARN": "arn:aws:ecs:eu-west-1:1:task/prod/abc", "Family": "shop",
            "Revision": "3", "LaunchType": "FARGATE", "ServiceName": "shop", "Containers": [
            { "DockerId": "app", "Name": "app", "Type": "NORMAL" }, { "DockerId": "own", "Name": "tasuki", "Type": "NORMAL" },
            { "DockerId": "pause", "Name": "~internal~ecs~pause", "Type": "CNI_PAUSE" }]});
        let router = axum::Router::new()
            .route("/v4/x", route(|| async { Json(json!({ "DockerId": "own", "Name": "tasuki" })) }))
            .route("/v4/x/task", route(move || async move { Json(task) }));
        let answer = ask(&Source::Metadata(format!("{}/v4/x", serve(router).await))).await.unwrap();
        assert_eq!(answer.only.unwrap().id, "app");
        assert_eq!(answer.tasks, ["arn:aws:ecs:eu-west-1:1:task/prod/abc"]);
        assert_eq!(answer.containers[0].task.as_ref().unwrap().launch_type.as_deref(), Some("FARGATE"));
    }

    #[tokio::test]
    async fn no_ecs_agent_is_an_error_that_names_the_address() {
        let error = ask(&Source::Introspection("http://127.0.0.1:1".into())).await.unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:1/v1/metadata"), "{error}");
    }
}
