//! Rollout: waves as a row of steps, gates, why it stopped.

use super::html::{text, time};
use crate::desired::Loaded;
use crate::engine::{RolloutView, View};
use crate::text::percent;
use jiff::Timestamp;
use tasuki_api::desired::{Document, RolloutSpec};

pub fn body(view: &View, desired: &Loaded, now: Timestamp) -> String {
    let mut out = String::new();
    if view.frozen {
        out +=
            "<p class=\"bad\" role=\"status\">Frozen: nothing is changed until <code>tasuki freeze --off</code>.</p>\n";
    }
    let mut quiet = Vec::new();
    for cluster in &view.clusters {
        match &cluster.rollout {
            Some(rollout) => {
                out += &format!("<h2>{}</h2>\n", text(&cluster.name));
                out += &one(rollout, spec_of(rollout, desired), now);
            }
            None => quiet.push(cluster),
        }
    }
    if !quiet.is_empty() {
        let rows: Vec<Vec<String>> = quiet
            .iter()
            .map(|cluster| {
                let versions: Vec<String> =
                    cluster.versions.iter().map(|(version, n)| format!("{} ×{n}", text(version))).collect();
                vec![text(&cluster.name), text(cluster.wanted_version.as_deref().unwrap_or("–")), versions.join(", ")]
            })
            .collect();
        out += &super::html::table("Clusters without a rollout under way", &["Cluster", "Wanted", "Running"], &rows);
    }
    if out.is_empty() { "<p>No cluster is known yet.</p>\n".to_owned() } else { out }
}

/// The rollout's own document: the one that wants this version and has this wave.
fn spec_of<'a>(rollout: &RolloutView, desired: &'a Loaded) -> Option<&'a RolloutSpec> {
    desired.documents.values().find_map(|document| match &**document {
        Document::RuntimeMonitor(monitor) => {
            let spec = &monitor.spec;
            let wanted = spec.agent.as_ref().is_some_and(|agent| agent.version == rollout.version);
            (wanted && spec.rollout.waves.iter().any(|wave| wave.name == rollout.wave)).then_some(&spec.rollout)
        }
        _ => None,
    })
}

fn one(rollout: &RolloutView, spec: Option<&RolloutSpec>, now: Timestamp) -> String {
    let share = if rollout.of == 0 { 0.0 } else { rollout.done as f64 / rollout.of as f64 };
    let mut out = format!(
        "<p>{} → {}: {}, {} of {} ({}), since {}</p>\n",
        text(&rollout.previous),
        text(&rollout.version),
        text(rollout.phase.name()),
        rollout.done,
        rollout.of,
        percent(share),
        time(rollout.since, now)
    );
    if let Some(why) = &rollout.why {
        out += &format!("<p class=\"bad\">It {}: {}</p>\n", rollout.standing(), text(why));
    }
    let Some(spec) = spec else { return out + &format!("<p>Wave {}</p>\n", text(&rollout.wave)) };
    let here = spec.waves.iter().position(|wave| wave.name == rollout.wave).unwrap_or(0);
    out += "<ol class=\"steps\">";
    for (i, wave) in spec.waves.iter().enumerate() {
        let (current, state) = match i {
            i if i < here => ("", "done"),
            i if i == here => (" aria-current=\"step\"", rollout.phase.name()),
            _ => ("", "next"),
        };
        out += &format!("<li{current}>{} {}: {}</li>", text(&wave.name), wave.take, text(state));
    }
    let gates = &spec.gates;
    out + &format!(
        "</ol>\n<p>Gates: healthy agents at least {}, events lost at most {}, restarts at most {}, agent CPU at most {}</p>\n",
        gates.healthy_agents, gates.event_loss, gates.restarts, gates.agent_cpu
    )
}
