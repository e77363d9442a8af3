//! The task's cgroup, `/ecs/<task id>`: the engine puts the task's containers below it, and it holds
//! the limits of the task as a whole, as the ECS agent's own does.

use crate::runtime::TaskSpec;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The cgroup parent of a task's containers.
pub(super) fn parent(spec: &TaskSpec) -> String {
    format!("/ecs/{}", spec.task_id)
}

/// Sets the task's CPU and memory limits. Only the v1 hierarchies and the unified one at their usual
/// places are tried: an engine in a mount namespace of its own may have others, and there the
/// containers' own limits are all that holds.
pub(super) fn limit(spec: &TaskSpec) {
    let memory = spec.memory.map(|mib| (u64::from(mib) << 20).to_string());
    // 100 ms periods; 1024 CPU units are one processor.
    let quota = spec.cpu.map(|units| u64::from(units) * 100_000 / 1024);
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let result = if unified {
        let directory = Path::new("/sys/fs/cgroup").join(parent(spec).trim_start_matches('/'));
        write_all(&directory, [("memory.max", memory), ("cpu.max", quota.map(|q| format!("{q} 100000")))])
    } else {
        let directory =
            |controller: &str| Path::new("/sys/fs/cgroup").join(controller).join(parent(spec).trim_start_matches('/'));
        write_all(
            &directory("memory"),
            [("memory.use_hierarchy", Some("1".to_owned())), ("memory.limit_in_bytes", memory)],
        )
        .and_then(|()| write_all(&directory("cpu"), [("cpu.cfs_quota_us", quota.map(|q| q.to_string()))]))
    };
    if let Err(error) = result {
        tracing::warn!(task = spec.task_arn, %error, "the task's own limits are not set");
    }
}

fn write_all<const N: usize>(directory: &Path, files: [(&str, Option<String>); N]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for (file, value) in files {
        if let Some(value) = value {
            // use_hierarchy is fixed on newer kernels and refuses the write that would set it.
            match fs::write(directory.join(file), value) {
                Err(error) if file != "memory.use_hierarchy" => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Removes the task's empty cgroup from every hierarchy.
pub(super) fn remove(spec: &TaskSpec) {
    let own = parent(spec);
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        // Absent in most of them, and not empty only while a container is still going.
        let _ = fs::remove_dir(hierarchy.join(own.trim_start_matches('/')));
    }
}
