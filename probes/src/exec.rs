//! Programs started. Everything is read inside the program, at the moment when the new image is
//! in place and before its first instruction.

use aya_ebpf::{helpers::generated::bpf_ringbuf_output, macros::btf_tracepoint, programs::BtfTracePointContext};
use core::mem::size_of;
use tasuki_probe_abi::{
    ABSENT, EXEC_ARGUMENTS, EXEC_ENVIRONMENT, EXEC_FILENAME, EXEC_INTERPRETER, ExecRecord, Family, FileRecord, Filter,
    Kind, NAME, exec_flags,
};

use crate::count::{Outcome, count};
use crate::kernel::{actor, header, offset, opaque, pointer, read, setting};
use crate::limit::within_rate;
use crate::output::{PROCESS, wake};
use crate::path::{self, Walk};
use crate::stdio;
use crate::text::Writer;

/// SB_KERNMOUNT (include/linux/fs.h).
const KERNEL_MOUNT: u64 = 1 << 22;
/// OVERLAYFS_SUPER_MAGIC (include/uapi/linux/magic.h).
const OVERLAY_MAGIC: u64 = 0x794c_7630;
/// I_CTIME_QUERIED, kept in the nanoseconds since 6.13 (include/linux/fs.h).
const CTIME_QUERIED: u32 = 1 << 31;

/// `sched_process_exec(task, old_pid, binprm)`. Needs 5.8.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(ctx: BtfTracePointContext) -> i32 {
    count(Family::Exec, executed(ctx.arg(0), ctx.arg(2)));
    0
}

#[inline(always)]
fn executed(task: *const u8, binprm: *const u8) -> Outcome {
    let (task, binprm) = (task as u64, binprm as u64);
    let who = actor(task);
    let own = setting!(own_pid);
    if own != 0 && who.pid == own {
        return Outcome::Filtered(Filter::Own);
    }
    if !within_rate(who.cgroup, Family::Exec as u32) {
        return Outcome::Filtered(Filter::Rate);
    }
    let Some(mut writer) = Writer::begin() else { return Outcome::MapFull };
    let record = writer.record();

    let parent = pointer(pointer(task, offset!(task_real_parent)), offset!(task_group_leader));
    record.parent_pid = read(parent, offset!(task_tgid));
    record.parent_start = read(parent, offset!(task_start_boottime));
    record.flags = 0;
    record.previous_euid = u32::MAX;
    record.name = read::<[u8; NAME]>(task, offset!(task_comm));

    let cred = pointer(task, offset!(task_cred));
    record.uid = read(cred, offset!(cred_uid));
    record.euid = read(cred, offset!(cred_euid));
    record.gid = read(cred, offset!(cred_gid));
    record.capabilities = read(cred, offset!(cred_cap_effective));

    let namespaces = pointer(task, offset!(task_nsproxy));
    record.mount_namespace = read(pointer(namespaces, offset!(nsproxy_mnt_ns)), offset!(mnt_namespace_inum));
    let pid = pointer(task, offset!(task_thread_pid));
    let level: u32 = read(pid, offset!(pid_level));
    let number = pid + u64::from(offset!(pid_numbers)) + u64::from(level & 31) * u64::from(offset!(upid_size));
    record.namespace_pid = read(number, offset!(upid_nr));
    record.pid_namespace = read(pointer(number, offset!(upid_ns)), offset!(pid_namespace_inum));

    let file = pointer(binprm, offset!(binprm_file));
    record.flags |= describe(file, &mut record.file);
    let descriptors = stdio::of_task(task);
    record.stdio[0] = stdio::look(&descriptors, 0);
    record.stdio[1] = stdio::look(&descriptors, 1);
    record.stdio[2] = stdio::look(&descriptors, 2);

    let text = append_text(&mut writer, task, binprm, file);
    let size = size_of::<ExecRecord>() + writer.cursor();
    let record = writer.record();
    record.flags |= text;
    record.header = header(Kind::Exec, size, who);
    // SAFETY: `size` is at most the record and the masked part of its text, which lie one after the other.
    let result = unsafe {
        bpf_ringbuf_output((&raw const PROCESS).cast_mut().cast(), writer.start().cast(), size as u64, wake())
    };
    if result == 0 { Outcome::Submitted } else { Outcome::RingFull }
}

/// Fills the file's identity; gives the flags.
#[inline(always)]
fn describe(file: u64, out: &mut FileRecord) -> u32 {
    let inode = pointer(file, offset!(file_inode));
    let superblock = pointer(inode, offset!(inode_sb));
    *out = FileRecord {
        inode: read(inode, offset!(inode_ino)),
        size: read(inode, offset!(inode_size)),
        ctime: read(inode, offset!(inode_ctime_sec)),
        ctime_nanoseconds: read::<u32>(inode, offset!(inode_ctime_nsec)) & !CTIME_QUERIED,
        device: read(superblock, offset!(sb_dev)),
        links: read(inode, offset!(inode_nlink)),
        mode: u32::from(read::<u16>(inode, offset!(inode_mode))),
        owner: read(inode, offset!(inode_uid)),
        reserved: 0,
    };
    let mut flags = 0;
    if read::<u64>(superblock, offset!(sb_flags)) & KERNEL_MOUNT != 0 {
        flags |= exec_flags::KERNEL_MOUNT;
    }
    let upper = offset!(ovl_upper);
    if upper != ABSENT && read::<u64>(superblock, offset!(sb_magic)) == OVERLAY_MAGIC {
        flags |= exec_flags::OVERLAY;
        if pointer(inode, upper) != 0 {
            flags |= exec_flags::UPPER;
        }
    }
    flags
}

/// Appends every text in its order and notes the lengths; gives the flags.
#[inline(always)]
fn append_text(writer: &mut Writer, task: u64, binprm: u64, file: u64) -> u32 {
    let mut flags = 0;
    let filename = pointer(binprm, offset!(binprm_filename));
    let interpreter = pointer(binprm, offset!(binprm_interp));
    let length = writer.kernel_text(EXEC_FILENAME as u32, filename) as u16;
    writer.record().filename_length = length;
    writer.record().interpreter_length = 0;
    if interpreter != filename {
        flags |= exec_flags::SCRIPT;
        let length = writer.kernel_text(EXEC_INTERPRETER as u32, interpreter) as u16;
        writer.record().interpreter_length = length;
    }

    let fs = pointer(task, offset!(task_fs));
    let root_dentry = pointer(fs, offset!(fs_root_dentry));
    let root_mount = pointer(fs, offset!(fs_root_mnt));
    let start = writer.cursor();
    let walk = Walk {
        dentry: pointer(file, offset!(file_dentry)),
        mount: pointer(file, offset!(file_mnt)),
        root_dentry,
        root_mount,
    };
    if !path::write(writer, walk) {
        flags |= exec_flags::EXECUTABLE_CUT;
    }
    let end = writer.cursor();
    writer.record().executable_length = end.wrapping_sub(start) as u16;
    let walk = Walk {
        dentry: pointer(fs, offset!(fs_pwd_dentry)),
        mount: pointer(fs, offset!(fs_pwd_mnt)),
        root_dentry,
        root_mount,
    };
    if !path::write(writer, walk) {
        flags |= exec_flags::CWD_CUT;
    }
    let start = end;
    let end = writer.cursor();
    writer.record().cwd_length = end.wrapping_sub(start) as u16;

    let mm = pointer(task, offset!(task_mm));
    if arguments(writer, mm) {
        flags |= exec_flags::TRUNCATED;
    }
    let start = end;
    let end = writer.cursor();
    writer.record().arguments_length = end.wrapping_sub(start) as u16;
    environment(writer, mm);
    let length = writer.cursor().wrapping_sub(end) as u16;
    writer.record().environment_length = length;
    flags
}

/// Copies the arguments; gives whether some are missing. The pages were written by execve itself a
/// moment ago, so they are present unless memory is very short.
#[inline(always)]
fn arguments(writer: &Writer, mm: u64) -> bool {
    let start: u64 = read(mm, offset!(mm_arg_start));
    let end: u64 = read(mm, offset!(mm_arg_end));
    let mut length = opaque(end.wrapping_sub(start));
    let cut = length > EXEC_ARGUMENTS as u64;
    if cut {
        length = EXEC_ARGUMENTS as u64;
    }
    !writer.user_bytes(length as u32, start) || cut
}

/// Variables that are looked at; a process with more hides the later ones.
const VARIABLES: usize = 128;

/// Copies variables of the dynamic loader (`LD_…`).
#[inline(always)]
fn environment(writer: &Writer, mm: u64) {
    let mut from: u64 = read(mm, offset!(mm_env_start));
    let end: u64 = read(mm, offset!(mm_env_end));
    let start = writer.cursor();
    for _ in 0..VARIABLES {
        let used = writer.cursor().wrapping_sub(start);
        if from >= end || used >= EXEC_ENVIRONMENT {
            break;
        }
        let length = writer.loader_variable(from, EXEC_ENVIRONMENT - used);
        if length == 0 {
            break;
        }
        from = from.wrapping_add(length);
    }
}
