//! Whether the programs at kernel functions are met at all.

use aya::Ebpf;
use aya::maps::PerCpuArray;
use std::net::UdpSocket;
use std::time::Duration;

/// What the kernel hands over on loopback comes at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends datagrams to itself and looks whether the programs ran. IPv6 counts only where there is any.
///
/// # Errors
/// The first program that did not, or why there was nothing to see.
pub(super) fn datagrams(ebpf: &Ebpf) -> Result<(), String> {
    let send = |address: &str| -> std::io::Result<()> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"tasuki", socket.local_addr()?)?;
        socket.recv(&mut [0; 8]).map(drop)
    };
    let mut last = runs(ebpf)?;
    for (address, sent) in [("127.0.0.1:0", 0), ("[::1]:0", 1)] {
        if let Err(error) = send(address) {
            if sent == 1 {
                continue;
            }
            return Err(format!("no datagram could be sent over loopback to see whether it is met: {error}"));
        }
        let now = runs(ebpf)?;
        for (program, name) in [(sent, ["ip_send_skb", "ip6_send_skb"][sent]), (2, "skb_consume_udp")] {
            if now[program] == last[program] {
                return Err(format!("{name} was not met when a datagram was sent over loopback"));
            }
        }
        last = now;
    }
    Ok(())
}

/// How often each of them ran: `sent4`, `sent6`, `received`.
pub(super) fn runs(ebpf: &Ebpf) -> Result<[u64; 3], String> {
    let wrong = |error: &dyn std::fmt::Display| format!("the runs of its programs cannot be read: {error}");
    let map = ebpf.map("RUNS").ok_or_else(|| wrong(&"there is no such map"))?;
    let map: PerCpuArray<_, u64> = map.try_into().map_err(|error: aya::maps::MapError| wrong(&error))?;
    let mut runs = [0; 3];
    for (index, runs) in runs.iter_mut().enumerate() {
        *runs = map.get(&(index as u32), 0).map_err(|error| wrong(&error))?.iter().sum();
    }
    Ok(runs)
}
