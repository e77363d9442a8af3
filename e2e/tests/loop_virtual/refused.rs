//! Agents that are not what they say.

use crate::world::World;
use tasuki_agent::deliver;
use tasuki_api::agent::AgentKind;
use tasuki_api::coverage::Verdict;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_key_of_a_task_is_refused_and_shows() {
    let mut world = World::web_on_fargate().await;
    world.start().await;
    world.verdict("web", Verdict::Covered, "").await;
    let specs = world.runtime.specs();
    let spec = specs.iter().find(|spec| spec.containers.iter().any(|c| c.name == "tasuki-agent")).unwrap();

    // As a node's agent it may not speak, whatever it knows of the task.
    let container = spec.containers.iter().find(|c| c.name == "tasuki-agent").unwrap();
    let given = |name: &str| container.environment.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let variable = |name: &str| if name.starts_with("AWS_CONTAINER") { None } else { given(name) };
    let config = deliver::Config::from_environment(variable, AgentKind::Node, "1.0.0", None).unwrap();
    let liar = world.agents.start(config, &spec.task_arn, None, "1.0.0");
    let refused =
        |name: &'static str| move |world: &World| (world.controller().gateway().tally().get(name) > 0).then_some(());
    world.until("the lie is refused", refused("KindNotAllowed")).await;
    assert!(!liar.handle.status().enrolled);
    liar.handle.stop().await;

    // The same task with another key.
    let second = world.agents.agent(spec).unwrap();
    let web = world.verdict("web", Verdict::Unhealthy, "AgentIdentityConflict").await;
    assert!(web.detail.is_some_and(|detail| detail.contains("second key")));
    assert!(!second.handle.status().enrolled, "the first key keeps its session");
    second.handle.stop().await;
}
