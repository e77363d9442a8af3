//! `/api/v1`: what the command line and others ask.

use super::Web;
use crate::desired::Problem;
use crate::engine::{Explanation, PlanItem, PodSidecar, Request, ScopeView, View};
use crate::store::{FindingFilter, StoredFinding};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::finding::Severity;
use tokio::sync::oneshot;
use wildmatch::WildMatch;

/// How long the engine may think about an answer; `uninstall` may take as long as ECS does.
const THINK: Duration = Duration::from_secs(20);
/// Findings and actions of one answer.
const MAX_ROWS: u32 = 1000;

/// Why a request is refused.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong and what to do.
    pub error: String,
}

/// Answer of `/api/v1/status`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// Version of the controller.
    pub version: String,
    /// When the view was made.
    pub at: Option<Timestamp>,
    /// Hash or commit of the desired state in force.
    pub desired: String,
    /// Every change is stopped.
    pub frozen: bool,
    /// Scopes and how fresh they are.
    pub scopes: Vec<ScopeView>,
}

/// Answer of `/api/v1/config`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigView {
    /// Hash of what is in force.
    pub hash: String,
    /// Documents in force.
    pub documents: Vec<DocumentView>,
    /// What was refused, and why.
    pub problems: Vec<Problem>,
}

/// One document in force.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentView {
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Its newest version was refused: this is the last good one.
    pub held: bool,
}

/// Answer of `/api/v1/freeze`.
#[derive(Debug, Serialize, Deserialize)]
pub struct FreezeAnswer {
    /// What holds now.
    pub frozen: bool,
}

/// Answer of `/api/v1/retry`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RetryAnswer {
    /// How many failures were forgotten.
    pub forgotten: usize,
}

/// Answer of `/api/v1/uninstall`.
#[derive(Debug, Serialize, Deserialize)]
pub struct UninstallAnswer {
    /// What is left, and why.
    pub left: Vec<String>,
}

/// An answer, or why not.
pub type Answer<T> = Result<Json<T>, Response>;

/// A refusal as JSON.
pub fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(Refusal { error: error.into() })).into_response()
}

pub async fn nothing_here() -> Response {
    refuse(StatusCode::NOT_FOUND, "there is nothing at this address")
}

pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready once the first full sweep was judged.
pub async fn readyz(State(web): State<Arc<Web>>) -> (StatusCode, &'static str) {
    match web.engine.view.borrow().at {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the first full sweep is not done\n"),
    }
}

impl Web {
    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        self.engine.view.borrow().clone()
    }

    /// Asks the engine. `None` when it does not answer in time.
    pub async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
        within: Option<Duration>,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let asked = async {
            self.engine.requests.send(request(sender)).await.ok()?;
            receiver.await.ok()
        };
        match within {
            Some(within) => tokio::time::timeout(within, asked).await.ok()?,
            None => asked.await,
        }
    }

    async fn demand<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
        within: Option<Duration>,
    ) -> Result<T, Response> {
        let silent =
            || refuse(StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer; look at the controller's log");
        self.ask(request, within).await.ok_or_else(silent)
    }

    /// What is in force, for people and programs.
    pub fn config(&self) -> ConfigView {
        let loaded = self.desired.borrow().clone();
        let document = |id: &(String, String)| DocumentView {
            kind: id.0.clone(),
            name: id.1.clone(),
            held: loaded.held.contains(id),
        };
        ConfigView {
            hash: loaded.hash.clone(),
            documents: loaded.documents.keys().map(document).collect(),
            problems: loaded.problems.clone(),
        }
    }
}

#[derive(Deserialize)]
pub struct CoverageQuery {
    cluster: Option<String>,
    reason: Option<String>,
}

pub async fn coverage(State(web): State<Arc<Web>>, Query(query): Query<CoverageQuery>) -> Answer<View> {
    let mut view = View::clone(&web.view());
    if query.cluster.is_none() && query.reason.is_none() {
        return Ok(Json(view));
    }
    if let Some(name) = &query.reason {
        let known = tasuki_api::coverage::Reason::ALL.iter().find(|reason| reason.name() == name);
        let reason = known.ok_or_else(|| {
            refuse(
                StatusCode::BAD_REQUEST,
                format!("there is no reason `{name}`; docs/reference/coverage-reasons.md lists them"),
            )
        })?;
        view.tasks.retain(|task| task.reason == Some(*reason));
        view.clusters.retain(|cluster| {
            view.tasks.iter().any(|task| task.cluster == cluster.name && task.scope == cluster.scope)
        });
    }
    if let Some(pattern) = &query.cluster {
        let pattern = WildMatch::new(pattern);
        view.clusters.retain(|cluster| pattern.matches(&cluster.name) || pattern.matches(&cluster.arn));
        view.tasks.retain(|task| pattern.matches(&task.cluster));
    }
    view.counts = crate::cli::counts(&view.tasks);
    view.live_ratio = view.counts.live_ratio();
    // The history is kept over everything, not for a part.
    view.minutes_ratio = None;
    Ok(Json(view))
}

/// Which findings are wanted, as it is written in an address.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct FindingsQuery {
    pub severity: Option<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub cluster: Option<String>,
    pub since: Option<String>,
    pub suppressed: Option<bool>,
    pub limit: Option<u32>,
}

impl FindingsQuery {
    /// The filter, or what is wrong with it. Empty values mean nothing, as a form sends them.
    pub fn filter(&self, view: &View, now: Timestamp) -> Result<FindingFilter, String> {
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let severity = given(&self.severity).map(|text| {
            let all = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];
            let found = all.into_iter().find(|severity| format!("{severity:?}").eq_ignore_ascii_case(&text));
            found.ok_or_else(|| format!("`{text}` is not a severity: write Low, Medium, High or Critical"))
        });
        let since = given(&self.since).map(|text| since(&text, now));
        // Findings carry the ARN; people say the name.
        let cluster = given(&self.cluster).map(|name| {
            let known = view.clusters.iter().find(|cluster| cluster.name == name);
            known.map_or(name, |cluster| cluster.arn.clone())
        });
        Ok(FindingFilter {
            since: since.transpose()?,
            minimum_severity: severity.transpose()?,
            kind: given(&self.kind),
            cluster,
            suppressed: self.suppressed.unwrap_or(false),
            limit: self.limit.unwrap_or(100).clamp(1, MAX_ROWS),
        })
    }
}

fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let bad = || format!("`{text}` is not a time: write 24h, 7d, or a time such as 2026-11-24T00:00:00Z");
    if let Ok(duration) = text.parse::<tasuki_api::desired::Duration>() {
        let seconds = i64::try_from(duration.as_secs()).map_err(|_| bad())?;
        return Timestamp::from_second(now.as_second().saturating_sub(seconds)).map_err(|_| bad());
    }
    text.parse().map_err(|_| bad())
}

fn store_failed(error: crate::store::StoreError) -> Response {
    tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
    refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

pub async fn findings(State(web): State<Arc<Web>>, Query(query): Query<FindingsQuery>) -> Answer<Vec<StoredFinding>> {
    let filter = query.filter(&web.view(), Timestamp::now()).map_err(|error| refuse(StatusCode::BAD_REQUEST, error))?;
    web.store.findings(&filter).await.map(Json).map_err(store_failed)
}

pub async fn finding(State(web): State<Arc<Web>>, Path(id): Path<String>) -> Answer<StoredFinding> {
    let absent = || {
        refuse(
            StatusCode::NOT_FOUND,
            format!("there is no finding `{}`; `tasuki findings -o wide` lists them", crate::text::escape_to(&id, 40)),
        )
    };
    let parsed = id.parse().map_err(|_| absent())?;
    web.store.finding(parsed).await.map_err(store_failed)?.map(Json).ok_or_else(absent)
}

#[derive(Deserialize)]
pub struct ExplainQuery {
    /// ARN or a unique part of one.
    pub task: String,
}

pub async fn explain(State(web): State<Arc<Web>>, Query(query): Query<ExplainQuery>) -> Answer<Explanation> {
    let found = web.demand(|answer| Request::Explain(query.task.clone(), answer), Some(THINK)).await?;
    let absent = || {
        let task = crate::text::escape_to(&query.task, 80);
        refuse(
            StatusCode::NOT_FOUND,
            format!("no task is called `{task}`, or several are; `tasuki coverage -o json` lists them"),
        )
    };
    found.map(Json).ok_or_else(absent)
}

#[derive(Deserialize)]
pub struct PlanQuery {
    cluster: Option<String>,
}

pub async fn plan(State(web): State<Arc<Web>>, Query(query): Query<PlanQuery>) -> Answer<Vec<PlanItem>> {
    let mut items = web.demand(Request::Plan, Some(THINK)).await?;
    if let Some(pattern) = &query.cluster {
        let pattern = WildMatch::new(pattern);
        items.retain(|item| pattern.matches(&item.cluster));
    }
    Ok(Json(items))
}

#[derive(Deserialize)]
pub struct ActionsQuery {
    limit: Option<u32>,
}

pub async fn actions(
    State(web): State<Arc<Web>>,
    Query(query): Query<ActionsQuery>,
) -> Answer<Vec<crate::store::ActionRecord>> {
    let limit = query.limit.unwrap_or(100).clamp(1, MAX_ROWS);
    web.store.actions(limit).await.map(Json).map_err(store_failed)
}

pub async fn status(State(web): State<Arc<Web>>) -> Json<StatusView> {
    let view = web.view();
    Json(StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at: view.at,
        desired: view.desired.clone(),
        frozen: view.frozen,
        scopes: view.scopes.clone(),
    })
}

pub async fn config(State(web): State<Arc<Web>>) -> Json<ConfigView> {
    Json(web.config())
}

pub async fn gateway(State(web): State<Arc<Web>>) -> Json<tasuki_core::action::GatewaySpec> {
    Json(web.gateway.clone())
}

#[derive(Deserialize)]
pub struct SidecarQuery {
    monitor: Option<String>,
}

pub async fn sidecar(State(web): State<Arc<Web>>, Query(query): Query<SidecarQuery>) -> Answer<PodSidecar> {
    let found = web.demand(|answer| Request::Sidecar(query.monitor.clone(), answer), Some(THINK)).await?;
    found.map(Json).map_err(|why| refuse(StatusCode::NOT_FOUND, why))
}

/// How long AWS may take over an inventory: a few calls a cluster, at the lowest priority.
const COUNT: Duration = Duration::from_secs(300);

pub async fn inventory(State(web): State<Arc<Web>>) -> Answer<Vec<crate::act::Owned>> {
    let answer = web.demand(Request::Inventory, Some(COUNT)).await?;
    answer.map(Json).map_err(|error| refuse(StatusCode::BAD_GATEWAY, format!("AWS could not be asked: {error}")))
}

#[derive(Deserialize)]
pub struct FreezeOrder {
    frozen: bool,
}

pub async fn freeze(State(web): State<Arc<Web>>, Json(order): Json<FreezeOrder>) -> Answer<FreezeAnswer> {
    tracing::warn!(frozen = order.frozen, "freeze was ordered");
    let done = web.demand(|done| Request::Freeze(order.frozen, done), Some(THINK)).await?;
    done.map_err(|error| refuse(StatusCode::SERVICE_UNAVAILABLE, error))?;
    Ok(Json(FreezeAnswer { frozen: order.frozen }))
}

#[derive(Deserialize)]
pub struct RetryOrder {
    cluster: String,
}

pub async fn retry(State(web): State<Arc<Web>>, Json(order): Json<RetryOrder>) -> Answer<RetryAnswer> {
    let forgotten = web.demand(|answer| Request::Retry(order.cluster.clone(), answer), Some(THINK)).await?;
    Ok(Json(RetryAnswer { forgotten }))
}

pub async fn uninstall(State(web): State<Arc<Web>>) -> Answer<UninstallAnswer> {
    tracing::warn!("uninstall was ordered");
    let left = web.demand(Request::Uninstall, None).await?;
    Ok(Json(UninstallAnswer { left }))
}
