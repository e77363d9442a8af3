//! SIGKILL of the real controller after each of its calls, while it places agents.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};
use tasuki_e2e::coverage::rows;
use tasuki_e2e::customer::{EC2_CLUSTER, FARGATE_CLUSTER};
use tasuki_e2e::process::until;
use tasuki_e2e::world::World;

/// Long enough for a loaded machine with two cores.
const LIMIT: Duration = Duration::from_secs(180);
/// Lives of the controller: more than the calls that one takes from its start to the last one of an injection.
const LIVES: usize = 40;
/// A life that has nothing left to call ends without having made so many.
const LIFE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_after_each_call_places_everything_once() {
    let mut world = World::start(|text| println!("{text}")).await.unwrap();
    world.customer.clusters().await.unwrap();
    world.customer.workloads(&world.shop).await.unwrap();
    for (cluster, service) in [(EC2_CLUSTER, "web"), (FARGATE_CLUSTER, "checkout")] {
        until("the customer's tasks run", LIMIT, || world.customer.task(cluster, service)).await.unwrap();
    }
    world.config.monitor("Enforce", &world.agent).unwrap();
    let mut longest = 0;
    for life in 1..=LIVES {
        let before = world.calls().unwrap();
        world.launch_controller().unwrap();
        let begun = Instant::now();
        let made = until("it has made so many calls, or none for long", LIMIT, || async {
            let made = world.calls()? - before;
            Ok((made >= life || begun.elapsed() > LIFE).then_some(made))
        });
        let made = made.await.unwrap();
        world.kill_controller().unwrap();
        longest = longest.max(made);
        if made < life {
            break;
        }
    }
    assert!(longest > 10, "it was killed before it could do anything: {longest}");

    world.start_controller().await.unwrap();
    let covered = until("both are covered", LIMIT, || async {
        let coverage = world.json(&["coverage"])?;
        let rows = rows(&coverage);
        let all = ["web", "checkout"].iter().all(|name| rows.iter().any(|row| row.0 == *name && row.1 == "Covered"));
        if !all {
            anyhow::bail!("{rows:?}");
        }
        Ok(Some(()))
    });
    covered.await.map_err(|error| error.context(world.controller_log())).unwrap();
    let (definition, _) = until("one deployment is left, and complete", LIMIT, || async {
        let deployed = world.customer.deployed(FARGATE_CLUSTER, "checkout").await?;
        Ok(deployed.filter(|(_, state)| state == "COMPLETED"))
    })
    .await
    .unwrap();
    assert!(definition.ends_with("/checkout-tasuki:1"), "{definition}");
    // At most one new revision each, however often it was killed.
    for (family, wanted) in [("checkout-tasuki", 1), ("tasuki", 1), ("billing-tasuki", 0)] {
        let revisions = world.customer.revisions(family).await.unwrap();
        let of_family = revisions.iter().filter(|arn| arn.contains(&format!("/{family}:"))).count();
        assert_eq!(of_family, wanted, "{revisions:?}");
    }
    world.stop().await;
}
