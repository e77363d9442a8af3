//! What ECS's metadata endpoint (version 4) says of the agent's own task.
//!
//! <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-metadata-endpoint-v4.html>

use super::http::{Http, HttpError};
use bytes::Bytes;
use http::Request;
use serde::Deserialize;
use std::net::IpAddr;
use std::time::Duration;
use tasuki_api::agent::ContainerEvidence;

/// Environment variable that ECS sets in every container.
pub const METADATA_URI: &str = "ECS_CONTAINER_METADATA_URI_V4";

/// The agent cannot find out which task it runs in.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No answer.
    #[error("ECS's metadata endpoint gives no answer")]
    Http(#[from] HttpError),
    /// Not an answer of version 4.
    #[error("ECS's metadata endpoint {uri} gave something that is not version 4 (status {status})")]
    Unreadable {
        /// What was asked.
        uri: String,
        /// Status of the answer.
        status: u16,
    },
}

/// The agent's own task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnTask {
    /// ARN.
    pub arn: String,
    /// Name of the agent's container.
    pub container: String,
    /// Every container that was started.
    pub containers: Vec<ContainerEvidence>,
    /// The task's address (awsvpc).
    pub address: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaskAnswer {
    #[serde(rename = "TaskARN")]
    task_arn: String,
    #[serde(default)]
    containers: Vec<ContainerAnswer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerAnswer {
    #[serde(default)]
    docker_id: String,
    name: String,
    #[serde(default, rename = "ContainerARN")]
    container_arn: String,
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    networks: Vec<NetworkAnswer>,
}

#[derive(Deserialize)]
struct NetworkAnswer {
    #[serde(default, rename = "NetworkMode")]
    mode: String,
    #[serde(default, rename = "IPv4Addresses")]
    v4: Vec<IpAddr>,
    #[serde(default, rename = "IPv6Addresses")]
    v6: Vec<IpAddr>,
}

/// Reads the agent's own task; `uri` is the value of [`METADATA_URI`].
pub async fn read(http: &Http, uri: &str) -> Result<OwnTask, MetadataError> {
    let own: ContainerAnswer = get(http, uri).await?;
    let task: TaskAnswer = get(http, &format!("{uri}/task")).await?;
    // The pause container and Service Connect's proxy are not the definition's.
    let normal = |c: &&ContainerAnswer| c.r#type.as_deref().is_none_or(|kind| kind == "NORMAL");
    let started =
        task.containers.iter().filter(normal).filter(|c| !c.docker_id.is_empty() && !c.container_arn.is_empty());
    let containers = started
        .map(|c| ContainerEvidence {
            name: c.name.clone(),
            arn: c.container_arn.clone(),
            runtime_id: c.docker_id.clone(),
        })
        .collect();
    let network = own.networks.iter().find(|network| network.mode == "awsvpc");
    let address = network.and_then(|network| network.v4.first().or(network.v6.first()).copied());
    Ok(OwnTask { arn: task.task_arn, container: own.name, containers, address })
}

async fn get<T: serde::de::DeserializeOwned>(http: &Http, uri: &str) -> Result<T, MetadataError> {
    let unreadable = |status: u16| MetadataError::Unreadable { uri: uri.chars().take(200).collect(), status };
    let request = Request::get(uri).body(Bytes::new()).map_err(|_| unreadable(0))?;
    let answer = http.send(request, 1 << 20, Duration::from_secs(5)).await?;
    serde_json::from_slice(&answer.body).map_err(|_| unreadable(answer.status.as_u16()))
}
