//! Responses: what the agent does about a finding where the monitor says so.

use super::turn::Turn;
use crate::event::ProcessKey;
use crate::process::snapshot;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::VecDeque;
use tasuki_api::desired::Response;
use tasuki_api::finding::ResponseTaken;

/// Processes that an agent ends in a minute, at most: a rule gone wrong must not empty a node.
pub const MAX_KILLS: usize = 20;
const MINUTE_NS: u64 = 60 * 1_000_000_000;

/// Carries responses out.
#[derive(Debug, Default)]
pub struct Responder {
    kills: VecDeque<u64>,
    live: bool,
    turn: Option<Turn>,
}

impl Responder {
    /// A responder; one that is not live does nothing and says so.
    pub fn new(live: bool) -> Self {
        Self { kills: VecDeque::new(), live, turn: None }
    }

    /// Acts only while it holds the node's lock.
    #[must_use]
    pub fn in_turn(self, turn: Turn) -> Self {
        Self { turn: Some(turn), ..self }
    }

    /// Does what is wanted about a process, at `time` since boot.
    pub fn respond(
        &mut self,
        wanted: Response,
        process: Option<ProcessKey>,
        in_container: bool,
        time: u64,
    ) -> ResponseTaken {
        let outcome = match wanted {
            Response::Alert => return ResponseTaken::default(),
            Response::Block => {
                Err("this version cannot refuse an operation; Kill ends the process after it".to_owned())
            }
            Response::Kill => self.kill(process, in_container, time),
        };
        ResponseTaken { wanted, done: Some(outcome.is_ok()), detail: outcome.err() }
    }

    fn kill(&mut self, process: Option<ProcessKey>, in_container: bool, time: u64) -> Result<(), String> {
        if !self.live {
            return Err("replayed: nothing is done about recorded events".to_owned());
        }
        let key = process.ok_or("the sensor did not see which process it was")?;
        if !in_container {
            return Err("the process is in no container; only processes in containers are ended".to_owned());
        }
        if key.pid <= 1 {
            return Err("PID 1 of a host is never ended".to_owned());
        }
        if key.pid == std::process::id() || key.pid == std::os::unix::process::parent_id() {
            return Err("the agent does not end itself".to_owned());
        }
        if let Some(turn) = &mut self.turn {
            turn.take()?;
        }
        while self.kills.front().is_some_and(|first| time.saturating_sub(*first) >= MINUTE_NS) {
            self.kills.pop_front();
        }
        if self.kills.len() >= MAX_KILLS {
            return Err(format!("{MAX_KILLS} processes were ended in the last minute; no more until it is over"));
        }
        let pid = i32::try_from(key.pid).ok().and_then(Pid::from_raw).ok_or("not a process id")?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| "the process had ended already")?;
        // The handle is held: if the process is still the one that was seen, it cannot be another's.
        if snapshot::key_of(key.pid) != Some(key) {
            return Err("the process had ended already".to_owned());
        }
        pidfd_send_signal(&handle, Signal::KILL).map_err(|error| format!("could not end the process: {error}"))?;
        self.kills.push_back(time);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    fn child() -> (Child, ProcessKey) {
        let child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        let key = snapshot::key_of(child.id()).unwrap();
        (child, key)
    }

    #[test]
    fn the_process_that_was_seen_is_ended_and_no_other() {
        let mut responder = Responder::new(true);
        let (mut one, key) = child();
        let other = ProcessKey { start: key.start + 10_000_000, ..key };
        assert_eq!(responder.respond(Response::Kill, Some(other), true, 0).done, Some(false));
        assert_eq!(responder.respond(Response::Kill, Some(key), false, 0).done, Some(false), "not in a container");
        assert_eq!(responder.respond(Response::Block, Some(key), true, 0).done, Some(false));
        assert!(one.try_wait().unwrap().is_none());
        assert_eq!(responder.respond(Response::Kill, Some(key), true, 0).done, Some(true));
        assert_eq!(one.wait().unwrap().signal(), Some(9));
        let own = snapshot::key_of(std::process::id()).unwrap();
        assert!(responder.respond(Response::Kill, Some(own), true, 0).detail.unwrap().contains("itself"));
        assert_eq!(Responder::new(false).respond(Response::Kill, Some(own), true, 0).done, Some(false));
    }

    #[test]
    fn of_two_agents_one_ends_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let turn = || Turn::new(directory.path().join("responds"));
        let mut first = Responder::new(true).in_turn(turn());
        let mut second = Responder::new(true).in_turn(turn());
        let (mut one, key) = child();
        let left = second.respond(Response::Kill, Some(key), true, 0);
        assert!(left.done == Some(false) && left.detail.unwrap().contains("other agent"));
        assert!(one.try_wait().unwrap().is_none());
        assert_eq!(first.respond(Response::Kill, Some(key), true, 0).done, Some(true));
        one.wait().unwrap();
        drop(first);
        let (mut one, key) = child();
        assert_eq!(second.respond(Response::Kill, Some(key), true, 0).done, Some(true));
        one.wait().unwrap();
    }

    #[test]
    fn only_so_many_are_ended_in_a_minute() {
        let mut responder = Responder::new(true);
        responder.kills.extend(std::iter::repeat_n(5, MAX_KILLS));
        let (mut one, key) = child();
        let taken = responder.respond(Response::Kill, Some(key), true, MINUTE_NS);
        assert!(taken.detail.unwrap().contains("last minute"));
        assert_eq!(responder.respond(Response::Kill, Some(key), true, MINUTE_NS + 5).done, Some(true));
        one.wait().unwrap();
    }
}
