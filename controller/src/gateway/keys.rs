//! The gateway's keys in a Kubernetes Secret: there the store may lie on a disk that ends with the pod,
//! and new keys would mean new agents everywhere.
//!
//! *Guarantees*: the Secret is made once and never overwritten; of two controllers that start together
//! both take what the first one made. *Expected flow*: [`keep_keys`] before [`super::PolicyStore::open`] and
//! [`super::Gateway::start`], which then find their keys in the store.

use super::policy::{self, PolicyError, PolicyStore};
use super::{Authority, GatewayError};
use crate::scope::kubernetes::is_conflict;
use crate::store::{GATEWAY_CA, GATEWAY_ID, POLICY_KEY, Store, StoreError};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use std::collections::BTreeMap;

/// Name of the Secret.
pub const SECRET: &str = "tasuki-keys";
/// Settings of the store that are kept; the Secret has them under the same names.
const KEPT: [&str; 3] = [GATEWAY_ID, GATEWAY_CA, POLICY_KEY];

/// Where the keys came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysFrom {
    /// The Secret was there.
    Secret,
    /// The Secret was made from the store's keys, which are new where the store was.
    Store,
    /// Another controller made the Secret meanwhile, and its keys were taken.
    Another,
}

/// Why the keys are not kept. The controller must not go on: it would be a stranger to its agents.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server did not do what it was asked.
    #[error("Secret {namespace}/{SECRET} cannot be {what}; may the controller get and create it?")]
    Api {
        /// The controller's namespace.
        namespace: String,
        /// `read` or `made`.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The Secret is there and is not what it should be.
    #[error(
        "Secret {namespace}/{SECRET} has no usable `{entry}`; restore it, or delete the Secret, and every agent is rolled onto new keys"
    )]
    Damaged {
        /// The controller's namespace.
        namespace: String,
        /// Which entry.
        entry: &'static str,
    },
    /// The store.
    #[error("the store cannot keep the gateway's keys")]
    Store(#[from] StoreError),
    /// The authority.
    #[error("the gateway's authority cannot be made, or read")]
    Authority(#[source] Box<GatewayError>),
    /// The policy key.
    #[error("the policy key cannot be made, or read")]
    Policy(#[from] PolicyError),
}

/// Brings store and Secret to the same keys: the Secret's where it exists, else the store's, which are
/// made where it has none. `owner` is what the Secret shall go with (in the same namespace).
///
/// # Errors
/// Where the Secret cannot be read or made, or does not hold keys.
pub async fn keep_keys(
    client: kube::Client,
    namespace: &str,
    owner: Option<OwnerReference>,
    store: &Store,
    now: Timestamp,
) -> Result<KeysFrom, KeysError> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let failed =
        |what| move |source| KeysError::Api { namespace: namespace.to_owned(), what, source: Box::new(source) };
    if let Some(secret) = api.get_opt(SECRET).await.map_err(failed("read"))? {
        load(&secret, namespace, store, now).await?;
        tracing::info!(secret = SECRET, namespace, "the gateway's keys are those of the Secret");
        return Ok(KeysFrom::Secret);
    }
    open(store, now).await?;
    let secret = secret(namespace, owner, store).await?;
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!(secret = SECRET, namespace, "the gateway's keys were put into a new Secret");
            Ok(KeysFrom::Store)
        }
        Err(error) if is_conflict(&error) => {
            let secret = api.get(SECRET).await.map_err(failed("read"))?;
            load(&secret, namespace, store, now).await?;
            tracing::warn!(secret = SECRET, namespace, "another controller made the Secret first; its keys are taken");
            Ok(KeysFrom::Another)
        }
        Err(error) => Err(failed("made")(error)),
    }
}

/// Makes the keys that the store has not, and reads those that it has.
async fn open(store: &Store, now: Timestamp) -> Result<(), KeysError> {
    store.setting_or_insert(GATEWAY_ID, &BASE64.encode(rand::random::<[u8; 16]>())).await?;
    Authority::open(store, now).await.map_err(|error| KeysError::Authority(Box::new(error)))?;
    PolicyStore::open(store.clone()).await?;
    Ok(())
}

async fn secret(namespace: &str, owner: Option<OwnerReference>, store: &Store) -> Result<Secret, KeysError> {
    let mut data = BTreeMap::new();
    for name in KEPT {
        let value = store.setting(name).await?.unwrap_or_default();
        data.insert(name.to_owned(), ByteString(value.into_bytes()));
    }
    let metadata = ObjectMeta {
        name: Some(SECRET.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([("app.kubernetes.io/name".to_owned(), "tasuki".to_owned())])),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    // Keys are never changed in place, so the API server may as well forbid it.
    let (data, immutable) = (Some(data), Some(true));
    Ok(Secret { metadata, data, immutable, type_: Some("Opaque".to_owned()), ..Secret::default() })
}

async fn load(secret: &Secret, namespace: &str, store: &Store, now: Timestamp) -> Result<(), KeysError> {
    let damaged = |entry| KeysError::Damaged { namespace: namespace.to_owned(), entry };
    let mut values = Vec::with_capacity(KEPT.len());
    for name in KEPT {
        let value = secret.data.as_ref().and_then(|data| data.get(name));
        let text = value.and_then(|value| std::str::from_utf8(&value.0).ok()).filter(|text| !text.trim().is_empty());
        values.push((name, text.ok_or_else(|| damaged(name))?));
    }
    for (name, value) in values {
        if store.setting(name).await?.is_some_and(|kept| kept != value) {
            tracing::warn!(name, "the store had another key than the Secret; the Secret's is taken");
        }
        store.set_setting(name, value).await?;
    }
    // A store that began anew knows no serial, and agents take no policy with a lower one.
    policy::begin_serial_at(store, now.as_second().unsigned_abs()).await?;
    open(store, now).await.map_err(|error| match error {
        KeysError::Authority(_) => damaged(GATEWAY_CA),
        KeysError::Policy(PolicyError::Key) => damaged(POLICY_KEY),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::client_of;
    use axum::extract::{Path, State};
    use axum::response::IntoResponse;
    use axum::routing::{get, post};
    use axum::{Json, Router};
    use http::StatusCode;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};
    use tasuki_api::agent::Policy;

    /// Keeps Secrets as an API server does.
    #[derive(Default)]
    struct Server {
        secret: Mutex<Option<Value>>,
        /// Appears as soon as the first one has looked.
        rival: Mutex<Option<Value>>,
    }

    fn refuse(code: StatusCode, reason: &str) -> axum::response::Response {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
            "message": reason, "code": code.as_u16()});
        (code, Json(status)).into_response()
    }

    async fn read(
        State(server): State<Arc<Server>>,
        Path((namespace, name)): Path<(String, String)>,
    ) -> axum::response::Response {
        assert_eq!((&*namespace, &*name), ("tasuki-system", SECRET));
        let found = server.secret.lock().unwrap().clone();
        if let Some(rival) = server.rival.lock().unwrap().take() {
            *server.secret.lock().unwrap() = Some(rival);
        }
        match found {
            Some(secret) => Json(secret).into_response(),
            None => refuse(StatusCode::NOT_FOUND, "NotFound"),
        }
    }

    async fn make(State(server): State<Arc<Server>>, Json(secret): Json<Value>) -> axum::response::Response {
        let mut kept = server.secret.lock().unwrap();
        if kept.is_some() {
            return refuse(StatusCode::CONFLICT, "AlreadyExists");
        }
        *kept = Some(secret.clone());
        (StatusCode::CREATED, Json(secret)).into_response()
    }

    fn server() -> (Arc<Server>, kube::Client) {
        let server = Arc::new(Server::default());
        let router = Router::new()
            .route("/api/v1/namespaces/{namespace}/secrets/{name}", get(read))
            .route("/api/v1/namespaces/{namespace}/secrets", post(make))
            .with_state(server.clone());
        (server, client_of(router))
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    async fn keep(client: &kube::Client, store: &Store) -> Result<KeysFrom, KeysError> {
        keep_keys(client.clone(), "tasuki-system", None, store, now()).await
    }

    async fn keys(store: &Store) -> Vec<Option<String>> {
        let mut keys = Vec::new();
        for name in KEPT {
            keys.push(store.setting(name).await.unwrap());
        }
        keys
    }

    async fn serial(store: &Store) -> u64 {
        let policies = PolicyStore::open(store.clone()).await.unwrap();
        policies.update(&[]).await.unwrap();
        let policy: Policy = serde_json::from_str(&policies.bundle(None).unwrap().signed.policy).unwrap();
        policy.serial
    }

    #[tokio::test]
    async fn a_new_store_has_the_old_keys_and_a_higher_serial() {
        let (server, client) = server();
        let first = Store::open("sqlite::memory:").await.unwrap();
        assert_eq!(keep(&client, &first).await.unwrap(), KeysFrom::Store);
        let before = serial(&first).await;
        let made = server.secret.lock().unwrap().clone().unwrap();
        assert_eq!((made["type"].as_str(), made["immutable"].as_bool()), (Some("Opaque"), Some(true)));
        let second = Store::open("sqlite::memory:").await.unwrap();
        assert_eq!(keep(&client, &second).await.unwrap(), KeysFrom::Secret);
        assert_eq!(keys(&second).await, keys(&first).await);
        assert!(keys(&first).await.iter().all(Option::is_some));
        assert!(serial(&second).await > before, "agents take what the new store signs");
        let serial_now = serial(&second).await;
        assert_eq!(keep(&client, &second).await.unwrap(), KeysFrom::Secret);
        assert_eq!(serial(&second).await, serial_now, "a store that was kept goes on as it was");
        assert_eq!(server.secret.lock().unwrap().clone(), Some(made), "never overwritten");
    }

    #[tokio::test]
    async fn of_two_that_start_together_both_have_the_keys_of_the_first() {
        let (server, client) = server();
        let first = Store::open("sqlite::memory:").await.unwrap();
        keep(&client, &first).await.unwrap();
        let made = server.secret.lock().unwrap().take();
        *server.rival.lock().unwrap() = made;
        let second = Store::open("sqlite::memory:").await.unwrap();
        assert_eq!(keep(&client, &second).await.unwrap(), KeysFrom::Another);
        assert_eq!(keys(&second).await, keys(&first).await);
    }

    #[tokio::test]
    async fn a_damaged_secret_is_named_and_left_alone() {
        let (server, client) = server();
        let store = Store::open("sqlite::memory:").await.unwrap();
        keep(&client, &store).await.unwrap();
        let whole = server.secret.lock().unwrap().clone().unwrap();
        for (entry, value) in [(GATEWAY_CA, json!("eA==")), (POLICY_KEY, json!("eA==")), (GATEWAY_ID, Value::Null)] {
            let mut damaged = whole.clone();
            damaged["data"][entry] = value;
            *server.secret.lock().unwrap() = Some(damaged.clone());
            let error = keep(&client, &Store::open("sqlite::memory:").await.unwrap()).await.unwrap_err();
            assert!(
                error.to_string().contains(entry) && error.to_string().contains("tasuki-system/tasuki-keys"),
                "{error}"
            );
            assert_eq!(server.secret.lock().unwrap().clone(), Some(damaged));
        }
        // The client is built with TLS even where none is used.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nobody = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        assert!(matches!(keep(&nobody, &store).await, Err(KeysError::Api { what: "read", .. })));
    }
}
