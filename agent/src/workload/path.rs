//! Reading cgroup paths: which container, ECS task and pod they name.

use super::ContainerPath;

/// What a cgroup path says of the container it belongs to. The leftmost container is taken: what
/// a container makes below itself (Docker in Docker, systemd) is still that container's.
///
/// Forms: `/docker/<cid>`, `/ecs/<task>/<cid>` and `/ecs/<cluster>/<task>/<cid>` (cgroup v1),
/// `/ecstasks.slice/ecstasks-<task>.slice/docker-<cid>.scope` and `/system.slice/docker-<cid>.scope`
/// (v2, amazon-ecs-agent PR 3127), `/kubepods…/pod<uid>/<cid>`, `…-pod<uid>.slice/cri-containerd-<cid>.scope`.
pub fn parse(path: &str) -> Option<ContainerPath> {
    let mut found = ContainerPath::default();
    let mut previous = "";
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if let Some(task) = part.strip_prefix("ecstasks-").and_then(|part| part.strip_suffix(".slice")) {
            found.task_id = Some(task.to_owned());
        } else if let Some(pod) = pod_uid(part) {
            found.pod_uid = Some(pod);
        } else if let Some(id) = container_id(part) {
            if path.contains("/ecs/") && is_task_id(previous) {
                found.task_id = Some(previous.to_owned());
            }
            found.id = id.to_owned();
            return Some(found);
        }
        previous = part;
    }
    None
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// 32 hexadecimal digits, or the older form with dashes.
fn is_task_id(text: &str) -> bool {
    (text.len() == 32 && is_hex(text)) || (text.len() == 36 && text.split('-').all(is_hex))
}

/// 64 hexadecimal digits, bare or as `docker-<id>.scope`, or Fargate's `<32 hex>-<digits>`.
fn container_id(part: &str) -> Option<&str> {
    let inner = part.strip_suffix(".scope").unwrap_or(part);
    let last = inner.rsplit(['-', ':']).next().unwrap_or(inner);
    if last.len() == 64 && is_hex(last) {
        return Some(last);
    }
    let (head, tail) = inner.split_once('-')?;
    let fargate = head.len() == 32
        && is_hex(head)
        && (1..=12).contains(&tail.len())
        && tail.bytes().all(|byte| byte.is_ascii_digit());
    fargate.then_some(inner)
}

fn pod_uid(part: &str) -> Option<String> {
    let inner = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match inner.strip_prefix("pod") {
        Some(uid) => uid,
        None => inner.strip_prefix("kubepods-")?.split_once("pod").map(|(_, uid)| uid)?,
    };
    let uid = uid.replace('_', "-");
    ((uid.len() == 36 || uid.len() == 32) && uid.split('-').all(is_hex)).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const TASK: &str = "0123456789abcdef0123456789abcdef";

    fn check(path: &str, id: &str, task: Option<&str>, pod: Option<&str>) {
        let found = parse(path).unwrap_or_else(|| panic!("{path} names no container"));
        assert_eq!((found.id.as_str(), found.task_id.as_deref(), found.pod_uid.as_deref()), (id, task, pod), "{path}");
    }

    #[test]
    fn every_form_in_the_field_is_read() {
        check(&format!("/docker/{CID}"), CID, None, None);
        check(&format!("/ecs/{TASK}/{CID}"), CID, Some(TASK), None);
        check(&format!("/ecs/prod/{TASK}/{CID}"), CID, Some(TASK), None);
        check(&format!("/ecstasks.slice/ecstasks-{TASK}.slice/docker-{CID}.scope"), CID, Some(TASK), None);
        check(&format!("/system.slice/docker-{CID}.scope/init.scope"), CID, None, None);
        let fargate = format!("{TASK}-0123456789");
        check(&format!("/ecs/{TASK}/{fargate}"), &fargate, Some(TASK), None);
        let uid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
        check(&format!("/kubepods/besteffort/pod{uid}/{CID}"), CID, None, Some(uid));
        let systemd =
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
        check(&format!("{systemd}/cri-containerd-{CID}.scope"), CID, None, Some(uid));
        check(&format!("/../../docker/{CID}/docker/{}", CID.replace('0', "f")), CID, None, None);
    }

    #[test]
    fn host_paths_name_no_container() {
        for path in ["/", "", "/system.slice/sshd.service", "/user.slice/user-0.slice", &format!("/job/{TASK}")] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in ".{0,200}") {
            let _ = parse(&path);
        }
    }
}
