//! Processes made and ended. Threads are counted as filtered.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use core::mem::size_of;
use tasuki_probe_abi::{ExitRecord, Family, Filter, ForkRecord, Kind};

use crate::count::{Outcome, count};
use crate::kernel::{actor, header, offset, pointer, read};
use crate::limit::within_rate;
use crate::output::{PROCESS, submit};

/// SIGNAL_GROUP_EXIT (include/linux/sched/signal.h).
const GROUP_EXIT: u32 = 4;

/// `sched_process_fork(parent, child)`. Needs 5.8.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    count(Family::Fork, forked(ctx.arg(0), ctx.arg(1)));
    0
}

#[inline(always)]
fn forked(parent: *const u8, child: *const u8) -> Outcome {
    let child = child as u64;
    let child_pid: u32 = read(child, offset!(task_tgid));
    if read::<u32>(child, offset!(task_pid)) != child_pid {
        return Outcome::Filtered(Filter::Thread);
    }
    let parent = actor(parent as u64);
    if !within_rate(parent.cgroup, Family::Fork as u32) {
        return Outcome::Filtered(Filter::Rate);
    }
    submit(
        &PROCESS,
        ForkRecord {
            header: header(Kind::Fork, size_of::<ForkRecord>(), parent),
            child_start: read(child, offset!(task_start_boottime)),
            child_pid,
            reserved: 0,
        },
    )
}

/// `sched_process_exit(task)`: once per thread; the last one ends the process. Needs 5.8.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    count(Family::Exit, exited(ctx.arg(0)));
    0
}

#[inline(always)]
fn exited(task: *const u8) -> Outcome {
    let task = task as u64;
    let signal = pointer(task, offset!(task_signal));
    // do_exit() takes the thread off `live` before the tracepoint: 0 means that none is left.
    if read::<u32>(signal, offset!(signal_live)) != 0 {
        return Outcome::Filtered(Filter::Thread);
    }
    // As wait_task_zombie() computes it.
    let code = if read::<u32>(signal, offset!(signal_flags)) & GROUP_EXIT != 0 {
        read::<i32>(signal, offset!(signal_group_exit_code))
    } else {
        read::<i32>(pointer(task, offset!(task_group_leader)), offset!(task_exit_code))
    };
    submit(&PROCESS, ExitRecord { header: header(Kind::Exit, size_of::<ExitRecord>(), actor(task)), code, reserved: 0 })
}
