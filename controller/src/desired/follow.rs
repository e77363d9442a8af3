//! Loads again on each change of the directory.
//!
//! The kernel's notices only say *when* to look; what changed is found by reading. Both ways in
//! which whole trees are swapped come through: a mounted ConfigMap (its `..data` link changes) and
//! git-sync (the directory itself is a link that changes, so its parent is watched too). Where
//! notices do not arrive (some network file systems), a look every `poll` finds the change.

use super::loader::{Loaded, Loader};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Several writes of one change are one change when they are no further apart than this.
const QUIET: Duration = Duration::from_millis(200);

/// Follows `dir`: the receiver holds what is in force, and changes when that or the problems do.
/// The task ends when every receiver is dropped.
pub async fn follow(dir: PathBuf, poll: Duration) -> (watch::Receiver<Arc<Loaded>>, JoinHandle<()>) {
    let notify = Arc::new(Notify::new());
    // Watching begins before the first reading, so that no change falls between the two.
    let mut watcher = arm(&dir, &notify);
    let (mut loader, first) = load(Loader::default(), dir.clone()).await;
    let (sender, receiver) = watch::channel(Arc::new(first));
    let task = tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = notify.notified() => settle(&notify).await,
                () = tokio::time::sleep(poll) => {}
            }
            // Links may lead elsewhere now; the old watches stand on the old directories.
            let renewed = arm(&dir, &notify);
            drop(std::mem::replace(&mut watcher, renewed));
            let loaded;
            (loader, loaded) = load(loader, dir.clone()).await;
            publish(&sender, loaded);
        }
    });
    (receiver, task)
}

/// Passes on what is in force, where it differs from what was.
pub(super) fn publish(sender: &watch::Sender<Arc<Loaded>>, loaded: Loaded) {
    sender.send_if_modified(|held| {
        let changed = held.hash != loaded.hash
            || held.problems != loaded.problems
            || held.held != loaded.held
            || held.origins != loaded.origins;
        if changed {
            tracing::info!(
                documents = loaded.documents.len(),
                problems = loaded.problems.len(),
                hash = loaded.hash,
                "desired state changed"
            );
            *held = Arc::new(loaded);
        }
        changed
    });
}

/// Waits until no notice has come for [`QUIET`].
async fn settle(notify: &Notify) {
    while tokio::time::timeout(QUIET, notify.notified()).await.is_ok() {}
}

async fn load(mut loader: Loader, dir: PathBuf) -> (Loader, Loaded) {
    let read = tokio::task::spawn_blocking(move || {
        let loaded = loader.load(&dir);
        (loader, loaded)
    });
    // The loader does not panic: there is nothing to read when the runtime is going down.
    read.await.unwrap_or_default()
}

fn arm(dir: &Path, notify: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let wake = notify.clone();
    let handler = move |event: notify::Result<notify::Event>| {
        // Our own reading opens and closes files: those notices would never end.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            wake.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(handler)
        .inspect_err(|error| tracing::warn!(%error, "no notices of file changes; looking at intervals"))
        .ok()?;
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let parents = [dir.parent(), real.parent()].into_iter().flatten().filter(|p| !p.as_os_str().is_empty());
    for parent in parents {
        // A parent that cannot be watched costs speed only.
        let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
    }
    if let Err(error) = watcher.watch(&real, RecursiveMode::Recursive) {
        tracing::warn!(%error, dir = %dir.display(), "cannot watch the directory; looking at intervals");
    }
    Some(watcher)
}
