//! The page: server-rendered, without script, for eyes, keyboards and screen readers.
//!
//! Every page is one function of (view, now) to text; the handlers below only fetch.

mod configuration;
mod coverage;
mod findings;
mod html;
mod layout;
mod rollout;

use super::Web;
use super::api::FindingsQuery;
use crate::engine::Request;
use axum::extract::{Path, Query, State};
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use layout::{Frame, Tab};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// How a page is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Look {
    /// The page stays as it is.
    still: Option<u8>,
}

impl Look {
    fn frame(&self, tab: Tab, title: &str) -> Frame {
        Frame { tab, title: title.to_owned(), still: self.still.is_some(), now: Timestamp::now() }
    }
}

pub async fn style() -> Response {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("style.css")).into_response()
}

pub async fn coverage(State(web): State<Arc<Web>>, Query(look): Query<Look>) -> Html<String> {
    let frame = look.frame(Tab::Coverage, "Coverage");
    let view = web.view();
    Html(frame.page(view.at, &coverage::overview(&view, frame.now)))
}

pub async fn cluster(State(web): State<Arc<Web>>, Path(arn): Path<String>, Query(look): Query<Look>) -> Response {
    let frame = look.frame(Tab::Coverage, &format!("Cluster {}", crate::text::short_arn(&arn)));
    let view = web.view();
    match coverage::cluster(&view, &arn, frame.now) {
        Some(body) => Html(frame.page(view.at, &body)).into_response(),
        None => absent(&frame, "There is no such cluster."),
    }
}

#[derive(Deserialize)]
pub struct Task {
    task: String,
    still: Option<u8>,
}

pub async fn explain(State(web): State<Arc<Web>>, Query(query): Query<Task>) -> Response {
    let frame = Look { still: query.still }.frame(Tab::Coverage, "Explain");
    let at = web.view().at;
    let answer = web.ask(|answer| Request::Explain(query.task, answer), Some(Duration::from_secs(20))).await;
    match answer {
        Some(Some(explanation)) => {
            Html(frame.page(at, &coverage::explanation(&explanation, frame.now))).into_response()
        }
        Some(None) => absent(&frame, "There is no such task any more."),
        None => problem(
            &frame,
            StatusCode::SERVICE_UNAVAILABLE,
            "The engine does not answer; look at the controller's log.",
        ),
    }
}

pub async fn findings(
    State(web): State<Arc<Web>>,
    Query(query): Query<FindingsQuery>,
    Query(look): Query<Look>,
) -> Response {
    let frame = look.frame(Tab::Findings, "Findings");
    let filter = match query.filter(&web.view(), frame.now) {
        Ok(filter) => filter,
        Err(error) => return problem(&frame, StatusCode::BAD_REQUEST, &error),
    };
    match web.store.findings(&filter).await {
        Ok(found) => Html(frame.page(Some(frame.now), &findings::list(&found, &query, frame.now))).into_response(),
        Err(error) => problem(&frame, StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

pub async fn finding(State(web): State<Arc<Web>>, Path(id): Path<String>) -> Response {
    let frame = Look { still: Some(1) }.frame(Tab::Findings, "Finding");
    let Ok(parsed) = id.parse() else { return absent(&frame, "There is no such finding.") };
    match web.store.finding(parsed).await {
        Ok(Some(found)) => Html(frame.page(Some(frame.now), &findings::one(&found, frame.now))).into_response(),
        Ok(None) => absent(&frame, "There is no such finding."),
        Err(error) => problem(&frame, StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

pub async fn rollout(State(web): State<Arc<Web>>, Query(look): Query<Look>) -> Html<String> {
    let frame = look.frame(Tab::Rollout, "Rollout");
    let (view, desired) = (web.view(), web.desired.borrow().clone());
    Html(frame.page(view.at, &rollout::body(&view, &desired, frame.now)))
}

pub async fn configuration(State(web): State<Arc<Web>>, Query(look): Query<Look>) -> Html<String> {
    let frame = look.frame(Tab::Configuration, "Configuration");
    Html(frame.page(Some(frame.now), &configuration::body(&web.config(), &web.view())))
}

fn absent(frame: &Frame, text: &str) -> Response {
    problem(frame, StatusCode::NOT_FOUND, text)
}

fn problem(frame: &Frame, status: StatusCode, text: &str) -> Response {
    (status, Html(frame.page(Some(frame.now), &format!("<p>{}</p>", html::text(text))))).into_response()
}
