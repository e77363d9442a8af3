//! The steps of the demo, in order. Each one ends only when it was seen to have happened.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tasuki_e2e::attack;
use tasuki_e2e::coverage::{rows, settled};
use tasuki_e2e::customer::{EC2_CLUSTER, FARGATE_CLUSTER, RunningTask};
use tasuki_e2e::process::until;
use tasuki_e2e::screen;
use tasuki_e2e::world::World;

/// Long enough for a loaded machine with two cores.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs every step. `benign` is how long nothing may be found before the attack.
pub async fn run(world: &mut World, benign: Duration) -> Result<()> {
    customer(world).await?;
    observe(world).await?;
    enforce(world).await?;
    attacks(world, benign).await?;
    roll(world).await?;
    broken(world).await?;
    uninstall(world).await
}

async fn customer(world: &World) -> Result<()> {
    screen::step(1, "A customer creates clusters, services and a task through plain AWS API calls");
    world.customer.clusters().await?;
    world.customer.workloads(&world.shop).await?;
    for (cluster, service) in [(EC2_CLUSTER, "web"), (FARGATE_CLUSTER, "checkout"), (FARGATE_CLUSTER, "billing")] {
        let task = running(world, cluster, service).await?;
        screen::seen(&format!("{cluster}/{service} runs at {}", task.address));
    }
    Ok(())
}

async fn running(world: &World, cluster: &str, service: &str) -> Result<RunningTask> {
    until(&format!("{cluster}/{service} has a running task"), LIMIT, || world.customer.task(cluster, service)).await
}

async fn observe(world: &mut World) -> Result<()> {
    screen::step(2, "The controller starts in Observe: every task has a verdict and a reason, nothing is changed");
    let agent = world.agent.clone();
    world.config.monitor("Observe", &agent)?;
    world.start_controller().await?;
    let wanted = BTreeMap::from([
        ("web", "Uncovered ObserveOnly"),
        ("checkout", "Uncovered ObserveOnly"),
        ("billing", "Uncovered AwaitingRender"),
        ("report", "Uncovered StandaloneTask"),
    ]);
    verdicts(world, &wanted).await?;
    show(world, &["coverage"])?;
    show(world, &["plan"])?;
    Ok(())
}

async fn enforce(world: &mut World) -> Result<()> {
    screen::step(
        3,
        "`mode: Observe` becomes `mode: Enforce`: agents are placed, and coverage follows their heartbeats",
    );
    let agent = world.agent.clone();
    world.config.monitor("Enforce", &agent)?;
    let wanted = BTreeMap::from([
        ("web", "Covered"),
        ("checkout", "Covered"),
        ("billing", "Uncovered AwaitingRender"),
        ("report", "Uncovered StandaloneTask"),
    ]);
    verdicts(world, &wanted).await?;
    until("the old task of checkout is gone", LIMIT, || async {
        let task = world.customer.task(FARGATE_CLUSTER, "checkout").await?;
        Ok(task.filter(|task| task.containers.iter().any(|name| name == "tasuki-agent")))
    })
    .await?;
    let (definition, state) = until("the deployment of checkout is complete", LIMIT, || async {
        Ok(world.customer.deployed(FARGATE_CLUSTER, "checkout").await?.filter(|(_, state)| state == "COMPLETED"))
    })
    .await?;
    ensure!(definition.ends_with("/checkout-tasuki:1"), "checkout runs {definition}, {state}");
    let revisions = world.customer.revisions("checkout-tasuki").await?;
    ensure!(revisions.len() == 1, "one injection made {revisions:?}");
    let actions = world.json(&["actions"])?;
    let injected =
        actions.as_array().into_iter().flatten().filter(|a| a["action"]["kind"]["Inject"].is_object()).count();
    ensure!(injected == 1, "checkout was deployed {injected} times: {actions:#}");
    screen::seen("checkout runs with the sidecar, by one new deployment that was watched to its end");
    show(world, &["coverage"])
}

async fn attacks(world: &World, benign: Duration) -> Result<()> {
    screen::step(4, "A coin miner, a reverse shell, a new binary and fileless execution, in both clusters");
    let before = findings(world)?;
    ensure!(before.is_empty(), "something was found before any attack:\n{}", first(world)?);
    screen::progress(&format!("{} s of ordinary work first: nothing may be found", benign.as_secs()));
    let web = running(world, EC2_CLUSTER, "web").await?;
    let checkout = running(world, FARGATE_CLUSTER, "checkout").await?;
    let end = Instant::now() + benign;
    while Instant::now() < end {
        for task in [&web, &checkout] {
            ordinary(task.address).await?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let found = findings(world)?;
    ensure!(found.is_empty(), "ordinary work was found to be an attack:\n{}", first(world)?);
    screen::seen("nothing was found in it");
    for task in [&web, &checkout] {
        attack::miner(task.address).await?;
        attack::reverse_shell(task.address).await?;
        attack::new_binary(task.address).await?;
        attack::fileless(task.address).await?;
    }
    let wanted = [
        "Impact:Runtime/CryptoMinerExecuted",
        "CryptoCurrency:Runtime/BitcoinTool.B!DNS",
        "Execution:Runtime/ReverseShell",
        "Execution:Runtime/NewBinaryExecuted",
        "DefenseEvasion:Runtime/FilelessExecution",
    ];
    for (name, task) in [("web", &web), ("checkout", &checkout)] {
        let what = format!("every attack on {name} is found");
        let found = until(&what, Duration::from_secs(60), || async {
            let found: BTreeSet<String> =
                findings(world)?.into_iter().filter(|(of, _)| *of == task.arn).map(|(_, kind)| kind).collect();
            Ok(wanted.iter().all(|kind| found.contains(*kind)).then_some(found))
        });
        let found = match found.await {
            Ok(found) => found,
            Err(error) => {
                return Err(error
                    .context(format!("found so far: {:?}", findings(world)?))
                    .context(world.agent_logs().await?));
            }
        };
        screen::seen(&format!("{name}: {}", found.into_iter().collect::<Vec<_>>().join(", ")));
        complete(world, &task.arn)?;
    }
    show(world, &["findings"])
}

/// What an application does all day, through the same door.
async fn ordinary(address: Ipv4Addr) -> Result<()> {
    attack::inject(
        address,
        "date; ls / | wc -l; grep -c root /etc/passwd; wget -q -O /dev/null http://127.0.0.1:8080/; true",
    )
    .await?;
    Ok(())
}

/// Task ARN and type of every finding.
fn findings(world: &World) -> Result<Vec<(String, String)>> {
    let all = world.json(&["findings"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(all.as_array().into_iter().flatten().map(|f| (text(&f["resource"]["task"]), text(&f["type"]))).collect())
}

/// The newest finding, whole.
fn first(world: &World) -> Result<String> {
    Ok(format!("{:#}", world.json(&["findings"])?[0]))
}

/// The findings say where, what, who and how.
fn complete(world: &World, task: &str) -> Result<()> {
    let all = world.json(&["findings"])?;
    let of = |kind: &str| -> Result<&Value> {
        let is = |f: &&Value| f["resource"]["task"] == task && f["type"] == kind;
        all.as_array().into_iter().flatten().find(is).with_context(|| format!("no finding of type {kind}"))
    };
    let miner = of("Impact:Runtime/CryptoMinerExecuted")?;
    for path in [
        "/resource/account",
        "/resource/cluster",
        "/resource/service",
        "/resource/container/name",
        "/resource/container/image",
        "/resource/container/imageDigest",
        "/process/executable",
        "/process/user",
        "/process/lineage/0/executable",
        "/process/lineage/1/executable",
    ] {
        let value = miner.pointer(path).and_then(Value::as_str).unwrap_or_default();
        ensure!(!value.is_empty(), "the miner's finding lacks {path}: {miner:#}");
    }
    ensure!(miner["process"]["arguments"][2] == "stratum+tcp://pool.example.test:3333", "{miner:#}");
    let sha = miner["process"]["sha256"].as_str().unwrap_or_default();
    ensure!(sha.len() == 64 && sha.bytes().all(|c| c.is_ascii_hexdigit()), "the miner's SHA-256 is {sha:?}");
    let question = of("CryptoCurrency:Runtime/BitcoinTool.B!DNS")?;
    ensure!(question["dns"]["question"] == "pool.example.test", "{question:#}");
    let shell = of("Execution:Runtime/ReverseShell")?;
    let peer = (&shell["network"]["remoteIp"], &shell["network"]["remotePort"]);
    ensure!(peer.0 == "127.0.0.1" && peer.1 == 4444, "the shell's peer is {peer:?}: {shell:#}");
    Ok(())
}

async fn roll(world: &mut World) -> Result<()> {
    screen::step(5, "The agent's version (and digest) is changed in the YAML; the EC2 side is never without an agent");
    let next = world.next.clone();
    world.config.monitor("Enforce", &next)?;
    let watch = until("the EC2 cluster runs the new version", LIMIT, || async {
        let coverage = world.json(&["coverage"])?;
        let rows = rows(&coverage);
        let web = rows.iter().find(|row| row.0 == "web").context("web is no longer listed")?;
        ensure!(web.1 == "Covered", "coverage of web dropped to {}", web.1);
        Ok((web.2 == next.version && settled(&coverage, EC2_CLUSTER)).then_some(()))
    });
    // A drop is final: it is not waited away.
    tokio::select! {
        done = watch => done?,
        dropped = never_uncovered(world) => return Err(dropped),
    }
    screen::seen("0.1.1 serves every node, and no task was uncovered meanwhile");
    show(world, &["coverage"])
}

/// Ends only when `web` is seen to be anything but covered.
async fn never_uncovered(world: &World) -> anyhow::Error {
    loop {
        // A question that got no answer says nothing; a task that is not listed is not watched.
        if let Ok(coverage) = world.json(&["coverage"]) {
            match rows(&coverage).iter().find(|row| row.0 == "web") {
                Some(row) if row.1 == "Covered" => {}
                Some(row) => return anyhow::anyhow!("coverage of web dropped to {}", row.1),
                None => return anyhow::anyhow!("web is no longer listed"),
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn broken(world: &mut World) -> Result<()> {
    screen::step(6, "A broken version is rolled out, and rolled back by itself");
    let (broken, good) = (world.broken.clone(), world.next.clone());
    world.config.monitor("Enforce", &broken)?;
    let began = until("the roll-out of the broken version begins", LIMIT, || async {
        let coverage = world.json(&["coverage"])?;
        Ok((!settled(&coverage, EC2_CLUSTER)).then_some(()))
    });
    began.await?;
    screen::progress("the broken version was started beside the good one");
    let back = until("the broken version is taken back", LIMIT, || async {
        let coverage = world.json(&["coverage"])?;
        let web = rows(&coverage).into_iter().find(|row| row.0 == "web").context("web is no longer listed")?;
        Ok((settled(&coverage, EC2_CLUSTER) && web.1 == "Covered" && web.2 == good.version).then_some(()))
    });
    tokio::select! {
        done = back => done?,
        dropped = never_uncovered(world) => return Err(dropped),
    }
    screen::seen("it was taken back, and coverage never dropped");
    show(world, &["actions"])
}

async fn uninstall(world: &mut World) -> Result<()> {
    screen::step(7, "`tasuki uninstall` takes everything out again; the customer's services run on");
    let (code, text) = world.tasuki(&["uninstall", "--yes"])?;
    screen::output("tasuki uninstall --yes", &text);
    ensure!(code == 0, "uninstall ended with {code}");
    for (cluster, service) in [(EC2_CLUSTER, "web"), (FARGATE_CLUSTER, "checkout"), (FARGATE_CLUSTER, "billing")] {
        let what = format!("{cluster}/{service} runs without an agent");
        let task = until(&what, LIMIT, || async {
            let task = world.customer.task(cluster, service).await?;
            Ok(task.filter(|task| task.containers == ["app"]))
        });
        let task = task.await?;
        let definition = task.definition.rsplit('/').next().unwrap_or_default();
        ensure!(definition == format!("{service}:1"), "{cluster}/{service} runs {definition}, not its owner's");
        screen::seen(&format!("{cluster}/{service} runs {definition}, its owner's own"));
    }
    // A deleted service drains for a moment before it is gone from the API's lists.
    let left = until("nothing of Tasuki's is listed", Duration::from_secs(30), || async {
        Ok(world.customer.left_by_tasuki().await?.is_empty().then_some(()))
    });
    if let Err(error) = left.await {
        return Err(error.context(format!("left behind: {:?}", world.customer.left_by_tasuki().await?)));
    }
    screen::seen("no daemon service, attribute or definition of Tasuki's is left");
    Ok(())
}

/// Waits until every workload has its verdict (and reason).
async fn verdicts(world: &World, wanted: &BTreeMap<&str, &str>) -> Result<()> {
    let seen = until("every task has the verdict that it should have", LIMIT, || async {
        let coverage = world.json(&["coverage"])?;
        let now: BTreeMap<String, String> = rows(&coverage).into_iter().map(|row| (row.0, row.3)).collect();
        Ok(wanted.iter().all(|(workload, verdict)| now.get(*workload).is_some_and(|v| v == verdict)).then_some(now))
    });
    match seen.await {
        Ok(_) => {
            screen::seen("every task has the verdict that it should have");
            Ok(())
        }
        Err(error) => {
            let (_, text) = world.tasuki(&["coverage", "-o", "wide"])?;
            Err(error
                .context(text)
                .context(world.controller_log())
                .context(world.agent_logs().await.unwrap_or_default()))
        }
    }
}

fn show(world: &World, arguments: &[&str]) -> Result<()> {
    let (_, text) = world.tasuki(arguments)?;
    screen::output(&format!("tasuki {}", arguments.join(" ")), &text);
    Ok(())
}
