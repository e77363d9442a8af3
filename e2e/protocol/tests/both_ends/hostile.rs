//! The protocol as it should not go: each refusal has its stable code and is counted.

use crate::aws::hash;
use crate::world::{DIGEST, World, arn, finding, heartbeat, known, until, with_task};
use aws_credential_types::Credentials;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::Request;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;
use tasuki::gateway::TaskRole;
use tasuki::http::Http;
use tasuki_agent::deliver::{Binding, presign};
use tasuki_api::agent::{
    AgentKind, ContainerEvidence, Enrollment, FindingBatch, Identity, SEQUENCE_HEADER, SESSION_HEADER,
    SIGNATURE_HEADER, enrollment_text, signing_text,
};
use tasuki_api::desired::IdentityChoice;

/// A hand-made agent that may do anything.
pub struct Raw {
    http: Http,
    base: String,
    sts: String,
    key: Ed25519KeyPair,
}

impl Raw {
    pub fn new(world: &World) -> Self {
        let http = Http::new(Some(&world.authority_pem())).unwrap();
        let base = format!("https://localhost:{}", world.address.port());
        Self { http, base, sts: world.aws_address.clone(), key: Ed25519KeyPair::generate().unwrap() }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, String)], body: Vec<u8>) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Bytes::from(body)).unwrap();
        let (status, body) = self.http.send(request, 1 << 20, Duration::from_secs(10)).await.unwrap();
        (status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn identity(&self, id: &str) -> Identity {
        let (_, nonce) = self.ask("POST", "/v1/nonce", &[], b"{}".to_vec()).await;
        let known = known(id);
        let containers = known.task.containers.iter().map(|c| ContainerEvidence {
            name: c.name.to_string(),
            arn: c.arn.to_string(),
            runtime_id: c.runtime_id.as_deref().unwrap().to_owned(),
        });
        Identity {
            gateway: nonce["gateway"].as_str().unwrap().to_owned(),
            nonce: nonce["nonce"].as_str().unwrap().to_owned(),
            public_key: BASE64.encode(self.key.public_key()),
            task: arn(id),
            container: "tasuki-agent".to_owned(),
            containers: containers.collect(),
            address: None,
            kind: AgentKind::Sidecar,
            version: "1".to_owned(),
            token: None,
        }
    }

    /// As a node's agent in a pod says it, without a token.
    pub async fn pod(&self, name: &str) -> Identity {
        let (task, containers) = (name.to_owned(), Vec::new());
        Identity { task, containers, kind: AgentKind::Node, ..self.identity("x").await }
    }

    /// Enrols as `identity` says, signed by the role of task `signer`, for the nonce given.
    pub async fn enroll(&self, identity: &Identity, signer: Option<(&str, &str)>) -> (u16, Value) {
        let sts = signer.map(|(id, nonce)| {
            let secret = (format!("ASIA{id}"), format!("secret/{id}"), Some(format!("tok/{id}+==")));
            let credentials = Credentials::new(secret.0, secret.1, secret.2, None, "test");
            let key_hash = hash(self.key.public_key().as_ref());
            let binding = Binding { gateway: &identity.gateway, nonce, key_hash: &key_hash };
            presign(&credentials, "http", &self.sts, "eu-west-1", binding, Timestamp::now()).unwrap()
        });
        let identity = serde_json::to_string(identity).unwrap();
        let signature = BASE64.encode(self.key.sign(enrollment_text(&identity).as_bytes()));
        let body = serde_json::to_vec(&Enrollment { identity, signature, sts }).unwrap();
        self.ask("POST", "/v1/enroll", &[], body).await
    }

    async fn enrolled(&self, id: &str) -> String {
        let identity = self.identity(id).await;
        let (status, session) = self.enroll(&identity, Some((id, &identity.nonce))).await;
        assert_eq!(status, 200, "{session}");
        session["session"].as_str().unwrap().to_owned()
    }

    fn headers(
        &self,
        method: &str,
        path: &str,
        session: &str,
        sequence: u64,
        body: &[u8],
    ) -> Vec<(&'static str, String)> {
        let signature = self.key.sign(signing_text(method, path, session, sequence, &hash(body)).as_bytes());
        vec![
            (SESSION_HEADER, session.to_owned()),
            (SEQUENCE_HEADER, sequence.to_string()),
            (SIGNATURE_HEADER, BASE64.encode(signature)),
        ]
    }

    async fn beat(&self, session: &str, sequence: u64) -> (u16, Value) {
        let body = serde_json::to_vec(&heartbeat(&[])).unwrap();
        let headers = self.headers("POST", "/v1/heartbeat", session, sequence, &body);
        self.ask("POST", "/v1/heartbeat", &headers, body).await
    }
}

#[tokio::test]
async fn whoever_is_not_the_tasks_agent_does_not_enrol() {
    let world = World::with(|config| (config.limits.requests_per_second, config.limits.burst) = (1e6, 1e6)).await;
    let raw = Raw::new(&world);
    world.add("one", known("one"));
    world.add("two", known("two"));
    world.add("stopped", with_task(known("stopped"), |task| task.status = tasuki_core::fleet::TaskStatus::Stopped));
    let mut unapproved = known("unapproved");
    unapproved.approved_digests = ["sha256:other".into()].into();
    world.add("unapproved", unapproved);
    let mut unsigned = known("unsigned");
    (unsigned.role, unsigned.identity) = (TaskRole::None, IdentityChoice::Signed);
    world.add("unsigned", unsigned);

    type Change = fn(&mut Identity);
    let cases: [(&str, &str, Option<&str>, Change); 14] = [
        ("NonceInvalid", "one", Some("one"), |i| i.nonce = BASE64.encode([1; 32])),
        ("NonceInvalid", "one", Some("one"), |i| i.gateway = "other".to_owned()),
        ("SignatureInvalid", "one", Some("one"), |i| i.public_key = BASE64.encode([1; 32])),
        ("Malformed", "one", Some("one"), |i| i.public_key = "x".to_owned()),
        ("Malformed", "one", Some("one"), |i| i.task = "arn:aws:s3:::bucket".to_owned()),
        ("TaskUnknown", "one", Some("one"), |i| i.task = arn("nowhere")),
        ("TaskStopped", "stopped", Some("stopped"), |_| {}),
        ("KindNotAllowed", "one", Some("one"), |i| i.kind = AgentKind::Node),
        ("ContainerNotAgent", "one", Some("one"), |i| i.container = "app".to_owned()),
        ("EvidenceMismatch", "one", Some("one"), |i| i.containers[0].runtime_id = "guess".to_owned()),
        ("EvidenceMismatch", "one", Some("one"), |i| i.task = arn("two")),
        ("EvidencePending", "one", Some("one"), |i| drop(i.containers.remove(0))),
        ("ImageNotApproved", "unapproved", Some("unapproved"), |_| {}),
        ("SignatureMissing", "unsigned", None, |_| {}),
    ];
    for (code, id, signer, change) in cases {
        let mut identity = raw.identity(id).await;
        let nonce = identity.nonce.clone();
        change(&mut identity);
        let before = world.gateway().tally().get(code);
        let (status, refusal) = raw.enroll(&identity, signer.map(|signer| (signer, nonce.as_str()))).await;
        assert!(status >= 400 && refusal["code"] == code, "wanted {code}, got {status} {refusal}");
        assert_eq!(world.gateway().tally().get(code), before + 1, "{code} is counted");
    }
    // The role's signature: none, another task's, and one made for another nonce.
    let identity = raw.identity("one").await;
    assert_eq!(raw.enroll(&identity, None).await.1["code"], "SignatureMissing");
    let identity = raw.identity("one").await;
    assert_eq!(raw.enroll(&identity, Some(("two", &identity.nonce))).await.1["code"], "SignatureOfAnother");
    let identity = raw.identity("one").await;
    assert_eq!(raw.enroll(&identity, Some(("one", "older"))).await.1["code"], "SignatureRefused");
    // A nonce is used up even by an enrolment that failed.
    assert_eq!(raw.enroll(&identity, Some(("one", &identity.nonce))).await.1["code"], "NonceInvalid");
    assert_eq!(world.gateway().sessions(), 0);
    raw.enrolled("one").await;
    assert_eq!((world.gateway().sessions(), DIGEST), (1, "sha256:aaaa"));
}

#[tokio::test]
async fn requests_cannot_be_replayed_swapped_or_made_up() {
    let mut world = World::new().await;
    world.add("one", known("one"));
    let raw = Raw::new(&world);
    let session = raw.enrolled("one").await;
    assert_eq!(raw.beat(&session, 5).await.0, 200);
    for sequence in [5, 4, 0] {
        assert_eq!(raw.beat(&session, sequence).await.1["code"], "SequenceReplayed");
    }
    let body = serde_json::to_vec(&FindingBatch { findings: vec![finding(1, json!({}))] }).unwrap();
    let good = raw.headers("POST", "/v1/findings", &session, 6, &body);
    let other = serde_json::to_vec(&FindingBatch { findings: vec![finding(2, json!({}))] }).unwrap();
    assert_eq!(raw.ask("POST", "/v1/findings", &good, other).await.1["code"], "SignatureInvalid", "another body");
    assert_eq!(
        raw.ask("POST", "/v1/heartbeat", &good, body.clone()).await.1["code"],
        "SignatureInvalid",
        "another path"
    );
    let mut later = good.clone();
    later[1].1 = "7".to_owned();
    assert_eq!(
        raw.ask("POST", "/v1/findings", &later, body.clone()).await.1["code"],
        "SignatureInvalid",
        "another sequence"
    );
    assert_eq!(raw.ask("POST", "/v1/findings", &good, body.clone()).await.0, 200);
    assert_eq!(raw.ask("POST", "/v1/findings", &good, body.clone()).await.1["code"], "SequenceReplayed");
    assert_eq!(raw.beat("made-up", 8).await.1["code"], "SessionUnknown");
    assert_eq!(raw.ask("POST", "/v1/heartbeat", &[], Vec::new()).await.1["code"], "Malformed");
    let garbage = b"\xff{{{".to_vec();
    let headers = raw.headers("POST", "/v1/heartbeat", &session, 9, &garbage);
    assert_eq!(raw.ask("POST", "/v1/heartbeat", &headers, garbage.clone()).await.1["code"], "Malformed");
    assert_eq!(raw.ask("POST", "/v1/enroll", &[], garbage).await.1["code"], "Malformed");
    assert_eq!(raw.ask("POST", "/v1/enroll", &[], vec![b' '; 65 << 10]).await.1["code"], "TooLarge");
    assert_eq!(raw.ask("GET", "/v1/heartbeat", &[], Vec::new()).await.1["code"], "NotFound");
    assert_eq!(raw.ask("GET", "/etc/passwd", &[], Vec::new()).await.1["code"], "NotFound");

    // Recorded before a restart of the gateway, played back after it.
    let headers = raw.headers("POST", "/v1/findings", &session, 10, &body);
    world.down().await;
    world.up().await;
    assert_eq!(raw.ask("POST", "/v1/findings", &headers, body).await.1["code"], "SessionUnknown");
}

#[tokio::test]
async fn a_second_key_is_a_conflict_only_while_the_first_is_alive() {
    let mut world = World::with(|config| (config.limits.requests_per_second, config.limits.burst) = (1e6, 1e6)).await;
    world.add("one", known("one"));
    let (first, second) = (Raw::new(&world), Raw::new(&world));
    let session = first.enrolled("one").await;
    let identity = second.identity("one").await;
    let claim = second.enroll(&identity, Some(("one", &identity.nonce))).await;
    assert_eq!(claim.1["code"], "AgentIdentityConflict");
    assert_eq!(first.beat(&session, 1).await.0, 200, "the first one is kept");
    let report = world.report(|_| true).await;
    assert!(report.conflict.is_some(), "two keys are alive");
    assert_eq!(first.enrolled("one").await.len(), session.len(), "the first one may enrol anew");

    // Of the other task only a restarted agent without its key is left: no conflict, and in after
    // three intervals of silence (1 s each here) since the gateway began to listen.
    world.add("two", known("two"));
    let (lost, restarted) = (Raw::new(&world), Raw::new(&world));
    lost.enrolled("two").await;
    until("the new key is let in", async || {
        let identity = restarted.identity("two").await;
        restarted.enroll(&identity, Some(("two", &identity.nonce))).await.0 == 200
    })
    .await;
    assert_eq!(world.gateway().tally().get("KeyReplaced"), 1);
    let session = restarted.enrolled("two").await;
    restarted.beat(&session, 1).await;
    let report = world.report(|report| *report.task == *arn("two")).await;
    assert_eq!(report.conflict, None);
}
