//! Asks a running controller.

use super::exit::Exit;
use crate::http::Http;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// Bytes of an answer: a fleet of 100,000 tasks is about 40 MiB of JSON.
const MAX_ANSWER: usize = 256 << 20;

/// Where the controller is.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// Address of the running controller
    #[arg(long, global = true, env = "TASUKI_SERVER", default_value = "http://127.0.0.1:8080")]
    pub server: String,
    /// File with the token that orders need, and questions to a controller that listens beyond its own machine [default: admin.token in the state directory]
    #[arg(long, global = true, env = "TASUKI_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// A failed question, for people.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The address makes no sense.
    #[error("`{0}` is not an address; write --server http://HOST:PORT")]
    Address(String),
    /// No answer.
    #[error(
        "no controller answers at {server}: {why}\nstart one with `tasuki run --config-dir DIR`, or name it with --server or TASUKI_SERVER"
    )]
    Unreachable {
        /// Who was asked.
        server: String,
        /// Why.
        why: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// There is no such thing.
    #[error("{0}")]
    Absent(String),
    /// Another program, or another version.
    #[error("{0} answered something that this version does not understand; are both of one version?")]
    Garbled(String),
    /// The token cannot be read.
    #[error(
        "the token in {path} cannot be read: {why}\nrun this as the user of the controller, or name the file with --token-file"
    )]
    Token {
        /// Where it should be.
        path: String,
        /// Why.
        why: String,
    },
}

impl AskError {
    /// What this means to a script.
    pub fn exit(&self) -> Exit {
        if matches!(self, Self::Absent(_)) { Exit::Bad } else { Exit::Unknown }
    }
}

/// How long an answer from what the controller knows may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How long an order or a question to AWS may take: an uninstall waits until services have drained.
const SLOW: Duration = Duration::from_secs(720);

/// A controller.
pub struct Client {
    base: Url,
    http: Http,
    token_file: PathBuf,
    /// Whether the token file was named, and is not just this machine's own.
    named: bool,
}

impl Client {
    /// A client of the controller that the arguments name.
    pub fn new(args: &ServerArgs) -> Result<Self, AskError> {
        let base =
            Url::parse(&args.server).ok().filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
        let base = base.ok_or_else(|| AskError::Address(args.server.clone()))?;
        let http =
            Http::new(None).map_err(|e| AskError::Unreachable { server: args.server.clone(), why: e.to_string() })?;
        let token_file =
            args.token_file.clone().unwrap_or_else(|| super::run::default_state_dir().join(crate::web::TOKEN_FILE));
        Ok(Self { base, http, token_file, named: args.token_file.is_some() })
    }

    /// GET `/api/v1/<path>` with a query.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, AskError> {
        let request = self.question(self.url(path, query));
        self.send(request, Bytes::new(), ANSWER).await
    }

    /// GET of what AWS itself must be asked for.
    pub async fn get_slow<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        let request = self.question(self.url(path, &[]));
        self.send(request, Bytes::new(), SLOW).await
    }

    /// GET `/metrics`, which needs no token.
    pub async fn metrics(&self) -> Result<String, AskError> {
        let mut url = self.base.clone();
        url.set_path("/metrics");
        let body = self.answer(http::Request::get(String::from(url)), Bytes::new(), ANSWER).await?;
        String::from_utf8(body.into()).map_err(|_| AskError::Garbled(self.name()))
    }

    /// POST `/api/v1/<path>` with the token and a body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &serde_json::Value) -> Result<T, AskError> {
        let token = std::fs::read_to_string(&self.token_file)
            .map_err(|error| AskError::Token { path: self.token_file.display().to_string(), why: error.to_string() })?;
        if !self.keeps_secrets() {
            return Err(AskError::Refused(
                "the token is sent over https or to this machine only; use a tunnel to the controller".to_owned(),
            ));
        }
        let request = http::Request::post(self.url(path, &[]))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", token.trim()));
        self.send(request, Bytes::from(body.to_string()), SLOW).await
    }

    /// A token in the clear may be read on the way.
    fn keeps_secrets(&self) -> bool {
        self.base.scheme() == "https" || is_loopback(&self.base)
    }

    /// A GET, with the token where there is one: a controller that listens beyond its own machine asks for
    /// it. This machine's own token goes to no other machine unless it was named.
    fn question(&self, url: String) -> http::request::Builder {
        let request = http::Request::get(url).header("accept", "application/json");
        match std::fs::read_to_string(&self.token_file) {
            Ok(token) if is_loopback(&self.base) || (self.named && self.keeps_secrets()) => {
                request.header("authorization", format!("Bearer {}", token.trim()))
            }
            _ => request,
        }
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> String {
        let mut url = self.base.clone();
        url.set_path(&format!("/api/v1/{path}"));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url.into()
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: http::request::Builder,
        body: Bytes,
        within: Duration,
    ) -> Result<T, AskError> {
        let body = self.answer(request, body, within).await?;
        serde_json::from_slice(&body).map_err(|_| AskError::Garbled(self.name()))
    }

    /// The controller's name in messages.
    fn name(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Bytes of a good answer.
    async fn answer(&self, request: http::request::Builder, body: Bytes, within: Duration) -> Result<Bytes, AskError> {
        let unreachable = |why: String| AskError::Unreachable { server: self.name(), why };
        let request = request.body(body).map_err(|error| unreachable(error.to_string()))?;
        let answer = self.http.send(request, MAX_ANSWER, within).await;
        let (status, body) = answer.map_err(|error| unreachable(innermost(&error)))?;
        if status.is_success() {
            return Ok(body);
        }
        let said: Option<crate::web::Refusal> = serde_json::from_slice(&body).ok();
        let said = said.ok_or_else(|| AskError::Garbled(self.name()))?;
        let text = crate::text::escape(&said.error);
        Err(if status == http::StatusCode::NOT_FOUND { AskError::Absent(text) } else { AskError::Refused(text) })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The cause that says most: the last of the chain.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    words(last)
}

/// The system's words without its number.
fn words(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
