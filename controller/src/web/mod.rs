//! JSON API, metrics, page.
//!
//! *Guarantees*: nothing that is read shows a secret; it needs no token on loopback and where `--web-open` says
//! so, and probes and `/metrics` never do; everything else, and everything that changes something, needs the
//! token in `admin.token`; a foreign `Host` or `Origin` is refused, so that a
//! name that is rebound to this machine reads and changes nothing; pages run no script and all text
//! of others is escaped. *Assumptions*: who may reach the address is decided by who lets it listen;
//! it listens on loopback unless told otherwise.

mod api;
mod guard;
mod metrics;
mod page;
mod token;

pub use api::{ConfigView, DocumentView, FreezeAnswer, Refusal, RetryAnswer, StatusView, UninstallAnswer};
pub use metrics::Metrics;
pub use token::{AdminToken, TOKEN_FILE};

use crate::desired::Loaded;
use crate::engine::Engine;
use crate::store::Store;
use axum::Router;
use axum::routing::{get, post};
use std::net::SocketAddr;
use std::sync::Arc;
use tasuki_core::action::GatewaySpec;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What the web server shows and whom it asks.
pub struct Web {
    /// The engine.
    pub engine: Engine,
    /// Findings and the action log.
    pub store: Store,
    /// Desired state in force, with its problems.
    pub desired: watch::Receiver<Arc<Loaded>>,
    /// What colleagues count.
    pub metrics: Arc<Metrics>,
    /// What an order must carry.
    pub token: AdminToken,
    /// How agents find and trust the gateway, for `tasuki render`: public values.
    pub gateway: GatewaySpec,
    /// Names by which a proxy reaches this server, beside those of loopback.
    pub hosts: Vec<String>,
    /// Reading needs no token off loopback either: something in front asks who its users are.
    pub open: bool,
    /// Where it listens: on loopback, `/metrics` and the probes check the `Host` too.
    pub listen: SocketAddr,
}

/// The routes.
pub fn router(web: Arc<Web>) -> Router {
    let guarded = Router::new()
        .route("/", get(page::coverage))
        .route("/clusters/{arn}", get(page::cluster))
        .route("/explain", get(page::explain))
        .route("/findings", get(page::findings))
        .route("/findings/{id}", get(page::finding))
        .route("/rollout", get(page::rollout))
        .route("/configuration", get(page::configuration))
        .route("/style.css", get(page::style))
        .route("/api/v1/coverage", get(api::coverage))
        .route("/api/v1/findings", get(api::findings))
        .route("/api/v1/findings/{id}", get(api::finding))
        .route("/api/v1/explain", get(api::explain))
        .route("/api/v1/plan", get(api::plan))
        .route("/api/v1/actions", get(api::actions))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/config", get(api::config))
        .route("/api/v1/gateway", get(api::gateway))
        .route("/api/v1/sidecar", get(api::sidecar))
        .route("/api/v1/inventory", get(api::inventory))
        .route("/api/v1/freeze", post(api::freeze))
        .route("/api/v1/retry", post(api::retry))
        .route("/api/v1/uninstall", post(api::uninstall))
        .fallback(api::nothing_here)
        .layer(axum::middleware::from_fn_with_state(web.clone(), guard::check));
    // Kubelets and scrapers name the pod's address, which nobody knows beforehand.
    let open = Router::new()
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .route("/metrics", get(metrics::scrape))
        .layer(axum::middleware::from_fn_with_state(web.clone(), guard::check_on_loopback));
    guarded.merge(open).layer(axum::middleware::from_fn(guard::headers)).with_state(web)
}

/// Serves until `stop` is done, then lets open requests end.
pub async fn serve(
    listener: TcpListener,
    web: Arc<Web>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(web)).with_graceful_shutdown(stop).await
}

/// Answers probes while this controller does not lead: it is alive, and not ready, for the reason in `words`. Without the
/// address it only waits.
pub async fn wait(listen: SocketAddr, words: watch::Receiver<&'static str>) -> std::io::Result<()> {
    let waits = move || {
        let why = format!("{}\n", *words.borrow());
        async { (axum::http::StatusCode::SERVICE_UNAVAILABLE, why) }
    };
    let router = Router::new().route("/healthz", get(|| async { "waiting for the lease\n" })).fallback(waits);
    let listener = TcpListener::bind(listen).await?;
    axum::serve(listener, router.layer(axum::middleware::from_fn(guard::headers))).await
}

#[cfg(test)]
mod tests;
