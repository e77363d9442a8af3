//! Both cores full of fork and exec inside a container: nothing is lost without being counted, and
//! a miner that starts in the middle is found.

use crate::agent::Agent;
use crate::table::Row;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use tasuki_e2e::attack;
use tasuki_e2e::dockerd::Cgroups;
use tasuki_e2e::process::until;
use tasuki_e2e::shop::Shop;
use tasuki_e2e::world::binaries;

const SECTION: &str = "storm";
const MINER: &str = "Impact:Runtime/CryptoMinerExecuted";

/// Storms for ten seconds.
pub async fn measure(quick: bool) -> Result<Vec<Row>> {
    let seconds = if quick { 3 } else { 10 };
    let directory = tempfile::Builder::new().prefix("tasuki-bench-").tempdir()?;
    let lab = binaries()?.join("tasuki-lab");
    let shop = Shop::start(directory.path(), "tasuki-bench", [172, 31, 249], Cgroups::Host, &lab).await?;
    let rows = in_shop(&shop, directory.path(), seconds).await;
    shop.stop().await?;
    rows
}

async fn in_shop(shop: &Shop, directory: &std::path::Path, seconds: u64) -> Result<Vec<Row>> {
    let agent = Agent::start("ebpf", None, directory)?;
    let cpu = agent.processor_seconds()?;
    let began = Instant::now();
    let line = format!("/opt/lab/tasuki-lab storm {seconds}");
    let (stormed, mined) = tokio::join!(attack::inject(shop.address, &line), async {
        tokio::time::sleep(Duration::from_secs(seconds / 2)).await;
        let begun = Instant::now();
        attack::miner(shop.address).await.map(|_| begun)
    });
    let stormed = stormed.context("the storm")?;
    let begun = mined.context("the miner")?;
    let elapsed = began.elapsed().as_secs_f64();
    let execs: u64 = stormed.trim().parse().with_context(|| format!("the storm printed: {stormed}"))?;
    let is_miner = |finding: &serde_json::Value| finding["type"] == MINER;
    let found = until("the miner is found", Duration::from_secs(20), || async {
        Ok(agent.findings().iter().any(is_miner).then_some(()))
    })
    .await;
    let waited = begun.elapsed().as_secs_f64();
    let cpu = agent.processor_seconds()? - cpu;
    let families = agent.stop()?;
    let mut rows = vec![
        Row::noted(SECTION, "fork+exec+exit in a container, all cores", &format!("{:.0}/s for {elapsed:.1} s", execs as f64 / elapsed)),
        Row::noted(SECTION, "agent's processor time meanwhile", &format!("{:.1} % of a core", cpu / elapsed * 100.0)),
        Row::must(
            SECTION,
            "a miner started in the middle",
            &found.as_ref().map_or_else(|error| format!("not found: {error}"), |()| format!("found, with its own run and looking for it {waited:.1} s after it was asked to start")),
            "found",
            found.is_ok(),
        ),
    ];
    for (family, balance) in families.iter().filter(|(family, _)| ["exec", "fork", "exit"].contains(&family.as_str())) {
        let uncounted = balance.seen.abs_diff(balance.submitted + balance.filtered + balance.lost);
        let value = format!(
            "{} seen = {} submitted + {} filtered + {} lost",
            balance.seen, balance.submitted, balance.filtered, balance.lost
        );
        // The hooks see the whole machine, so at least what the storm did.
        let whole = uncounted == 0 && balance.seen >= execs;
        rows.push(Row::must(SECTION, &format!("{family}: uncounted of {execs} and more"), &value, "0 uncounted", whole));
    }
    Ok(rows)
}
