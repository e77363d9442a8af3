//! `RuntimeMonitor`.

use super::super::yaml::{Path, at};
use super::Report;
use super::text::{clock, is_digest, short, version};
use tasuki_api::desired::{AgentSpec, Delivery, Mode, Ratio, RolloutSpec, RuntimeMonitorSpec, Size};

/// ECS refuses a container with less memory than this (AWS: `memory`, at least 6 MiB); the agent needs more.
const LEAST_MEMORY: Size = Size::from_mib(32);

pub fn monitor(spec: &RuntimeMonitorSpec, report: &mut Report) {
    match (&spec.agent, spec.mode) {
        (Some(spec), _) => agent(spec, report),
        (None, Mode::Enforce) => report.error(
            at!["spec", "mode"],
            "mode Enforce needs an agent to place",
            "add spec.agent with version and image, or set mode: Observe",
        ),
        (None, Mode::Observe) => {}
    }
    if spec.targets.ecs.is_none() && spec.targets.kubernetes.is_none() {
        let help = "select something, for example\ntargets:\n  ecs: { clusters: { include: [\"*\"] } }";
        let path = if spec.targets == Default::default() { at!["spec"] } else { at!["spec", "targets"] };
        report.warning(path, "this monitor selects nothing", help);
    }
    if let Some(ecs) = &spec.targets.ecs {
        for (i, name) in ecs.scopes.iter().enumerate() {
            report.not_blank(at!["spec", "targets", "ecs", "scopes", i], name, "the name", "name an AwsScope");
        }
    }
    for (i, exclusion) in spec.exclusions.iter().enumerate() {
        let at = at!["spec", "exclusions", i];
        report.not_blank(
            at.with("reason"),
            &exclusion.reason,
            "the reason",
            "say why; it is shown wherever the exclusion is counted",
        );
        let parts: Vec<&str> = exclusion.matches.split('/').collect();
        if parts.len() < 2 || parts.contains(&"") {
            report.error(
                at.with("matches"),
                format!("`{}` matches nothing", short(&exclusion.matches)),
                "write CLUSTER/SERVICE, or CLUSTER/KIND/NAMESPACE/NAME; `*` and `?` are allowed",
            );
        }
    }
    for (name, delivery) in &spec.ecs.fargate.delivery_for {
        let at = at!["spec", "ecs", "fargate", "deliveryFor", name];
        matcher(at.clone(), name, report);
        if *delivery == spec.ecs.fargate.delivery {
            let word = if *delivery == Delivery::Live { "Live" } else { "Render" };
            report.warning(at, format!("delivery is {word} anyway"), "");
        }
    }
    super::kubernetes::pods(&spec.kubernetes, report);
    rollout(&spec.rollout, report);
}

fn agent(agent: &AgentSpec, report: &mut Report) {
    let at = at!["spec", "agent"];
    let wanted = version(&agent.version);
    if wanted.is_none() {
        let message = format!("`{}` is not a version", short(&agent.version));
        report.error(at.with("version"), message, "write MAJOR.MINOR.PATCH, such as 1.4.2");
    }
    if let Some(text) = &agent.minimum_version {
        match (version(text), wanted) {
            (None, _) => {
                let message = format!("`{}` is not a version", short(text));
                report.error(at.with("minimumVersion"), message, "write MAJOR.MINOR.PATCH, such as 1.3.0");
            }
            (Some((minimum, _)), Some((wanted, _))) if minimum > wanted => report.error(
                at.with("minimumVersion"),
                format!("{text} is newer than the wanted version {}", agent.version),
                "every agent would be Unhealthy; lower it",
            ),
            _ => {}
        }
    }
    if !is_digest(&agent.image.digest) {
        let message = format!("`{}` is not a digest", short(&agent.image.digest));
        report.error(
            at.with("image").with("digest"),
            message,
            "write sha256: and 64 hexadecimal digits, as the registry shows",
        );
    }
    for (index, digest) in agent.image.platform_digests.iter().enumerate() {
        if !is_digest(digest) {
            report.error(
                at.with("image").with("platformDigests").with(index),
                format!("`{}` is not a digest", short(digest)),
                "write sha256: and 64 hexadecimal digits, as `docker buildx imagetools inspect` shows for each platform",
            );
        }
    }
    repository(at.with("image").with("repository"), &agent.image.repository, report);
    if agent.resources.memory < LEAST_MEMORY {
        let message = format!("{} is too little for an agent", agent.resources.memory);
        report.error(at.with("resources").with("memory"), message, "give it at least 32Mi; 128Mi is the default");
    }
    if agent.resources.cpu == Ratio::default() {
        report.error(at.with("resources").with("cpu"), "an agent without CPU never reports", "10% is the default");
    }
}

fn repository(at: Path, text: &str, report: &mut Report) {
    let plain = text.replace("{region}", "region");
    if text.contains('@') || plain.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        report.error(
            at,
            "the repository carries a tag or a digest",
            "write the repository alone; the digest has its own field",
        );
    } else if plain.contains(['{', '}']) {
        report.error(at, "unknown placeholder in the repository", "only {region} is replaced");
    } else if plain.is_empty() || plain.contains(char::is_whitespace) || plain.contains("://") {
        report.error(at, format!("`{}` is not a repository", short(text)), "write HOST/NAME, without https://");
    }
}

fn matcher(at: Path, text: &str, report: &mut Report) {
    if !text
        .split_once('/')
        .is_some_and(|(cluster, name)| !cluster.is_empty() && !name.is_empty() && !name.contains('/'))
    {
        report.error(
            at,
            format!("`{}` matches nothing", short(text)),
            "write CLUSTER/SERVICE; `*` and `?` are allowed",
        );
    }
}

fn rollout(rollout: &RolloutSpec, report: &mut Report) {
    let at = at!["spec", "rollout"];
    let waves = at.with("waves");
    if rollout.waves.is_empty() {
        report.error(waves.clone(), "a rollout without waves changes nothing", "leave `waves` out for 5 %, then 100 %");
    }
    for (i, wave) in rollout.waves.iter().enumerate() {
        let here = waves.with(i);
        report.not_blank(here.with("name"), &wave.name, "the name", "it is shown in status");
        if rollout.waves[..i].iter().any(|other| other.name == wave.name) {
            report.error(here.with("name"), format!("two waves are called `{}`", short(&wave.name)), "");
        }
        if wave.take == Ratio::default() {
            report.error(here.with("take"), "a wave that takes 0% changes nothing", "");
        }
        if let Some(before) = i.checked_sub(1).map(|j| &rollout.waves[j])
            && wave.take <= before.take
        {
            let message = format!("takes {}, no more than the wave before it ({})", wave.take, before.take);
            report.error(here.with("take"), message, "`take` counts all units on the new version, so it must rise");
        }
        if wave.max_unavailable == Ratio::default() {
            report.error(here.with("maxUnavailable"), "0% never lets a unit change", "10% is the default");
        }
    }
    if let Some((i, last)) = rollout.waves.iter().enumerate().next_back()
        && last.take != Ratio::from_percent(100)
    {
        let message = format!("the last wave takes {}, so the rest never gets the new version", last.take);
        report.error(waves.with(i).with("take"), message, "end with take: 100%");
    }
    for (i, window) in rollout.windows.iter().enumerate() {
        let here = at.with("windows").with(i);
        if window.days.is_empty() {
            report.error(here.with("days"), "a window without days never opens", "name days, such as [Mon, Tue]");
        }
        let time = |field: &str, text: &str, report: &mut Report| {
            let minutes = clock(text);
            if minutes.is_none() {
                let message = format!("`{}` is not a time of day", short(text));
                report.error(here.with(field), message, "write \"HH:MM\" in quotes, such as \"09:00\"");
            }
            minutes
        };
        let (from, to) = (time("from", &window.from, report), time("to", &window.to, report));
        if from.is_some() && from == to {
            report.error(
                here.with("to"),
                "the window ends when it begins",
                "for a whole day write \"00:00\" to \"23:59\"",
            );
        }
        if jiff::tz::TimeZone::get(&window.timezone).is_err() {
            let message = format!("unknown timezone `{}`", short(&window.timezone));
            report.error(here.with("timezone"), message, "write an IANA name, such as Asia/Tokyo or UTC");
        }
    }
}
