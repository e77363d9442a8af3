//! Where a file event belongs among events of processes: after the birth of its process, before the
//! exec of what was written, and before whatever happened after it was read.

use crate::event::{Event, EventKind, FileEvent, ProcessKey};
use std::collections::HashMap;

/// Where processes are born and files run in a batch, which is in the order of time.
pub(super) struct Places<'a> {
    batch: &'a [Event],
    births: HashMap<ProcessKey, usize>,
    ids: HashMap<(u64, u64), Vec<usize>>,
    // Either side may not know the file (an overlay shows one inode, its layer another).
    paths: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Places<'a> {
    pub(super) fn of(batch: &'a [Event]) -> Self {
        let mut places = Self { batch, births: HashMap::default(), ids: HashMap::default(), paths: HashMap::default() };
        for (at, event) in batch.iter().enumerate() {
            match &event.kind {
                EventKind::Fork { child } => drop(places.births.insert(*child, at)),
                EventKind::Exec(exec) => {
                    if let Some(file) = exec.file.filter(|file| file.inode != 0) {
                        places.ids.entry((file.device, file.inode)).or_default().push(at);
                    }
                    if let Some(path) = &exec.executable {
                        places.paths.entry(path).or_default().push(at);
                    }
                }
                _ => {}
            }
        }
        places
    }

    /// Whether the batch runs the file of a file event.
    pub(super) fn runs(&self, event: &Event) -> bool {
        matches!(&event.kind, EventKind::File(written) if self.runs_of(written).next().is_some())
    }

    /// Where the batch runs a file, in ascending order each: known by its id, and by its path.
    fn runs_of(&self, written: &FileEvent) -> impl Iterator<Item = &[usize]> {
        let by_id = written.file.and_then(|file| self.ids.get(&(file.device, file.inode)));
        [by_id, self.paths.get(written.path.as_str())].into_iter().flatten().map(Vec::as_slice)
    }

    /// File events with their places: the index in the batch before which each belongs.
    pub(super) fn place(&self, files: Vec<Event>) -> Vec<(usize, Event)> {
        files.into_iter().map(|event| (self.before(&event), event)).collect()
    }

    fn before(&self, event: &Event) -> usize {
        let EventKind::File(written) = &event.kind else { return self.batch.len() };
        let birth = event.process.and_then(|key| self.births.get(&key)).map_or(0, |at| at + 1);
        let first = |runs: &[usize]| runs.get(runs.partition_point(|at| *at < birth)).copied();
        let read = self.batch.partition_point(|one| one.time <= event.time);
        self.runs_of(written).filter_map(first).fold(read, usize::min).max(birth)
    }
}

/// Puts file events at their places in the batch, those of one place in their order. Linear: a container
/// chooses how many there are.
pub(super) fn into(batch: &mut Vec<Event>, mut files: Vec<(usize, Event)>) {
    if files.is_empty() {
        return;
    }
    files.sort_by_key(|(place, _)| *place);
    let mut files = files.into_iter().peekable();
    for (at, event) in std::mem::take(batch).into_iter().enumerate() {
        while let Some((_, file)) = files.next_if(|(place, _)| *place <= at) {
            batch.push(file);
        }
        batch.push(event);
    }
    batch.extend(files.map(|(_, file)| file));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Exec, FileId, FileOperation};

    fn key(pid: u32) -> ProcessKey {
        ProcessKey::new(pid, u64::from(pid) * 10_000_000)
    }

    fn event(time: u64, pid: u32, kind: EventKind) -> Event {
        Event { time, process: Some(key(pid)), cgroup: None, kind }
    }

    fn fork(time: u64, parent: u32, child: u32) -> Event {
        event(time, parent, EventKind::Fork { child: key(child) })
    }

    fn exec(time: u64, pid: u32, inode: u64) -> Event {
        let file = Some(FileId { device: 7, inode, ..FileId::default() });
        event(time, pid, EventKind::Exec(Box::new(Exec { file, ..Exec::default() })))
    }

    fn write(time: u64, pid: u32, path: &str, inode: u64) -> Event {
        let file = Some(FileId { device: 7, inode, ..FileId::default() });
        let (path, operation) = (path.to_owned(), FileOperation::Write);
        event(time, pid, EventKind::File(Box::new(FileEvent { operation, path, target: None, file })))
    }

    fn merge(batch: &mut Vec<Event>, files: Vec<Event>) {
        let files = Places::of(batch).place(files);
        into(batch, files);
    }

    #[test]
    fn a_write_comes_after_its_writers_birth_and_before_the_exec_of_its_file() {
        // The file ran before, was written anew by a child that lived shortly, and ran again.
        let old = [exec(10, 1, 50), fork(20, 1, 2), exec(21, 2, 40)];
        let new = [event(30, 2, EventKind::Exit { code: 0 }), fork(40, 1, 3), exec(41, 3, 50), fork(60, 1, 4)];
        let mut batch: Vec<Event> = old.iter().chain(&new).cloned().collect();
        let written = [write(55, 2, "/tmp/x", 50), write(56, 2, "/etc/passwd", 51), write(70, 4, "/tmp/y", 52)];
        assert!(Places::of(&batch).runs(&written[0]) && !Places::of(&batch).runs(&written[1]));
        merge(&mut batch, written.to_vec());
        let [passed, other, last] = written;
        let expected: Vec<Event> = old
            .into_iter()
            .chain(new[..2].iter().cloned())
            .chain([passed, new[2].clone(), other, new[3].clone(), last])
            .collect();
        assert_eq!(batch, expected);
    }

    #[test]
    fn a_file_that_an_overlay_shows_with_another_inode_is_known_by_its_path() {
        let mut run = exec(20, 3, 50);
        if let EventKind::Exec(exec) = &mut run.kind {
            exec.executable = Some("/tmp/x".to_owned());
        }
        let mut batch = vec![fork(10, 1, 2), run.clone()];
        let written = write(30, 2, "/tmp/x", 99);
        assert!(Places::of(&batch).runs(&written));
        merge(&mut batch, vec![written.clone()]);
        assert_eq!(batch, [fork(10, 1, 2), written, run]);
    }

    #[test]
    fn writes_of_one_file_keep_their_order_also_in_an_empty_batch() {
        let mut batch = Vec::new();
        let written = vec![write(10, 2, "/a", 1), write(11, 2, "/a", 1), write(12, 2, "/b", 2)];
        merge(&mut batch, written.clone());
        assert_eq!(batch, written);
    }
}
