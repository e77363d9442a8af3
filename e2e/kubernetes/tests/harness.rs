//! The room itself: pods run, answer by Service name and are known by their tokens; nodes that only
//! claim are Ready; faults of the API server are survived; and nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tasuki_e2e::image::Image;
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::node::{Settings, dns};
use tasuki_e2e_kubernetes::registry::{Manner, Registry};
use tasuki_e2e_kubernetes::{ControlPlane, Kwok, Node, Options, helm, kubectl};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  containers:
    - name: web
      image: tasuki.test/tools:1
      imagePullPolicy: Never
      command: [sh, -c, "mkdir /www; echo open > /www/index.html; echo serving; exec httpd -f -p 8080 -h /www"]
      readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: customer }
spec:
  containers:
    - name: customer
      image: example.com/pulled/tools:1
      command: [sleep, "1000000"]
      volumeMounts: [{ name: token, mountPath: /token }]
  volumes:
    - name: token
      projected: { sources: [{ serviceAccountToken: { path: token, audience: test.tasuki, expirationSeconds: 3600 } }] }
"#;

fn tools() -> Image {
    Image::default().userland().unwrap().file("/tmp/.keep", 0o644, "")
}

#[tokio::test]
async fn pods_run_and_nothing_is_left() {
    let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
    let began = Instant::now();
    let mut plane = ControlPlane::start(directory.path(), "plane", Options::default()).await.unwrap();
    println!("control plane: {:?}", began.elapsed());
    let network = plane.host().rsplit_once('.').unwrap().0.to_owned();
    let number = network.rsplit_once('.').unwrap().1.to_owned();

    let registry = Registry::start(&plane).await.unwrap();
    registry.push(&tools().pack("example.com/pulled/tools:1").unwrap());
    let settings = Settings {
        labels: BTreeMap::from([("room".to_owned(), "real".to_owned())]),
        registry: Some(registry.address.clone()),
        ..Settings::default()
    };
    let began = Instant::now();
    let node = Node::start(&plane, "node", settings).await.unwrap();
    println!("node: {:?}", began.elapsed());
    node.import_image(&tools().pack("tasuki.test/tools:1").unwrap()).await.unwrap();
    let began = Instant::now();
    dns::start(&plane, &node).await.unwrap();
    println!("dns: {:?}", began.elapsed());

    // Pods run, and one of them by pulling its image from a registry that first refuses.
    registry.set_manner(Manner { refuses: true, ..Manner::default() });
    until("the default service account is there", Duration::from_secs(30), || async {
        kubectl(&plane, &["get", "serviceaccount", "default"], "").await.map(Some)
    })
    .await
    .unwrap();
    kubectl(&plane, &["apply", "--filename", "-"], PODS).await.unwrap();
    let waiting = ["get", "pod", "customer", "-o=jsonpath={.status.containerStatuses[0].state.waiting.reason}"];
    until("the pull is refused", Duration::from_secs(60), || async {
        Ok(kubectl(&plane, &waiting, "").await?.contains("Pull").then_some(()))
    })
    .await
    .unwrap();
    registry.set_manner(Manner::default());
    let wait = ["wait", "--for=condition=Ready", "pod/web", "pod/customer", "--timeout=120s"];
    if let Err(error) = kubectl(&plane, &wait, "").await {
        panic!("{error}\n{}", kubectl(&plane, &["describe", "pods"], "").await.unwrap());
    }
    assert_eq!(kubectl(&plane, &["logs", "web"], "").await.unwrap(), "serving\n");
    assert!(node.directory().join("log/containers").read_dir().unwrap().count() >= 2, "logs have names on the node");

    // A Service's name answers inside, the pod's address on the host.
    let long = ["exec", "customer", "--", "wget", "-qO-", "http://web.default.svc.cluster.local/"];
    until("the Service answers", Duration::from_secs(30), || async { kubectl(&plane, &long, "").await.map(Some) })
        .await
        .unwrap();
    let short = ["exec", "customer", "--", "wget", "-qO-", "http://web/"];
    assert_eq!(kubectl(&plane, &short, "").await.unwrap(), "open\n");
    let address = kubectl(&plane, &["get", "pod", "web", "-o=jsonpath={.status.podIP}"], "").await.unwrap();
    assert_eq!(tasuki_e2e::http::send("GET", &format!("http://{address}:8080/"), "").await.unwrap(), "open\n");

    known_by_its_token(&plane).await;

    // A user has the rights that were given, and no more; errors carry what kubectl said.
    kubectl(&plane, &["create", "serviceaccount", "reader"], "").await.unwrap();
    let reader = plane.token_kubeconfig("default", "reader").await.unwrap();
    let reader = format!("--kubeconfig={}", reader.display());
    let refused = kubectl(&plane, &["get", "pods", &reader], "").await.unwrap_err().to_string();
    assert!(refused.contains("system:serviceaccount:default:reader"), "{refused}");
    let viewer = plane.client_certificate("eve", &["viewers"]).unwrap();
    kubectl(&plane, &["create", "clusterrolebinding", "viewers", "--clusterrole=view", "--group=viewers"], "")
        .await
        .unwrap();
    let pods = Api::<Pod>::default_namespaced(tasuki_e2e_kubernetes::plane::client(&viewer).await.unwrap());
    assert_eq!(pods.list(&Default::default()).await.unwrap().items.len(), 2);

    // Pod Security holds; Helm speaks with the cluster.
    kubectl(&plane, &["create", "namespace", "strict"], "").await.unwrap();
    kubectl(&plane, &["label", "namespace", "strict", "pod-security.kubernetes.io/enforce=restricted"], "")
        .await
        .unwrap();
    let refused =
        kubectl(&plane, &["run", "--namespace=strict", "bad", "--image=a:1"], "").await.unwrap_err().to_string();
    assert!(refused.contains("violates PodSecurity"), "{refused}");
    assert_eq!(helm(&plane, &["list", "--output=json"]).await.unwrap().trim(), "[]");

    // The API server's history is lost, and the pods go on.
    plane.compact().await.unwrap();
    plane.restart_apiserver().await.unwrap();
    assert_eq!(kubectl(&plane, &["logs", "web"], "").await.unwrap(), "serving\n");

    drop(node);
    drop(plane);
    nothing_is_left(directory.path(), &number);
    no_cgroup_is_left(&number);
}

/// A token for an audience says which pod on which node shows it.
async fn known_by_its_token(plane: &ControlPlane) {
    let token = kubectl(plane, &["exec", "customer", "--", "cat", "/token/token"], "").await.unwrap();
    let client = plane.client().await.unwrap();
    let review = |audience: &str| {
        let reviews: Api<TokenReview> = Api::all(client.clone());
        let spec = TokenReviewSpec { token: Some(token.clone()), audiences: Some(vec![audience.to_owned()]) };
        async move {
            let review = TokenReview { spec, ..TokenReview::default() };
            reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap()
        }
    };
    let pod = Api::<Pod>::default_namespaced(client.clone()).get("customer").await.unwrap();
    let extra = review("test.tasuki").await.user.unwrap().extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [pod.metadata.uid.unwrap()]);
    assert_eq!(extra["authentication.kubernetes.io/node-name"], ["node"]);
    assert_eq!(review("somebody.else").await.authenticated, None, "another audience");
}

#[tokio::test]
async fn nodes_that_only_claim_are_ready() {
    let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
    let plane = ControlPlane::start(directory.path(), "plane", Options::default()).await.unwrap();
    let number = plane.host().split('.').nth(2).unwrap().to_owned();
    let mut kwok = Kwok::start(&plane).await.unwrap();
    let began = Instant::now();
    let labels = BTreeMap::from([("pool".to_owned(), "blue".to_owned())]);
    let names = kwok.nodes("fake", 20, &labels).await.unwrap();
    println!("20 nodes of KWOK: {:?}", began.elapsed());
    assert_eq!((names.len(), names[19].as_str()), (20, "fake-19"));
    let listed = kubectl(&plane, &["get", "nodes", "--selector=pool=blue", "--output=name"], "").await.unwrap();
    assert_eq!(listed.lines().count(), 20);

    kubectl(&plane, &["create", "deployment", "many", "--image=a:1", "--replicas=40"], "").await.unwrap();
    kubectl(&plane, &["rollout", "status", "deployment/many", "--timeout=120s"], "").await.unwrap();

    drop(kwok);
    drop(plane);
    nothing_is_left(directory.path(), &number);
}

/// Of the plane with this number and the files in `directory`: no link, mount or process.
fn nothing_is_left(directory: &Path, number: &str) {
    let directory = directory.display().to_string();
    let links = Path::new("/sys/class/net").read_dir().unwrap();
    let links: Vec<_> = links.map(|link| link.unwrap().file_name().into_string().unwrap()).collect();
    let ours =
        |name: &String| *name == format!("tsk-test-k{number}") || name.starts_with(&format!("tsk-test-v{number}-"));
    assert!(!links.iter().any(ours), "{links:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&directory), "{mounts}");
    for process in Path::new("/proc").read_dir().unwrap() {
        let path = process.unwrap().path();
        // What ends meanwhile is not left.
        let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        let line = read("cmdline");
        // What has ended and waits for init has no command line, and may still name its last cgroup.
        if line.is_empty() {
            continue;
        }
        assert!(!line.contains(&directory), "{} still runs: {line}", path.display());
        assert!(!read("cgroup").contains(&format!("tasuki-test-{number}-")), "{} still runs", path.display());
    }
}

/// Of the nodes of the plane with this number.
fn no_cgroup_is_left(number: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for mount in mounts.lines().filter(|line| line.contains(" cgroup")) {
        let path = Path::new(mount.split(' ').nth(1).unwrap());
        let groups = path.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = groups.filter(|name| name.starts_with(&format!("tasuki-test-{number}-"))).collect();
        assert!(left.is_empty(), "{left:?} in {}", path.display());
    }
}
