//! Reading kernel structures: offsets, pointers, and who a task is.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_boot_ns, bpf_probe_read_kernel};
use core::arch::asm;
use core::mem::{MaybeUninit, size_of};
use tasuki_probe_abi::{ABSENT, Actor, Header, Kind, Offsets, Settings, VERSION};

/// Set by the agent before loading; read-only afterwards.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::UNKNOWN;

/// Set by the agent before loading; read-only afterwards.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = Settings::OPEN;

/// One offset. Volatile, because the value is not the one that the compiler sees.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a plain static of this program.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::OFFSETS.$field) }
    };
}
/// One setting.
macro_rules! setting {
    ($field:ident) => {
        // SAFETY: a plain static of this program.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::SETTINGS.$field) }
    };
}
pub(crate) use {offset, setting};

/// The value at `base + offset`; all zero where it cannot be read. No branch on the outcome: the
/// helper itself clears what it could not fill, and every branch doubles the verifier's work.
#[inline(always)]
pub fn read<T: Copy>(base: u64, offset: u32) -> T {
    let mut out = MaybeUninit::<T>::zeroed();
    if offset != ABSENT {
        let from = base.wrapping_add(u64::from(offset));
        // SAFETY: the helper checks the address itself and fails on a bad one.
        unsafe { bpf_probe_read_kernel(out.as_mut_ptr().cast(), size_of::<T>() as u32, from as *const _) };
    }
    // SAFETY: zeroed or filled; callers read integers and arrays of them only.
    unsafe { out.assume_init() }
}

/// The pointer at `base + offset`; 0 where it cannot be read.
#[inline(always)]
pub fn pointer(base: u64, offset: u32) -> u64 {
    read::<u64>(base, offset)
}

/// The running task.
#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_task() }
}

/// Nanoseconds since boot.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Id of the task's cgroup.
#[inline(always)]
pub fn cgroup(task: u64) -> u64 {
    let mut group = pointer(pointer(task, offset!(task_cgroups)), offset!(css_set_cgroup));
    let through = offset!(css_cgroup);
    if through != ABSENT {
        group = pointer(group, through);
    }
    read(pointer(group, offset!(cgroup_kn)), offset!(kernfs_node_id))
}

/// The process that the task belongs to.
#[inline(always)]
pub fn actor(task: u64) -> Actor {
    Actor {
        pid: read(task, offset!(task_tgid)),
        reserved: 0,
        start: read(pointer(task, offset!(task_group_leader)), offset!(task_start_boottime)),
        cgroup: cgroup(task),
    }
}

/// Front of a record.
#[inline(always)]
pub fn header(kind: Kind, size: usize, actor: Actor) -> Header {
    Header { size: size as u32, version: VERSION, kind: kind as u16, time: now(), actor }
}

/// The same value, of which the compiler knows nothing: a bound that is checked after it stays in
/// the program for the verifier to see.
#[inline(always)]
pub fn opaque(mut value: u64) -> u64 {
    // An instruction and not nothing: two source lines at one instruction are refused by the kernel.
    // SAFETY: copies a register to itself.
    unsafe { asm!("{value} = {value}", value = inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
