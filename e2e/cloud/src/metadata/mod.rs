//! What a container or a node can ask about itself: task metadata v4, agent introspection, credentials.
//!
//! [`documents`] are pure functions from state to JSON. The routers here serve them on listeners of their own; making
//! 169.254.170.2 reachable from containers is the runtime's work.

pub mod documents;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::iso_seconds;
use crate::cloud::Cloud;
use crate::effect::Place;
use crate::world::World;

/// Metadata v4 and credentials, as on 169.254.170.2.
pub fn router(cloud: Cloud) -> Router {
    Router::new()
        .route("/v4/{token}", get(container))
        .route("/v4/{token}/task", get(task))
        .route("/v4/{token}/taskWithTags", get(task_with_tags))
        .route("/v4/{token}/stats", get(stats))
        .route("/v4/{token}/task/stats", get(task_stats))
        .route("/v2/credentials/{id}", get(credentials))
        .with_state(cloud)
}

/// Introspection, as the ECS agent of one container instance answers on port 51678.
pub fn introspection_router(cloud: Cloud, instance_arn: String) -> Router {
    Router::new()
        .route("/v1/metadata", get(instance))
        .route("/v1/tasks", get(instance_tasks))
        .with_state((cloud, instance_arn))
}

fn not_found(what: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({"error": format!("{what} not found")}))).into_response()
}

/// Answers with what `show` makes of the task and container behind a token.
fn by_token(cloud: &Cloud, token: &str, show: impl Fn(&World, &documents::Found<'_>) -> Value) -> Response {
    let world = cloud.world();
    match documents::find(&world, token) {
        Some(found) => Json(show(&world, &found)).into_response(),
        None => not_found("V4 container metadata"),
    }
}

async fn container(State(cloud): State<Cloud>, Path(token): Path<String>) -> Response {
    by_token(&cloud, &token, |_, found| documents::container(found.task, found.container))
}

async fn task(State(cloud): State<Cloud>, Path(token): Path<String>) -> Response {
    by_token(&cloud, &token, |_, found| documents::task(found.task, false))
}

async fn task_with_tags(State(cloud): State<Cloud>, Path(token): Path<String>) -> Response {
    by_token(&cloud, &token, |_, found| documents::task(found.task, true))
}

async fn stats(State(cloud): State<Cloud>, Path(token): Path<String>) -> Response {
    by_token(&cloud, &token, |world, found| documents::stats(world, found.task, found.container))
}

async fn task_stats(State(cloud): State<Cloud>, Path(token): Path<String>) -> Response {
    by_token(&cloud, &token, |world, found| {
        let id = |c: &crate::ecs::Container| c.runtime_id.clone().unwrap_or_default();
        found.task.containers.iter().map(|c| (id(c), documents::stats(world, found.task, c))).collect()
    })
}

async fn credentials(State(cloud): State<Cloud>, Path(id): Path<String>) -> Response {
    let issued = {
        let world = &mut *cloud.world();
        let now = world.clock.now();
        world.identity.task_credentials(&id, now, &mut world.rng)
    };
    match issued {
        Some((keys, role)) => Json(json!({
            "RoleArn": role,
            "AccessKeyId": keys.access_key_id,
            "SecretAccessKey": keys.secret_access_key,
            "Token": keys.session_token,
            "Expiration": iso_seconds(keys.expiration),
        }))
        .into_response(),
        None => {
            let body = json!({"code": "InvalidIdInRequest", "message": "CredentialsV2Request: Credentials not found", "HTTPErrorCode": 400});
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
    }
}

type Node = (Cloud, String);

fn place_of(arn: &str) -> Option<Place> {
    let mut parts = arn.split(':').skip(3);
    Some(Place { region: parts.next()?.to_owned(), account: parts.next()?.to_owned() })
}

async fn instance(State((cloud, arn)): State<Node>) -> Response {
    let world = cloud.world();
    let found = place_of(&arn).and_then(|place| world.places.get(&place)?.ecs.instances.get(&arn));
    match found {
        Some(instance) => Json(documents::introspection(instance)).into_response(),
        None => not_found("container instance"),
    }
}

#[derive(Debug, Deserialize)]
struct TaskQuery {
    taskarn: Option<String>,
    dockerid: Option<String>,
}

async fn instance_tasks(State((cloud, arn)): State<Node>, Query(query): Query<TaskQuery>) -> Response {
    let world = cloud.world();
    let Some(region) = place_of(&arn).and_then(|place| world.places.get(&place)) else {
        return not_found("container instance");
    };
    let here = region.ecs.tasks.values().filter(|t| t.instance_arn.as_ref() == Some(&arn) && !t.is_stopped());
    let fits = |t: &&crate::ecs::Task| {
        query.taskarn.as_ref().is_none_or(|a| *a == t.arn)
            && query.dockerid.as_ref().is_none_or(|id| {
                t.containers.iter().any(|c| c.runtime_id.as_ref().is_some_and(|r| r.starts_with(id.as_str())))
            })
    };
    let tasks: Vec<Value> = here.filter(fits).map(documents::introspection_task).collect();
    if query.taskarn.is_none() && query.dockerid.is_none() {
        return Json(json!({"Tasks": tasks})).into_response();
    }
    match tasks.into_iter().next() {
        Some(task) => Json(task).into_response(),
        None => not_found("task"),
    }
}
