//! A real server on loopback, asked by a real client.

use super::*;
use crate::cli::fixtures::{finding, view};
use crate::engine::{AgentTotals, Request, View};
use crate::http::Http;
use bytes::Bytes;
use http::{Method, StatusCode};
use jiff::Timestamp;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

struct Site {
    base: String,
    token: String,
    http: Http,
    orders: mpsc::Receiver<Request>,
    _keep: (tempfile::TempDir, watch::Sender<Arc<View>>, watch::Sender<Arc<Loaded>>, tokio_util::sync::DropGuard),
}

async fn site(shown: View) -> Site {
    site_at(shown, "127.0.0.1:0", false).await
}

async fn site_at(shown: View, address: &str, open: bool) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let token = AdminToken::make(dir.path()).unwrap();
    let store = Store::open("sqlite::memory:").await.unwrap();
    store.insert_findings("a", &[(finding().finding, None)], Timestamp::now()).await.unwrap();
    let (view_sender, view) = watch::channel(Arc::new(shown));
    let loaded = crate::desired::Loader::default()
        .load(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/desired/testdata")));
    let (desired_sender, desired) = watch::channel(Arc::new(loaded));
    let (requests, orders) = mpsc::channel(8);
    let listener = TcpListener::bind(address).await.unwrap();
    let listen = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::default());
    let tally = Arc::new(crate::tally::Tally::default());
    tally.add("stale", 3);
    metrics.join_tally("refused", tally);
    let web = Web {
        engine: Engine { view, requests },
        store,
        desired,
        metrics,
        token,
        gateway: GatewaySpec::default(),
        hosts: vec!["tasuki.example.test".to_owned()],
        open,
        listen,
    };
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, Arc::new(web), stop.clone().cancelled_owned()));
    let token = std::fs::read_to_string(dir.path().join(TOKEN_FILE)).unwrap().trim().to_owned();
    let mode = std::fs::metadata(dir.path().join(TOKEN_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let http = Http::new(None).unwrap();
    Site {
        base: format!("http://127.0.0.1:{}", listen.port()),
        token,
        http,
        orders,
        _keep: (dir, view_sender, desired_sender, stop.drop_guard()),
    }
}

impl Site {
    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> (StatusCode, String) {
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Bytes::from_static(body.as_bytes())).unwrap();
        let (status, body) = self.http.send(request, 1 << 20, Duration::from_secs(30)).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
    async fn get(&self, path: &str) -> (StatusCode, String) {
        self.ask(Method::GET, path, &[], "").await
    }
}

#[tokio::test]
async fn foreign_names_and_origins_are_refused() {
    let site = site(view()).await;
    for (headers, wanted) in [
        (vec![("host", "evil.test")], StatusCode::MISDIRECTED_REQUEST),
        (vec![("host", "127.0.0.1.evil.test:8080")], StatusCode::MISDIRECTED_REQUEST),
        (vec![("host", "127.0.0.1@evil.test")], StatusCode::MISDIRECTED_REQUEST),
        (vec![("host", "")], StatusCode::MISDIRECTED_REQUEST),
        (vec![("origin", "http://evil.test")], StatusCode::FORBIDDEN),
        (vec![("origin", "null")], StatusCode::FORBIDDEN),
        (vec![("host", "tasuki.example.test")], StatusCode::OK),
        (vec![("host", "localhost:1")], StatusCode::OK),
        (vec![("host", "[::1]:1")], StatusCode::OK),
    ] {
        for path in ["/", "/api/v1/coverage", "/metrics"] {
            assert_eq!(site.ask(Method::GET, path, &headers, "").await.0, wanted, "{headers:?} {path}");
        }
    }
}

#[tokio::test]
async fn orders_need_the_token() {
    let mut site = site(view()).await;
    let json = ("content-type", "application/json");
    for wrong in ["", "Bearer ", "Bearer x", "Basic abc"] {
        for path in ["/api/v1/freeze", "/api/v1/retry", "/api/v1/uninstall"] {
            let (status, _) = site
                .ask(Method::POST, path, &[json, ("authorization", wrong)], r#"{"frozen":true,"cluster":"c"}"#)
                .await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} {wrong:?}");
        }
    }
    assert!(site.orders.try_recv().is_err(), "nothing reached the engine");
    let bearer = format!("Bearer {}", site.token);
    let base = site.base.clone();
    let http = site.http.clone();
    let asked = tokio::spawn(async move {
        let request = http::Request::post(format!("{base}/api/v1/freeze"))
            .header("content-type", "application/json")
            .header("authorization", bearer);
        http.send(request.body(Bytes::from_static(br#"{"frozen":true}"#)).unwrap(), 1 << 20, Duration::from_secs(30))
            .await
            .unwrap()
    });
    match site.orders.recv().await {
        Some(Request::Freeze(true, done)) => done.send(Ok(())).unwrap(),
        _ => panic!("freeze was ordered"),
    }
    let (status, body) = asked.await.unwrap();
    assert_eq!((status, &body[..]), (StatusCode::OK, &br#"{"frozen":true}"#[..]));
}

#[tokio::test]
async fn pages_show_what_is_there_and_escape_it() {
    let site = site(view()).await;
    let id = finding().finding.id;
    for path in [
        "/",
        "/clusters/arn%3Aaws%3Aecs%3Aeu-west-1%3A111122223333%3Acluster%2Fshop-fargate",
        "/findings",
        &format!("/findings/{id}"),
        "/rollout",
        "/configuration",
        "/nowhere?x=%3Cscript%3E",
    ] {
        let (status, body) = site.get(path).await;
        assert_eq!(status == StatusCode::OK, !path.starts_with("/nowhere"), "{path}");
        assert!(!body.contains("<script") && !body.contains('\u{1b}') && !body.contains('\u{202e}'), "{path}: {body}");
    }
    assert!(site.get("/").await.1.contains("95.2 % live") || site.get("/").await.1.contains(" % live"));
    let (_, page) = site.get(&format!("/findings/{id}")).await;
    assert!(
        page.contains("&lt;script&gt;") && page.contains("/usr/sbin/nginx") && page.contains("What to check next"),
        "{page}"
    );
    let (_, page) = site.get("/configuration").await;
    assert!(page.contains("did you mean `maxUnavailable`?"), "{page}");
    assert_eq!(site.get("/findings?severity=Nothing").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(site.get("/findings/01JDF3Z6E0Q9T4V5W6X7Y8Z9AC").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_api_filters_and_answers_what_the_command_line_reads() {
    let site = site(view()).await;
    let coverage = |query: &'static str| {
        let site = &site;
        async move { serde_json::from_str::<View>(&site.get(&format!("/api/v1/coverage{query}")).await.1).unwrap() }
    };
    assert_eq!(coverage("").await.tasks.len(), 28);
    let part = coverage("?cluster=shop-f*&reason=WouldInterrupt").await;
    assert_eq!((part.tasks.len(), part.clusters.len(), part.counts.uncovered), (5, 1, 5));
    assert_eq!(site.get("/api/v1/coverage?reason=Nonsense").await.0, StatusCode::BAD_REQUEST);
    let found: Vec<crate::store::StoredFinding> =
        serde_json::from_str(&site.get("/api/v1/findings?severity=high&cluster=shop-ec2").await.1).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(site.get("/api/v1/findings?since=yesterday").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(site.get("/api/v1/findings/nonsense").await.0, StatusCode::NOT_FOUND);
    assert_eq!(site.get("/api/v1/nonsense").await.0, StatusCode::NOT_FOUND);
    assert!(site.get("/api/v1/config").await.1.contains("maxUnavailabel"));
}

#[tokio::test]
async fn off_loopback_reading_needs_the_token_unless_told_otherwise() {
    for open in [false, true] {
        let site = site_at(view(), "0.0.0.0:0", open).await;
        let wanted = if open { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        for path in ["/", "/style.css", "/findings", "/api/v1/coverage", "/api/v1/findings", "/api/v1/actions"] {
            assert_eq!(site.get(path).await.0, wanted, "{path}, open: {open}");
        }
        for path in ["/metrics", "/healthz", "/readyz"] {
            assert_eq!(site.get(path).await.0, StatusCode::OK, "{path}");
        }
        let bearer = format!("Bearer {}", site.token);
        let read = site.ask(Method::GET, "/api/v1/coverage", &[("authorization", &bearer)], "").await;
        assert_eq!(read.0, StatusCode::OK);
        assert_eq!(site.ask(Method::POST, "/api/v1/uninstall", &[], "").await.0, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn readiness_and_metrics_follow_the_view() {
    let early = site(View::default()).await;
    assert_eq!(early.get("/healthz").await.0, StatusCode::OK);
    assert_eq!(early.get("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!early.get("/metrics").await.1.contains("tasuki_coverage_ratio "), "nothing selected has no ratio");
    let agents = AgentTotals {
        cluster: "shop-ec2".to_owned(),
        agents: 3,
        findings_lost: 7,
        evictions: 5,
        unnamed_events: 4,
        without_priority: 1,
    };
    let lost = [("MissedDropped".to_owned(), 2)].into();
    let site = site(View { lost, agents: vec![agents], ..view() }).await;
    assert_eq!(site.get("/readyz").await.0, StatusCode::OK);
    let text = site.get("/metrics").await.1;
    for line in [
        "tasuki_tasks{cluster=\"shop-fargate\",verdict=\"Uncovered\",reason=\"WouldInterrupt\"} 5",
        "tasuki_findings_stored{type=\"Impact:Runtime/CryptoMinerExecuted\",severity=\"High\"} 1",
        "tasuki_refused_total{what=\"stale\"} 3",
        "tasuki_frozen 0.0",
        "tasuki_lost_total{what=\"MissedDropped\"} 2",
        "tasuki_agents{cluster=\"shop-ec2\"} 3",
        "tasuki_agent_findings_lost{cluster=\"shop-ec2\"} 7",
        "tasuki_agent_evictions{cluster=\"shop-ec2\"} 5",
        "tasuki_agent_unnamed_events{cluster=\"shop-ec2\"} 4",
        "tasuki_agents_without_priority{cluster=\"shop-ec2\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}
