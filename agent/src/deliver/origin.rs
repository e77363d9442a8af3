//! From where the agent knows who it is, and what it proves it with.

use super::http::Http;
use super::metadata::{self, MetadataError, OwnTask};
use super::presign::CredentialSource;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use tasuki_api::agent::AgentKind;
use tasuki_api::kubernetes::{LONGEST_TOKEN, TOKEN_PATH};
use url::Url;

use crate::workload::kubernetes::Here;

/// Name of the agent's container in its pod.
const CONTAINER: &str = "tasuki-agent";

/// Where the agent's identity comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// An ECS task.
    Task {
        /// ECS's metadata endpoint, the value of [`super::METADATA_URI`].
        metadata_uri: String,
        /// Where the task role's credentials are; `None` where the task has no role.
        credentials: Option<CredentialSource>,
        /// STS, where it is not AWS's own (`AWS_ENDPOINT_URL_STS`).
        sts_endpoint: Option<Url>,
    },
    /// A Kubernetes pod.
    Pod {
        /// Text of a [`tasuki_api::kubernetes::PodName`].
        name: String,
        /// The projected token's file. The kubelet renews it, so it is read at each enrolment.
        token: PathBuf,
    },
}

/// The agent cannot say who it is.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// ECS does not say.
    #[error("the agent's own task is not known")]
    Metadata(#[from] MetadataError),
    /// The token cannot be read.
    #[error("{path}: the pod's token cannot be read; is it projected into the agent's container?")]
    Token {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Origin {
    /// That of the pod of which the downward API tells.
    pub fn pod(here: &Here) -> Self {
        Self::Pod { name: here.pod.clone(), token: PathBuf::from(TOKEN_PATH) }
    }

    /// Who the agent is now: a container that was not started a moment ago may be now, and a token has
    /// been renewed.
    pub(super) async fn read(&self, http: &Http) -> Result<(OwnTask, Option<String>), OriginError> {
        match self {
            Self::Task { metadata_uri, .. } => Ok((metadata::read(http, metadata_uri).await?, None)),
            Self::Pod { name, token } => {
                let source = |source| OriginError::Token { path: token.clone(), source };
                let token = read_token(token).map_err(source)?;
                let container = CONTAINER.to_owned();
                let own = OwnTask { arn: name.clone(), container, containers: Vec::new(), address: None };
                Ok((own, Some(token)))
            }
        }
    }
}

/// What an agent in a pod speaks for. Only a node's agent is given the node's name.
pub fn kind(here: &Here) -> AgentKind {
    if here.node.is_some() { AgentKind::Node } else { AgentKind::Sidecar }
}

fn read_token(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST_TOKEN as u64).read_to_string(&mut text)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "the file is empty"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::http::Scheme;

    #[tokio::test]
    async fn a_renewed_token_is_used_and_a_missing_one_is_named() {
        let http = Http::new(Scheme::Local).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        let origin = Origin::Pod { name: "k8s/self/pod/a/u/n".to_owned(), token: token.clone() };
        let error = origin.read(&http).await.unwrap_err();
        assert!(error.to_string().starts_with(&token.display().to_string()), "{error}");
        for text in ["a.b.c\n", "d.e.f"] {
            std::fs::write(&token, text).unwrap();
            let (own, read) = origin.read(&http).await.unwrap();
            assert_eq!(
                (&*own.arn, own.containers.len(), read.as_deref()),
                ("k8s/self/pod/a/u/n", 0, Some(text.trim()))
            );
        }
        std::fs::write(&token, "\n").unwrap();
        assert!(origin.read(&http).await.is_err());
    }
}
