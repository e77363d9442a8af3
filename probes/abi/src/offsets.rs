//! Where the running kernel keeps the fields that the programs read. rustc emits no CO-RE
//! relocations, so the agent resolves them from the kernel's BTF and sets them before loading.

/// The field does not exist in this kernel.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {
        /// Byte offsets, each [`ABSENT`] until resolved.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        pub struct Offsets { $($(#[$meta])* pub $name: u32),+ }

        impl Offsets {
            /// Nothing resolved.
            pub const UNKNOWN: Self = Self { $($name: ABSENT),+ };

            /// Names of the fields that are absent.
            pub fn absent(&self) -> impl Iterator<Item = &'static str> {
                [$((stringify!($name), self.$name)),+].into_iter().filter(|(_, value)| *value == ABSENT).map(|(name, _)| name)
            }
        }
    };
}

offsets! {
    /// `task_struct.pid`.
    task_pid,
    /// `task_struct.tgid`.
    task_tgid,
    /// `task_struct.group_leader`.
    task_group_leader,
    /// `task_struct.real_parent`.
    task_real_parent,
    /// `task_struct.start_boottime`.
    task_start_boottime,
    /// `task_struct.comm`.
    task_comm,
    /// `task_struct.cred`.
    task_cred,
    /// `task_struct.cgroups`.
    task_cgroups,
    /// `task_struct.nsproxy`.
    task_nsproxy,
    /// `task_struct.thread_pid`.
    task_thread_pid,
    /// `task_struct.files`.
    task_files,
    /// `task_struct.fs`.
    task_fs,
    /// `task_struct.mm`.
    task_mm,
    /// `task_struct.signal`.
    task_signal,
    /// `task_struct.exit_code`.
    task_exit_code,
    /// `signal_struct.live`.
    signal_live,
    /// `signal_struct.flags`.
    signal_flags,
    /// `signal_struct.group_exit_code`.
    signal_group_exit_code,
    /// `css_set.dfl_cgrp`, or the entry of `css_set.subsys` that names tasks on a version 1 host.
    css_set_cgroup,
    /// `cgroup_subsys_state.cgroup`; absent means that `css_set_cgroup` already gives the cgroup.
    css_cgroup,
    /// `cgroup.kn`.
    cgroup_kn,
    /// `kernfs_node.id`.
    kernfs_node_id,
    /// `cred.uid`.
    cred_uid,
    /// `cred.euid`.
    cred_euid,
    /// `cred.gid`.
    cred_gid,
    /// `cred.cap_effective`.
    cred_cap_effective,
    /// `nsproxy.mnt_ns`.
    nsproxy_mnt_ns,
    /// `mnt_namespace.ns.inum`.
    mnt_namespace_inum,
    /// `pid.level`.
    pid_level,
    /// `pid.numbers`.
    pid_numbers,
    /// Size of `upid`.
    upid_size,
    /// `upid.nr`.
    upid_nr,
    /// `upid.ns`.
    upid_ns,
    /// `pid_namespace.ns.inum`.
    pid_namespace_inum,
    /// `mm_struct.arg_start`.
    mm_arg_start,
    /// `mm_struct.arg_end`.
    mm_arg_end,
    /// `mm_struct.env_start`.
    mm_env_start,
    /// `mm_struct.env_end`.
    mm_env_end,
    /// `linux_binprm.file`.
    binprm_file,
    /// `linux_binprm.filename`.
    binprm_filename,
    /// `linux_binprm.interp`.
    binprm_interp,
    /// `file.f_inode`.
    file_inode,
    /// `file.f_path.dentry`.
    file_dentry,
    /// `file.f_path.mnt`.
    file_mnt,
    /// `file.private_data`.
    file_private_data,
    /// `inode.i_ino`.
    inode_ino,
    /// `inode.i_mode`.
    inode_mode,
    /// `inode.i_uid`.
    inode_uid,
    /// `inode.i_nlink`.
    inode_nlink,
    /// `inode.i_size`.
    inode_size,
    /// `inode.i_rdev`.
    inode_rdev,
    /// `inode.i_sb`.
    inode_sb,
    /// Seconds of the inode's change time.
    inode_ctime_sec,
    /// Nanoseconds of the inode's change time.
    inode_ctime_nsec,
    /// `super_block.s_dev`.
    sb_dev,
    /// `super_block.s_magic`.
    sb_magic,
    /// `super_block.s_flags`.
    sb_flags,
    /// From an overlay's inode to its `ovl_inode.__upperdentry`.
    ovl_upper,
    /// `dentry.d_name.name`.
    dentry_name,
    /// `dentry.d_parent`.
    dentry_parent,
    /// `fs_struct.root.dentry`.
    fs_root_dentry,
    /// `fs_struct.root.mnt`.
    fs_root_mnt,
    /// `fs_struct.pwd.dentry`.
    fs_pwd_dentry,
    /// `fs_struct.pwd.mnt`.
    fs_pwd_mnt,
    /// `vfsmount.mnt_root`.
    vfsmount_root,
    /// `mount.mnt`.
    mount_mnt,
    /// `mount.mnt_parent`.
    mount_parent,
    /// `mount.mnt_mountpoint`.
    mount_mountpoint,
    /// `files_struct.fdt`.
    files_fdt,
    /// `fdtable.fd`.
    fdtable_fd,
    /// `fdtable.max_fds`.
    fdtable_max,
    /// `socket.sk`.
    socket_sk,
    /// `sock.sk_protocol`.
    sock_protocol,
    /// `sock.__sk_common.skc_family`.
    sock_family,
    /// `sock.__sk_common.skc_daddr`.
    sock_daddr,
    /// `sock.__sk_common.skc_rcv_saddr`.
    sock_saddr,
    /// `sock.__sk_common.skc_dport`.
    sock_dport,
    /// `sock.__sk_common.skc_num`.
    sock_num,
    /// `sock.__sk_common.skc_v6_daddr`.
    sock_v6_daddr,
    /// `sock.__sk_common.skc_v6_rcv_saddr`.
    sock_v6_saddr,
    /// `sock.__sk_common.skc_net`.
    sock_net,
    /// `sk_buff.sk`.
    skb_sock,
    /// `sk_buff.head`.
    skb_head,
    /// `sk_buff.tail`, counted from the head.
    skb_tail,
    /// `sk_buff.network_header`, counted from the head.
    skb_network_header,
    /// `sk_buff.transport_header`, counted from the head.
    skb_transport_header,
}
