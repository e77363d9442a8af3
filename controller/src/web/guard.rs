//! Who may ask: names, origins, the token; and the headers of every answer.

use super::Web;
use super::api::refuse;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, Method, StatusCode, Uri};
use std::net::IpAddr;
use std::sync::Arc;

/// The host of `name:port` in lower case, without port and brackets.
fn host_of(authority: &str) -> Option<String> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    // `user@host` is no Host header.
    if authority.as_str().contains('@') {
        return None;
    }
    Some(authority.host().trim_matches(['[', ']']).to_ascii_lowercase())
}

impl Web {
    fn knows_host(&self, host: &str) -> bool {
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }

    /// Who may reach the address may read: it is this machine's own, or something in front of it asks.
    fn reads_openly(&self) -> bool {
        self.open || self.listen.ip().is_loopback()
    }

    /// Why a request is refused.
    fn judge(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
        // HTTP/2 carries the name in the URI, HTTP/1.1 in the header.
        let named = uri.authority().map(|a| a.as_str().to_owned());
        let named = named.or_else(|| headers.get(HOST).and_then(|h| h.to_str().ok()).map(str::to_owned));
        let host = named.as_deref().and_then(host_of).unwrap_or_default();
        if headers.get_all(HOST).iter().count() > 1 || !self.knows_host(&host) {
            return Some((
                StatusCode::MISDIRECTED_REQUEST,
                "this server does not go by that name; add it with --web-host",
            ));
        }
        if let Some(origin) = headers.get(ORIGIN) {
            let origin = origin.to_str().ok().and_then(|o| o.split_once("://")).and_then(|(_, rest)| host_of(rest));
            if origin.as_deref() != Some(host.as_str()) {
                return Some((StatusCode::FORBIDDEN, "requests of another site's pages are refused"));
            }
        }
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let open = reads && self.reads_openly();
        if !open && !self.token.is_in(headers.get(AUTHORIZATION)) {
            return Some((
                StatusCode::UNAUTHORIZED,
                "this needs the token in admin.token in the controller's state directory, as `Authorization: Bearer TOKEN`; \
                 a proxy that asks who its users are can read without it where the controller runs with --web-open",
            ));
        }
        None
    }
}

/// Lets a request through whose name, origin and token are good.
pub async fn check(State(web): State<Arc<Web>>, request: Request, next: Next) -> Response {
    match web.judge(request.method(), request.uri(), request.headers()) {
        Some((status, why)) => refuse(status, why),
        None => next.run(request).await,
    }
}

/// [`check`] where only this machine is served.
pub async fn check_on_loopback(State(web): State<Arc<Web>>, request: Request, next: Next) -> Response {
    if web.listen.ip().is_loopback() { check(State(web), request, next).await } else { next.run(request).await }
}

/// Headers of every answer: no script, no frame, no guess of types, nothing kept.
pub async fn headers(request: Request, next: Next) -> Response {
    const POLICY: &str =
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    let mut response = next.run(request).await;
    let headers: [(HeaderName, &'static str); 5] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
