//! What an agent in a pod finds there.

use super::{Check, Verdict};
use crate::workload::kubernetes::{self, Here, HereError};
use std::path::Path;

/// One line where this is a pod, none elsewhere.
pub(super) fn check(here: Option<Result<Here, HereError>>, token: &Path) -> Option<Check> {
    let (verdict, detail) = match here? {
        Err(error) => (Verdict::No, error.to_string()),
        Ok(here) => examine(&here, token),
    };
    Some(Check {
        name: "Kubernetes",
        verdict,
        detail,
        means: "the agent cannot enrol, or containers have no names until the gateway gives them",
        cure: "in the agent's pod: the downward API's variables, the projected token, and /var/log/containers from the host",
    })
}

fn examine(here: &Here, token: &Path) -> (Verdict, String) {
    let mut wrong = Vec::new();
    if let Err(error) = std::fs::metadata(token) {
        wrong.push(format!("no token at {}: {error}", token.display()));
    }
    let mut said =
        format!("{}, {}", here.pod, here.node.as_ref().map_or("a sidecar".to_owned(), |node| format!("node {node}")));
    match kubernetes::ask(here) {
        Ok((_, reading)) if here.node.is_some() => {
            said += &format!(": {} containers of {} pods by name", reading.containers, reading.pods);
            let unused = reading.refused + reading.beyond;
            if unused > 0 {
                said += &format!(", {unused} links not used");
            }
            if reading.containers == 0 {
                wrong.push(format!("no container has a link in {}", here.links.display()));
            }
        }
        Ok(_) => {}
        Err(error) => wrong.push(format!("{}: {error}", here.links.display())),
    }
    match wrong.is_empty() {
        true => (Verdict::Yes, said),
        false => (Verdict::No, format!("{said}; {}", wrong.join("; "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_with_what_it_lacks() {
        assert_eq!(check(None, Path::new("/x")), None);
        let directory = tempfile::tempdir().unwrap();
        let (links, token) = (directory.path().join("links"), directory.path().join("token"));
        let uid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
        let pod = format!("k8s/self/pod/tasuki-agents/{uid}/own");
        let here = |node: Option<&str>| {
            let (node, links) = (node.map(str::to_owned), links.clone());
            Some(Ok(Here { cluster: "self".to_owned(), pod: pod.clone(), node, links }))
        };
        let missing = check(here(Some("n")), &token).unwrap();
        assert_eq!(missing.verdict, Verdict::No);
        assert!(missing.detail.contains("no token at") && missing.detail.contains("links: "), "{}", missing.detail);
        std::fs::write(&token, "a.b.c").unwrap();
        assert_eq!(check(here(None), &token).unwrap().verdict, Verdict::Yes, "a sidecar needs no links");
        std::fs::create_dir(&links).unwrap();
        assert!(check(here(Some("n")), &token).unwrap().detail.contains("no container has a link"));
        let target = format!("/var/log/pods/shop_web_{uid}/app/0.log");
        std::os::unix::fs::symlink(target, links.join(format!("web_shop_app-{}.log", "a".repeat(64)))).unwrap();
        std::fs::write(links.join("other"), "").unwrap();
        let whole = check(here(Some("n")), &token).unwrap();
        assert_eq!(whole.verdict, Verdict::Yes);
        assert_eq!(whole.detail, format!("{pod}, node n: 1 containers of 1 pods by name, 1 links not used"));
        let broken = HereError { variable: "TASUKI_POD_NAME", problem: "is not set" };
        assert!(check(Some(Err(broken)), &token).unwrap().detail.contains("TASUKI_POD_NAME"));
    }
}
