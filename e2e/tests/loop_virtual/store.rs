//! A store that takes nothing for a while, as on a full disk.

use crate::world::{World, image, quick};
use sqlx::SqlitePool;
use std::time::Duration;
use tasuki::engine::Request;
use tasuki_api::coverage::Verdict;
use tasuki_cloud::runtime::Script;

/// The controller's database, from outside.
struct Disk(SqlitePool);

impl Disk {
    async fn of(world: &World) -> Self {
        let url = format!("sqlite://{}", world.state().join("tasuki.db").display());
        let disk = Self(SqlitePool::connect(&url).await.unwrap());
        disk.run("CREATE TABLE refused (name TEXT)").await;
        disk
    }

    async fn run(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.0).await.unwrap();
    }

    /// No setting is taken any more, and each attempt is noted.
    async fn fill(&self) {
        self.run(
            "CREATE TRIGGER full BEFORE INSERT ON settings WHEN NEW.name IN ('decide.memory', 'frozen') BEGIN
                INSERT INTO refused VALUES (NEW.name); SELECT RAISE(FAIL, 'the disk is full'); END",
        )
        .await;
    }

    async fn free(&self) {
        self.run("DROP TRIGGER full").await;
    }

    async fn refused(&self) -> i64 {
        let query = sqlx::query_scalar("SELECT count(*) FROM refused WHERE name = 'decide.memory'");
        query.fetch_one(&self.0).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_begun_before_the_store_keeps_what_it_rests_on() {
    let mut world = World::web_on_nodes(1).await;
    world.start().await;
    world.verdict("web", Verdict::Covered, "").await;
    let disk = Disk::of(&world).await;
    disk.fill().await;
    let before = world.wire.changes();
    world.monitor("prod", "Enforce", "1.0.1", |_| {});
    // The first attempt is that of the decision; those after it show that it is not forgotten.
    let attempts = async {
        while disk.refused().await < 4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), attempts).await.expect("the store is tried again");
    assert_eq!(world.wire.changes(), before, "no rollout without its record");
    disk.free().await;
    world
        .until("the rollout is done", |world| {
            let view = world.view();
            view.tasks.iter().any(|task| task.agent_version.as_deref() == Some("1.0.1")).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retry_forgets_stays_forgotten() {
    let mut world = World::web_on_fargate().await;
    let broken = Script { pull_failure: Some("manifest unknown".to_owned()), ..quick() };
    world.runtime.script(image("1.0.0"), broken);
    world.start().await;
    world.verdict("web", Verdict::Uncovered, "RolledBack").await;
    // Nothing else changes what is remembered.
    world.ask(|done| Request::Freeze(true, done)).await.unwrap();
    assert_eq!(world.ask(|done| Request::Retry("shop".to_owned(), done)).await, 1);
    world.kill();
    world.start().await;
    let memory = world.controller().store().memory().await.unwrap();
    assert!(memory.services.values().all(|history| history.rolled_back.is_none()), "{memory:?}");
    world.verdict("web", Verdict::Uncovered, "Frozen").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_that_is_not_kept_says_so_and_nothing_is_uninstalled() {
    let mut world = World::new().await;
    world.cluster("shop", 0);
    world.monitor("prod", "Enforce", "1.0.0", |_| {});
    world.start().await;
    let disk = Disk::of(&world).await;
    disk.fill().await;
    let error = world.ask(|done| Request::Freeze(true, done)).await.unwrap_err();
    assert!(error.contains("not after a restart"), "{error}");
    world.until("it is in force all the same", |world| world.view().frozen.then_some(())).await;
    let left = world.ask(Request::Uninstall).await;
    assert!(left.iter().any(|line| line.contains("nothing was taken out")), "{left:?}");
    disk.free().await;
    assert_eq!(world.ask(Request::Uninstall).await, Vec::<String>::new());
}
