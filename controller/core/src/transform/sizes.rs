//! Fargate's sizes (ECS developer guide, "Task CPU and memory", Linux), and what is free in a task.

use super::number;
use serde_json::{Map, Value};

/// Task sizes as (CPU units, memories in MiB).
fn sizes() -> [(u64, Vec<u64>); 8] {
    let gib = |from: u64, to: u64, step: usize| (from..=to).step_by(step).map(|g| g * 1024).collect::<Vec<_>>();
    [
        (256, vec![512, 1024, 2048]),
        (512, gib(1, 4, 1)),
        (1024, gib(2, 8, 1)),
        (2048, gib(4, 16, 1)),
        (4096, gib(8, 30, 1)),
        (8192, gib(16, 60, 4)),
        (16384, gib(32, 120, 8)),
        (32768, vec![60 * 1024, 120 * 1024, 244 * 1024]),
    ]
}

/// The smallest valid size with at least this CPU and memory, the same CPU first.
pub(super) fn next_size(cpu: u64, memory: u64) -> Option<(u64, u64)> {
    sizes()
        .into_iter()
        .filter(|(units, _)| *units >= cpu)
        .find_map(|(units, memories)| memories.into_iter().find(|m| *m >= memory).map(|m| (units, m)))
}

/// Task-level CPU units, from `256`, `.25 vCPU` or `1 vCPU`.
pub(super) fn task_cpu(fields: &Map<String, Value>) -> Option<u64> {
    quantity(fields.get("cpu")?, "vcpu")
}

/// Task-level memory in MiB, from `512`, `1GB` or `1 GB`.
pub(super) fn task_memory(fields: &Map<String, Value>) -> Option<u64> {
    quantity(fields.get("memory")?, "gb")
}

fn quantity(value: &Value, unit: &str) -> Option<u64> {
    if let Some(number) = number(Some(value)) {
        return Some(number);
    }
    let text = value.as_str()?.trim().to_ascii_lowercase();
    let amount: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
    (amount.is_finite() && (0.0..1e6).contains(&amount)).then(|| (amount * 1024.0).round() as u64)
}

/// What the containers reserve of the task: CPU units, and MiB (the reservation where there is
/// one, else the hard limit).
pub(super) fn reserved(containers: &[Value]) -> (u64, u64) {
    containers.iter().fold((0, 0), |(cpu, memory), container| {
        let reservation = number(container.get("memoryReservation")).or_else(|| number(container.get("memory")));
        (cpu.saturating_add(number(container.get("cpu")).unwrap_or(0)), memory.saturating_add(reservation.unwrap_or(0)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_task_moves_to_the_next_pair() {
        assert_eq!(next_size(256, 640), Some((256, 1024)));
        assert_eq!(next_size(256, 2048 + 128), Some((512, 3072)));
        assert_eq!(next_size(4096, 30 * 1024 + 1), Some((8192, 32 * 1024)));
        assert_eq!(next_size(16384, 120 * 1024 + 1), Some((32768, 244 * 1024)));
        assert_eq!(next_size(32768, 245 * 1024), None);
    }

    #[test]
    fn sizes_are_read_in_every_form_that_aws_takes() {
        let fields = |cpu: &str, memory: &str| {
            let value = serde_json::json!({"cpu": cpu, "memory": memory});
            (task_cpu(value.as_object().unwrap()), task_memory(value.as_object().unwrap()))
        };
        assert_eq!(fields("256", "512"), (Some(256), Some(512)));
        assert_eq!(fields("1 vCPU", "1GB"), (Some(1024), Some(1024)));
        assert_eq!(fields(".25 vcpu", "2 GB"), (Some(256), Some(2048)));
        assert_eq!(fields("many", "NaN GB"), (None, None));
    }
}
