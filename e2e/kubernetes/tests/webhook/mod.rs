//! What EKS does to pods of a Fargate profile: a mutating webhook gives them Fargate's scheduler and a label.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use tasuki_e2e_kubernetes::certificates::Authority;

/// Answers until the test ends; what registers it for pods of namespaces with the label `fargate`.
pub fn start() -> String {
    let authority = Authority::new().unwrap();
    let identity = authority.issue("fargate", &[], &["127.0.0.1"]).unwrap();
    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(identity.certificate.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(config));
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // One that breaks off is asked again.
            let _ = answer(connection, &config);
        }
    });
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "fargate"},
        "webhooks": [{
            "name": "fargate.example.test",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"url": format!("https://{address}/"), "caBundle": STANDARD.encode(authority.pem)},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            "namespaceSelector": {"matchLabels": {"profile": "fargate"}},
        }],
    })
    .to_string()
}

fn answer(connection: TcpStream, config: &Arc<ServerConfig>) -> anyhow::Result<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(config.clone())?, connection);
    let mut reader = BufReader::new(&mut stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let review: Value = serde_json::from_slice(&body)?;
    let patch = json!([
        {"op": "add", "path": "/spec/schedulerName", "value": "fargate-scheduler"},
        {"op": "add", "path": "/metadata/labels/eks.amazonaws.com~1fargate-profile", "value": "default"},
    ]);
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string()),
        },
    })
    .to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}
