//! How many calls a full sweep takes, so that a benchmark can hold the real one against it.

/// Items that one List or Describe call answers (ECS API: ListTasks, DescribeTasks, ListServices
/// with maxResults, ListContainerInstances, DescribeContainerInstances, ListClusters, DescribeClusters).
const PAGE: u64 = 100;
/// Services that one DescribeServices answers (ECS API).
const SERVICES: u64 = 10;

/// Read calls of one full sweep over `tasks`, `services` and `instances` that are spread evenly over
/// `clusters`: ⌈N/100⌉·2 + ⌈S/100⌉ + ⌈S/10⌉ + ⌈I/100⌉·2 per cluster, where a list costs one call
/// even when it is empty (and a description then costs none), and ⌈C/100⌉·2 for the clusters.
pub fn sweep_calls(tasks: u64, services: u64, instances: u64, clusters: u64) -> u64 {
    let share = |all: u64, index: u64| all / clusters.max(1) + u64::from(index < all % clusters.max(1));
    let list = |items: u64| items.div_ceil(PAGE).max(1);
    let of_clusters = clusters.div_ceil(PAGE).max(1) + clusters.div_ceil(PAGE);
    (0..clusters).fold(of_clusters, |calls, index| {
        let (tasks, services, instances) = (share(tasks, index), share(services, index), share(instances, index));
        calls
            + (list(tasks) + tasks.div_ceil(PAGE))
            + (list(services) + services.div_ceil(SERVICES))
            + (list(instances) + instances.div_ceil(PAGE))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_costs_what_the_formula_says() {
        assert_eq!(sweep_calls(0, 0, 0, 0), 1, "one empty ListClusters");
        assert_eq!(sweep_calls(100, 10, 1, 1), 2 + 2 + 2 + 2);
        assert_eq!(sweep_calls(101, 11, 0, 1), 2 + 4 + 3 + 1);
        assert_eq!(sweep_calls(100_000, 10_000, 0, 1_000), 20 + 1_000 * (2 + 2 + 1));
        assert_eq!(sweep_calls(3, 0, 0, 2), 2 + 2 * (2 + 1 + 1));
    }
}
