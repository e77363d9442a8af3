//! Whether the agent of this container does its job: it answers on an abstract Unix socket, which needs
//! no file system.
//!
//! The socket's name has the number of the container's mount namespace in it, because containers of a
//! task share one network namespace, and with it all abstract names. An answer counts only if it comes
//! from a process of the same user in the same mount namespace: the application cannot give it.

use crate::workload::cgroup::namespace_of;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

/// What a healthy agent answers; anything else is the reason why it is not.
const GOOD: &str = "good\n";
/// Longest answer, bytes.
const LONGEST: u64 = 1024;
/// How long either side waits for the other: a health check has five seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why the agent is not known to be healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// The agent says so.
    #[error("{0}")]
    Says(String),
    /// Nobody answers.
    #[error("no agent answers in this container: {0}")]
    Silent(#[from] io::Error),
    /// Somebody else answers.
    #[error("process {0} answers in the agent's place, and is not the agent")]
    Stranger(i32),
}

fn own_namespace() -> io::Result<u64> {
    namespace_of(std::process::id(), "mnt").ok_or_else(|| io::Error::other("/proc/self/ns/mnt cannot be read"))
}

fn address(namespace: u64) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("tasuki-agent-{namespace}"))
}

/// Answers whoever asks, for as long as the process lives, with what `ready` says.
///
/// # Errors
/// Where the socket or the thread cannot be had; an agent that runs already has the socket.
pub fn serve(ready: impl Fn() -> Result<(), String> + Send + 'static) -> io::Result<()> {
    serve_at(own_namespace()?, ready)
}

fn serve_at(namespace: u64, ready: impl Fn() -> Result<(), String> + Send + 'static) -> io::Result<()> {
    let listener = UnixListener::bind_addr(&address(namespace)?)?;
    let answer = move |mut asker: UnixStream| -> io::Result<()> {
        asker.set_write_timeout(Some(PATIENCE))?;
        let answer = ready().err().unwrap_or_else(|| GOOD.to_owned());
        asker.write_all(answer.as_bytes())
    };
    std::thread::Builder::new().name("health".to_owned()).spawn(move || {
        for asker in listener.incoming() {
            // Who does not take the answer does without; a refused connection must not make a busy loop.
            if asker.and_then(&answer).is_err() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    })?;
    Ok(())
}

/// Asks the agent of this container.
///
/// # Errors
/// Why it is not healthy, in one line.
pub fn ask() -> Result<(), Unhealthy> {
    ask_at(own_namespace()?)
}

fn ask_at(namespace: u64) -> Result<(), Unhealthy> {
    let agent = UnixStream::connect_addr(&address(namespace)?)?;
    let peer = getsockopt(&agent, PeerCredentials).map_err(io::Error::from)?;
    let lives_in = u32::try_from(peer.pid()).ok().and_then(|pid| namespace_of(pid, "mnt"));
    if peer.uid() != rustix::process::geteuid().as_raw() || lives_in != Some(own_namespace()?) {
        return Err(Unhealthy::Stranger(peer.pid()));
    }
    agent.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    agent.take(LONGEST).read_to_string(&mut answer)?;
    match answer.as_str() {
        GOOD => Ok(()),
        reason => Err(Unhealthy::Says(reason.lines().next().unwrap_or("the agent's answer is empty").to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_answer_is_the_agents_own_and_changes_with_it() {
        // No mount namespace has a number this small: nobody else uses it.
        let place = 1;
        assert!(matches!(ask_at(place), Err(Unhealthy::Silent(_))));
        let good = Arc::new(AtomicBool::new(false));
        let state = good.clone();
        serve_at(place, move || state.load(Ordering::Relaxed).then_some(()).ok_or("not\nyet".to_owned())).unwrap();
        assert_eq!(ask_at(place).unwrap_err().to_string(), "not");
        good.store(true, Ordering::Relaxed);
        ask_at(place).unwrap();
        assert!(serve_at(place, || Ok(())).is_err(), "one agent a container");
    }

    /// Needs root.
    #[test]
    fn another_container_cannot_answer_for_the_agent() {
        let python = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0tasuki-agent-2'); s.listen(); \
                      print('up', flush=True); c = s.accept()[0]; c.sendall(b'good\\n'); c.close()";
        let mut stranger =
            Command::new("unshare").args(["--mount", "python3", "-c", python]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = io::BufReader::new(stranger.stdout.take().unwrap());
        io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "up\n", "this test needs python3");
        assert!(matches!(ask_at(2), Err(Unhealthy::Stranger(_))));
        stranger.wait().unwrap();
    }
}
