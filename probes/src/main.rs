//! The eBPF programs of the Tasuki agent. They read kernel structures at offsets that the agent
//! resolved from the running kernel, and hand records to three ring buffers.
//!
//! Guarantees: no program changes what it watches (every cgroup program returns "allow"), and
//! every event that a hook meets ends in exactly one counter (see `count`).
#![no_std]
#![no_main]
// Inline assembly for BPF, for the atomic counters.
#![feature(asm_experimental_arch)]

mod connect;
mod count;
mod datagram;
mod dns;
mod exec;
mod fork;
mod kernel;
mod limit;
mod output;
mod owner;
mod packet;
mod path;
mod socket;
mod stdio;
mod text;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Some helpers are only for programs that say that they are GPL-compatible; this text says it of
/// the object that is loaded, as the kernel's own documentation asks (Documentation/bpf/bpf_licensing.rst).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
