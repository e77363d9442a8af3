//! Resolves every field that the probes read, and says which program lacks what.

use super::btf::Types;
use super::cgroups::Hierarchy;
use std::path::Path;
use tasuki_probe_abi::{ABSENT, Offsets};

/// Reads the offsets of the running kernel. What is missing stays [`ABSENT`].
pub(super) fn resolve(types: &Types, hierarchy: &Hierarchy, modules: &Path) -> Offsets {
    let at = |name: &str, path: &str| types.offset(name, path).unwrap_or(ABSENT);
    // The first of several shapes that the field has had.
    let first =
        |shapes: &[(&str, &str)]| shapes.iter().find_map(|(name, path)| types.offset(name, path)).unwrap_or(ABSENT);
    let mut offsets = Offsets {
        task_pid: at("task_struct", "pid"),
        task_tgid: at("task_struct", "tgid"),
        task_group_leader: at("task_struct", "group_leader"),
        task_real_parent: at("task_struct", "real_parent"),
        task_start_boottime: at("task_struct", "start_boottime"),
        task_comm: at("task_struct", "comm"),
        task_cred: at("task_struct", "cred"),
        task_cgroups: at("task_struct", "cgroups"),
        task_nsproxy: at("task_struct", "nsproxy"),
        task_thread_pid: at("task_struct", "thread_pid"),
        task_files: at("task_struct", "files"),
        task_fs: at("task_struct", "fs"),
        task_mm: at("task_struct", "mm"),
        task_signal: at("task_struct", "signal"),
        task_exit_code: at("task_struct", "exit_code"),
        signal_live: at("signal_struct", "live"),
        signal_flags: at("signal_struct", "flags"),
        signal_group_exit_code: at("signal_struct", "group_exit_code"),
        css_set_cgroup: at("css_set", "dfl_cgrp"),
        css_cgroup: ABSENT,
        cgroup_kn: at("cgroup", "kn"),
        kernfs_node_id: at("kernfs_node", "id"),
        cred_uid: at("cred", "uid"),
        cred_euid: at("cred", "euid"),
        cred_gid: at("cred", "gid"),
        cred_cap_effective: at("cred", "cap_effective"),
        nsproxy_mnt_ns: at("nsproxy", "mnt_ns"),
        mnt_namespace_inum: at("mnt_namespace", "ns.inum"),
        pid_level: at("pid", "level"),
        pid_numbers: at("pid", "numbers"),
        upid_size: types.size("upid").unwrap_or(ABSENT),
        upid_nr: at("upid", "nr"),
        upid_ns: at("upid", "ns"),
        pid_namespace_inum: at("pid_namespace", "ns.inum"),
        mm_arg_start: at("mm_struct", "arg_start"),
        mm_arg_end: at("mm_struct", "arg_end"),
        mm_env_start: at("mm_struct", "env_start"),
        mm_env_end: at("mm_struct", "env_end"),
        binprm_file: at("linux_binprm", "file"),
        binprm_filename: at("linux_binprm", "filename"),
        binprm_interp: at("linux_binprm", "interp"),
        file_inode: at("file", "f_inode"),
        file_dentry: at("file", "f_path.dentry"),
        file_mnt: at("file", "f_path.mnt"),
        file_private_data: at("file", "private_data"),
        inode_ino: at("inode", "i_ino"),
        inode_mode: at("inode", "i_mode"),
        inode_uid: at("inode", "i_uid"),
        inode_nlink: at("inode", "i_nlink"),
        inode_size: at("inode", "i_size"),
        inode_rdev: at("inode", "i_rdev"),
        inode_sb: at("inode", "i_sb"),
        // 6.11, 6.6, and before.
        inode_ctime_sec: first(&[("inode", "i_ctime_sec"), ("inode", "__i_ctime.tv_sec"), ("inode", "i_ctime.tv_sec")]),
        inode_ctime_nsec: first(&[
            ("inode", "i_ctime_nsec"),
            ("inode", "__i_ctime.tv_nsec"),
            ("inode", "i_ctime.tv_nsec"),
        ]),
        sb_dev: at("super_block", "s_dev"),
        sb_magic: at("super_block", "s_magic"),
        sb_flags: at("super_block", "s_flags"),
        ovl_upper: overlay_upper(types, modules),
        dentry_name: first(&[("dentry", "d_name.name"), ("dentry", "__d_name.name")]),
        dentry_parent: at("dentry", "d_parent"),
        fs_root_dentry: at("fs_struct", "root.dentry"),
        fs_root_mnt: at("fs_struct", "root.mnt"),
        fs_pwd_dentry: at("fs_struct", "pwd.dentry"),
        fs_pwd_mnt: at("fs_struct", "pwd.mnt"),
        vfsmount_root: at("vfsmount", "mnt_root"),
        mount_mnt: at("mount", "mnt"),
        mount_parent: at("mount", "mnt_parent"),
        mount_mountpoint: at("mount", "mnt_mountpoint"),
        files_fdt: at("files_struct", "fdt"),
        fdtable_fd: at("fdtable", "fd"),
        fdtable_max: at("fdtable", "max_fds"),
        socket_sk: at("socket", "sk"),
        sock_protocol: at("sock", "sk_protocol"),
        sock_family: at("sock", "__sk_common.skc_family"),
        sock_daddr: at("sock", "__sk_common.skc_daddr"),
        sock_saddr: at("sock", "__sk_common.skc_rcv_saddr"),
        sock_dport: at("sock", "__sk_common.skc_dport"),
        sock_num: at("sock", "__sk_common.skc_num"),
        sock_v6_daddr: at("sock", "__sk_common.skc_v6_daddr"),
        sock_v6_saddr: at("sock", "__sk_common.skc_v6_rcv_saddr"),
        sock_net: at("sock", "__sk_common.skc_net"),
        skb_sock: at("sk_buff", "sk"),
        skb_head: at("sk_buff", "head"),
        skb_tail: at("sk_buff", "tail"),
        skb_network_header: at("sk_buff", "network_header"),
        skb_transport_header: at("sk_buff", "transport_header"),
    };
    if hierarchy.controller.is_some() {
        offsets.css_cgroup = at("cgroup_subsys_state", "cgroup");
        offsets.css_set_cgroup = match (hierarchy.index(types), types.offset("css_set", "subsys")) {
            (Some(index), Some(table)) => table + index * 8,
            _ => ABSENT,
        };
    }
    offsets
}

/// The overlay file system is often a module, with type information of its own.
fn overlay_upper(types: &Types, modules: &Path) -> u32 {
    let within = |types: &Types| {
        let upper = types.offset("ovl_inode", "__upperdentry")?;
        upper.checked_sub(types.offset("ovl_inode", "vfs_inode")?)
    };
    within(types)
        .or_else(|| {
            let raw = std::fs::read(modules.join("overlay")).ok()?;
            within(&Types::parse_module(&raw, types).ok()?)
        })
        .unwrap_or(ABSENT)
}

/// What each program cannot do without.
const NEEDS: [(&str, &[&str]); 7] = [
    (
        "process_exec",
        &[
            "task_tgid",
            "task_group_leader",
            "task_start_boottime",
            "task_real_parent",
            "task_cgroups",
            "css_set_cgroup",
            "cgroup_kn",
            "kernfs_node_id",
            "task_cred",
            "cred_uid",
            "cred_euid",
            "task_mm",
            "mm_arg_start",
            "mm_arg_end",
            "binprm_file",
            "binprm_filename",
            "file_inode",
            "inode_ino",
            "inode_sb",
            "sb_dev",
        ],
    ),
    (
        "process_fork",
        &["task_pid", "task_tgid", "task_group_leader", "task_start_boottime", "task_cgroups", "css_set_cgroup"],
    ),
    (
        "process_exit",
        &[
            "task_tgid",
            "task_group_leader",
            "task_start_boottime",
            "task_signal",
            "signal_live",
            "signal_flags",
            "signal_group_exit_code",
            "task_exit_code",
        ],
    ),
    (
        "socket_state",
        &[
            "sock_protocol",
            "sock_family",
            "sock_daddr",
            "sock_saddr",
            "sock_dport",
            "sock_num",
            "task_tgid",
            "task_start_boottime",
        ],
    ),
    ("sent4", &DATAGRAM),
    ("sent6", &DATAGRAM),
    ("received", &DATAGRAM),
];

const DATAGRAM: [&str; 8] = [
    "sock_protocol",
    "skb_sock",
    "skb_head",
    "skb_tail",
    "skb_network_header",
    "skb_transport_header",
    "task_tgid",
    "task_start_boottime",
];

/// Fields that a program needs and this kernel does not have.
pub(super) fn missing(offsets: &Offsets, program: &str) -> Vec<&'static str> {
    let needs = NEEDS.iter().find(|(name, _)| *name == program).map_or(&[][..], |(_, needs)| needs);
    offsets.absent().filter(|name| needs.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_every_field_that_a_program_needs() {
        let types = Types::parse(&std::fs::read("/sys/kernel/btf/vmlinux").unwrap()).unwrap();
        let hierarchy = Hierarchy::of_host();
        let offsets = resolve(&types, &hierarchy, Path::new("/sys/kernel/btf"));
        for (program, needs) in NEEDS {
            assert_eq!(missing(&offsets, program), Vec::<&str>::new(), "{program}");
            // Every name in the table is a field: it is missing where nothing is resolved.
            assert_eq!(missing(&Offsets::UNKNOWN, program).len(), needs.len(), "{program}");
        }
        let allowed = ["css_cgroup"];
        let absent: Vec<_> = offsets.absent().filter(|name| !allowed.contains(name)).collect();
        assert_eq!(absent, Vec::<&str>::new());
    }

    #[test]
    fn a_missing_field_is_named() {
        let types = Types::parse(&std::fs::read("/sys/kernel/btf/vmlinux").unwrap()).unwrap();
        let mut offsets = resolve(&types, &Hierarchy::of_host(), Path::new("/sys/kernel/btf"));
        offsets.signal_live = ABSENT;
        assert_eq!(missing(&offsets, "process_exit"), ["signal_live"]);
        assert!(missing(&offsets, "process_fork").is_empty());
    }
}
