//! Reading cgroup paths: which container, ECS task and pod they name.

use super::ContainerPath;
use super::kubernetes::is_uid;

/// What a cgroup path says of the container it belongs to. The leftmost container is taken: what
/// a container makes below itself (Docker in Docker, systemd) is still that container's.
///
/// Forms: `/docker/<cid>`, `/ecs/<task>/<cid>` and `/ecs/<cluster>/<task>/<cid>` (cgroup v1),
/// `/ecstasks.slice/ecstasks-<task>.slice/docker-<cid>.scope` and `/system.slice/docker-<cid>.scope`
/// (v2, amazon-ecs-agent PR 3127).
/// Kubernetes, by the kubelet's cgroup driver (pkg/kubelet/cm/cgroup_manager_linux.go) and the runtime:
/// cgroupfs `/kubepods[/<class>]/pod<uid>/<cid>`, CRI-O with `crio-` before the id; systemd
/// `/kubepods.slice[/kubepods-<class>.slice]/kubepods[-<class>]-pod<uid>.slice/<runtime>-<cid>.scope`, `_` for
/// `-` in the uid; below a `--cgroup-root` the names begin with it (`kubelet-kubepods-…` in kind); and
/// `…/kubepods-<class>-pod<uid>.slice:cri-containerd:<cid>` where the runtime was not told of systemd.
/// Seen from another cgroup namespace they begin with `/..`, and the pod may be missing from them.
pub fn parse(path: &str) -> Option<ContainerPath> {
    let mut found = ContainerPath::default();
    let mut previous = "";
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if let Some(task) = part.strip_prefix("ecstasks-").and_then(|part| part.strip_suffix(".slice")) {
            found.task_id = Some(task.to_owned());
        } else if let Some(pod) = pod_uid(part) {
            found.pod_uid = Some(pod);
        } else if let Some(id) = container_id(part) {
            if let Some((slice, _)) = part.split_once(':') {
                found.pod_uid = pod_uid(slice).or(found.pod_uid);
            }
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
    // CRI-O's monitor of a container is a process of the host's.
    if inner.starts_with("crio-conmon-") {
        return None;
    }
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

/// `pod<uid>` (cgroupfs) or `[<root>-]kubepods[-<class>]-pod<uid>.slice` (systemd).
fn pod_uid(part: &str) -> Option<String> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").filter(|(class, _)| class.contains("kubepods"))?.1,
        None => part.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    is_uid(&uid).then_some(uid)
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
        check(&format!("/../../docker/{CID}/docker/{}", CID.replace('0', "f")), CID, None, None);
    }

    #[test]
    fn every_layout_of_kubernetes_is_read() {
        let uid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
        let cut = uid.replace('-', "_");
        for path in [
            // cgroupfs: containerd and Docker, CRI-O; guaranteed pods have no class.
            format!("/kubepods/besteffort/pod{uid}/{CID}"),
            format!("/kubepods/pod{uid}/{CID}"),
            format!("/kubepods/burstable/pod{uid}/crio-{CID}"),
            format!("/kubelet/kubepods/burstable/pod{uid}/{CID}"),
            // systemd: containerd, CRI-O, Docker.
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{cut}.slice/cri-containerd-{CID}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{cut}.slice/cri-containerd-{CID}.scope"),
            format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{cut}.slice/crio-{CID}.scope"),
            format!("/kubepods.slice/kubepods-pod{cut}.slice/docker-{CID}.scope"),
            // CRI-O since 1.30 may put the container below its own scope.
            format!("/kubepods.slice/kubepods-pod{cut}.slice/crio-{CID}.scope/container"),
            // kind: the kubelet's own root before each name.
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{cut}.slice/cri-containerd-{CID}.scope"
            ),
            // A kubelet with systemd and a containerd without.
            format!("/system.slice/containerd.service/kubepods-burstable-pod{cut}.slice:cri-containerd:{CID}"),
            format!("/kubepods-besteffort-pod{cut}.slice:cri-containerd:{CID}"),
            // From another cgroup namespace.
            format!("/../../pod{uid}/{CID}"),
            format!("/../../../besteffort/pod{uid}/{CID}/init.scope"),
            format!("/../../kubepods-besteffort-pod{cut}.slice/cri-containerd-{CID}.scope"),
            // What runs inside of a container is the container's.
            format!("/kubepods/besteffort/pod{uid}/{CID}/docker/{}", CID.replace('0', "f")),
            format!(
                "/kubepods.slice/kubepods-pod{cut}.slice/cri-containerd-{CID}.scope/kubepods/pod{}/{}",
                uid.replace('f', "e"),
                CID.replace('0', "f")
            ),
        ] {
            check(&path, CID, None, Some(uid));
        }
        // A static pod is known by the hash of its file; a neighbour in the own pod by its id alone.
        check(&format!("/kubepods/burstable/pod{TASK}/{CID}"), CID, None, Some(TASK));
        check(&format!("/../cri-containerd-{CID}.scope"), CID, None, None);
        // An uid that is none names no pod.
        check(&format!("/kubepods/pod..{}/{CID}", &uid[2..]), CID, None, None);
        check(&format!("/x-pod{cut}.slice/cri-containerd-{CID}.scope"), CID, None, None);
    }

    #[test]
    fn host_paths_name_no_container() {
        let cut = "f81d4fae_7dec_11d0_a765_00a0c91e6bf6";
        let monitor = format!("/kubepods.slice/kubepods-pod{cut}.slice/crio-conmon-{CID}.scope");
        let pod = format!("/kubepods.slice/kubepods-pod{cut}.slice");
        for path in [
            "/",
            "",
            "/system.slice/sshd.service",
            "/user.slice/user-0.slice",
            "/system.slice/kubelet.service",
            "/kubepods.slice/kubepods-besteffort.slice",
            &format!("/job/{TASK}"),
            &monitor,
            &pod,
        ] {
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
