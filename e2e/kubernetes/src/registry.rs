//! A small image registry (OCI distribution 1.1, pulls only) that nodes of one plane reach.

use crate::plane::ControlPlane;
use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tasuki_e2e::archive::{Archive, MANIFEST};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What it does with pulls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Time before each answer.
    pub delay: Duration,
    /// Whether it refuses, as a registry whose credentials are wrong.
    pub refuses: bool,
}

#[derive(Default)]
struct Held {
    /// Manifests by `repository:tag` and `repository@digest`, without the registry's host.
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    manner: Manner,
    pulls: u64,
}

/// A running registry; dropping it ends it.
pub struct Registry {
    /// `host:port`, for [`crate::node::Settings::registry`]. It serves whatever host an image's name has.
    pub address: String,
    held: Arc<Mutex<Held>>,
    server: JoinHandle<()>,
}

impl Registry {
    /// Starts an empty one at the plane's address.
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        let listener = TcpListener::bind((plane.host(), 0)).await.context("cannot start a registry")?;
        let address = listener.local_addr()?.to_string();
        let held = Arc::new(Mutex::new(Held::default()));
        let routes = Router::new()
            .route("/v2/", get(|| async { StatusCode::OK }))
            .route("/v2/{*path}", get(serve))
            .with_state(held.clone());
        let server = tokio::spawn(async move {
            // It ends with its task only.
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { address, held, server })
    }

    /// Serves an image under its tag and its digest.
    pub fn push(&self, image: &Archive) {
        let mut held = lock(&self.held);
        for name in [image.reference.clone(), image.by_digest()] {
            let name = without_host(&name).to_owned();
            held.manifests.insert(name, (image.digest.clone(), image.manifest.clone()));
        }
        held.blobs.extend(image.blobs.iter().cloned());
    }

    /// Changes what it does from now on.
    pub fn set_manner(&self, manner: Manner) {
        lock(&self.held).manner = manner;
    }

    /// How many manifests it was asked for.
    pub fn pulls(&self) -> u64 {
        lock(&self.held).pulls
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(State(held): State<Arc<Mutex<Held>>>, Path(path): Path<String>) -> Response {
    let manner = lock(&held).manner;
    tokio::time::sleep(manner.delay).await;
    if manner.refuses {
        return StatusCode::FORBIDDEN.into_response();
    }
    let mut held = lock(&held);
    if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
        held.pulls += 1;
        let separator = if reference.contains(':') { '@' } else { ':' };
        if let Some((digest, manifest)) = held.manifests.get(&format!("{repository}{separator}{reference}")) {
            let headers = [("docker-content-digest", digest.as_str()), (header::CONTENT_TYPE.as_str(), MANIFEST)];
            return (headers, manifest.clone()).into_response();
        }
    } else if let Some(blob) = path.rsplit_once("/blobs/").and_then(|(_, digest)| held.blobs.get(digest)) {
        return ([(header::CONTENT_TYPE, "application/octet-stream")], blob.clone()).into_response();
    }
    StatusCode::NOT_FOUND.into_response()
}

/// A name's path: a registry's host has a dot or a port, or is localhost.
fn without_host(name: &str) -> &str {
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        _ => name,
    }
}

fn lock(held: &Mutex<Held>) -> std::sync::MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}
