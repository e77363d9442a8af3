//! Paths, by walking directory entries up to the process's own root. `bpf_d_path` is not allowed
//! in tracepoints; the walk costs about 60 ns a component.

use tasuki_probe_abi::{EXEC_PATH, PATH_DEPTH};

use crate::kernel::{offset, pointer};
use crate::text::Writer;

/// Longest component with its end mark (NAME_MAX is 255).
const COMPONENT: u32 = 256;

/// Where a path begins, and where it ends.
#[derive(Clone, Copy)]
pub struct Walk {
    /// `struct dentry`.
    pub dentry: u64,
    /// `struct vfsmount`.
    pub mount: u64,
    /// The process's root: `struct dentry`.
    pub root_dentry: u64,
    /// The process's root: `struct vfsmount`.
    pub root_mount: u64,
}

/// Appends the components, the leaf first, each ended by NUL. Gives whether the walk reached a root.
#[inline(always)]
pub fn write(writer: &Writer, mut walk: Walk) -> bool {
    let start = writer.cursor();
    for _ in 0..PATH_DEPTH {
        if walk.dentry == walk.root_dentry && walk.mount == walk.root_mount {
            return true;
        }
        if walk.dentry == pointer(walk.mount, offset!(vfsmount_root)) {
            // Root of a mount: go on where it is mounted.
            let mount = walk.mount.wrapping_sub(u64::from(offset!(mount_mnt)));
            let above = pointer(mount, offset!(mount_parent));
            if above == mount {
                return true;
            }
            walk.dentry = pointer(mount, offset!(mount_mountpoint));
            walk.mount = above.wrapping_add(u64::from(offset!(mount_mnt)));
            continue;
        }
        if writer.cursor().wrapping_sub(start) > EXEC_PATH
            || writer.kernel_text(COMPONENT, pointer(walk.dentry, offset!(dentry_name))) == 0
        {
            return false;
        }
        let parent = pointer(walk.dentry, offset!(dentry_parent));
        if parent == walk.dentry {
            // A file that was never in a directory, such as a memfd.
            return true;
        }
        walk.dentry = parent;
    }
    false
}
