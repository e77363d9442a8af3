//! What the sockets of a living process are: asked only for the rare shell that starts with a
//! terminal or under a service, never per event.

use crate::event::{ProcessKey, Stdio};
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};
use std::collections::HashSet;

/// Descriptors of one process that are looked at.
const MAX_DESCRIPTORS: usize = 1_024;

/// What descriptors 0, 1 and 2 of a process are now; connected internet sockets with their peer.
pub fn stdio(key: ProcessKey) -> Option<[Stdio; 3]> {
    let process = same(key)?;
    let mut sockets = None;
    Some([0, 1, 2].map(|number| match process.fd_from_fd(number).map(|fd| fd.target) {
        Ok(FDTarget::Socket(inode)) => {
            let entries = sockets.get_or_insert_with(|| tcp(&process));
            entries
                .iter()
                .find(|entry| entry.inode == inode && entry.state != TcpState::Listen)
                .map_or(Stdio::Unknown, |entry| Stdio::Socket(Some(entry.remote_address)))
        }
        Ok(FDTarget::Path(path)) if path.starts_with("/dev/pts") || path.starts_with("/dev/tty") => Stdio::Terminal,
        Ok(FDTarget::Pipe(_)) => Stdio::Pipe,
        Ok(_) => Stdio::Other,
        Err(_) => Stdio::Unknown,
    }))
}

/// Whether a process holds a listening TCP socket.
pub fn listens(key: ProcessKey) -> Option<bool> {
    let process = same(key)?;
    let inodes: HashSet<u64> = process
        .fd()
        .ok()?
        .take(MAX_DESCRIPTORS)
        .flatten()
        .filter_map(|fd| match fd.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    Some(tcp(&process).iter().any(|entry| entry.state == TcpState::Listen && inodes.contains(&entry.inode)))
}

fn same(key: ProcessKey) -> Option<Process> {
    (super::snapshot::key_of(key.pid)? == key).then_some(())?;
    Process::new(i32::try_from(key.pid).ok()?).ok()
}

fn tcp(process: &Process) -> Vec<TcpNetEntry> {
    let mut entries = process.tcp().unwrap_or_default();
    entries.extend(process.tcp6().unwrap_or_default());
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio as Handle};

    #[test]
    fn a_child_with_a_connected_socket_for_input_is_seen_and_this_process_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let own = crate::process::snapshot::key_of(std::process::id()).unwrap();
        assert_eq!(listens(own), Some(true));
        let client = std::net::TcpStream::connect(address).unwrap();
        let mut child = Command::new("/bin/cat").stdin(Handle::from(OwnedFd::from(client))).spawn().unwrap();
        let key = crate::process::snapshot::key_of(child.id()).unwrap();
        assert_eq!(stdio(key).unwrap()[0], Stdio::Socket(Some(address)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(stdio(key), None, "a process that is gone has no descriptors");
    }
}
