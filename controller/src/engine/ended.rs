//! Tasks that ended within the last hour: findings about them may still arrive.

use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tasuki_core::fleet::{Str, Task};

/// How long AWS itself still describes a stopped task.
const KEPT: SignedDuration = SignedDuration::from_hours(1);
/// Enough for three endings a second; the oldest go first.
const MOST: usize = 10_000;

/// The ended tasks.
#[derive(Debug, Default)]
pub struct EndedTasks {
    tasks: HashMap<Str, Arc<Task>>,
    order: VecDeque<(Timestamp, Str)>,
    /// Forgotten before their hour because there were too many.
    pub dropped: u64,
}

impl EndedTasks {
    /// Keeps one.
    pub fn put(&mut self, task: Task, now: Timestamp) {
        self.expire(now);
        if self.order.len() >= MOST
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.tasks.remove(&oldest);
            self.dropped += 1;
        }
        let arn = task.arn.clone();
        if self.tasks.insert(arn.clone(), Arc::new(task)).is_none() {
            self.order.push_back((now, arn));
        }
    }

    /// Forgets those of more than an hour ago.
    pub fn expire(&mut self, now: Timestamp) {
        while let Some((at, arn)) = self.order.front()
            && now.duration_since(*at) > KEPT
        {
            self.tasks.remove(arn);
            self.order.pop_front();
        }
    }

    /// One by its ARN.
    pub fn get(&self, arn: &str) -> Option<&Arc<Task>> {
        self.tasks.get(arn)
    }

    /// Those that ran on a node.
    pub fn on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Task>> {
        self.tasks.values().filter(move |task| task.node.as_deref() == Some(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(arn: &str) -> Task {
        let task = serde_json::json!({
            "arn": arn, "cluster": "c", "group": "service:s", "started_by": null, "definition": "d:1", "launch": "Fargate",
            "platform_version": null, "platform_family": null, "architecture": null, "node": "n", "containers": [],
            "status": "Stopped", "desired_stopped": true, "version": 1, "created_at": null, "started_at": null,
            "stopped_at": null, "stop_code": null, "stopped_reason": null, "address": null
        });
        serde_json::from_value(task).unwrap()
    }

    #[test]
    fn an_hour_and_a_number_bound_it() {
        let mut ended = EndedTasks::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        for number in 0..=MOST {
            ended.put(task(&number.to_string()), at(1));
        }
        assert_eq!((ended.tasks.len(), ended.order.len(), ended.dropped), (MOST, MOST, 1));
        assert!(ended.get("0").is_none() && ended.get("1").is_some());
        assert_eq!(ended.on("n").count(), MOST);
        ended.expire(at(3602));
        assert!(ended.tasks.is_empty() && ended.order.is_empty());
    }
}
