//! `/metrics`: OpenMetrics of the view, the store, and whatever colleagues count.

use super::Web;
use crate::engine::{AgentTotals, View};
use crate::tally::Tally;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tasuki_api::coverage::{Reason, Verdict};

/// What colleagues count: their own metrics, and their tallies by name.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Mutex<Registry>,
    tallies: Mutex<BTreeMap<&'static str, Arc<Tally>>>,
}

impl Metrics {
    /// Joins metrics; names get the prefix `tasuki_` from the caller.
    pub fn join(&self, register: impl FnOnce(&mut Registry)) {
        // Registering cannot leave a registry half done.
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Joins a tally; it is shown as `tasuki_<name>_total{what="…"}`.
    pub fn join_tally(&self, name: &'static str, tally: Arc<Tally>) {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).insert(name, tally);
    }

    /// The whole page of metrics.
    pub fn text(
        &self,
        view: Arc<View>,
        findings: Vec<(String, String, u64)>,
        now: Timestamp,
    ) -> Result<String, fmt::Error> {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut seen = Registry::default();
        seen.register_collector(Box::new(Seen { view, findings, tallies, now }));
        let mut text = String::new();
        encode_registry(&mut text, &seen)?;
        encode_registry(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// What is read off at each scrape: series of what is gone go too.
#[derive(Debug)]
struct Seen {
    view: Arc<View>,
    findings: Vec<(String, String, u64)>,
    tallies: BTreeMap<&'static str, Arc<Tally>>,
    now: Timestamp,
}

impl Collector for Seen {
    fn encode(&self, mut out: DescriptorEncoder) -> fmt::Result {
        self.tasks(&mut out)?;
        let mut gauge = |name: &str, help: &str, value: f64| -> fmt::Result {
            let gauge = ConstGauge::new(value);
            gauge.encode(out.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        if let Some(at) = self.view.at {
            let age = self.now.duration_since(at).as_secs_f64().max(0.0);
            gauge("tasuki_view_age_seconds", "Age of the view that these numbers are from", age)?;
        }
        if let Some(ratio) = self.view.live_ratio {
            gauge(
                "tasuki_coverage_ratio",
                "Covered share of selected tasks now; absent where nothing is selected",
                ratio,
            )?;
        }
        if let Some(ratio) = self.view.minutes_ratio {
            gauge("tasuki_coverage_minutes_ratio", "Covered share of selected task-minutes in 24 h", ratio)?;
        }
        gauge("tasuki_frozen", "1 while every change is stopped", f64::from(u8::from(self.view.frozen)))?;
        gauge("tasuki_desired_problems", "Problems of the desired state", self.view.problems.len() as f64)?;
        self.scopes(&mut out)?;
        self.lost(&mut out)?;
        self.agents(&mut out)?;
        self.findings(&mut out)?;
        for (name, tally) in &self.tallies {
            let name = format!("tasuki_{name}");
            let counts = tally.all();
            let Some(first) = counts.values().next() else { continue };
            let kind = ConstCounter::new(*first).metric_type();
            let mut family = out.encode_descriptor(&name, "What was counted, by name", None, kind)?;
            for (what, n) in counts {
                ConstCounter::new(n).encode(family.encode_family(&[("what", what)])?)?;
            }
        }
        Ok(())
    }
}

impl Seen {
    fn tasks(&self, out: &mut DescriptorEncoder) -> fmt::Result {
        let mut counts: BTreeMap<(&str, Verdict, Option<Reason>), i64> = BTreeMap::new();
        for task in &self.view.tasks {
            *counts.entry((&task.cluster, task.verdict, task.reason)).or_default() += 1;
        }
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = out.encode_descriptor("tasuki_tasks", "Tasks by cluster, verdict and reason", None, kind)?;
        for ((cluster, verdict, reason), n) in counts {
            let verdict = format!("{verdict:?}");
            let reason = reason.map_or("", Reason::name);
            let labels = [("cluster", cluster), ("verdict", verdict.as_str()), ("reason", reason)];
            ConstGauge::new(n).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn scopes(&self, out: &mut DescriptorEncoder) -> fmt::Result {
        let kind = ConstGauge::new(0f64).metric_type();
        let mut family =
            out.encode_descriptor("tasuki_sweep_age_seconds", "Age of a scope's last full sweep", None, kind)?;
        for scope in &self.view.scopes {
            if let Some(at) = scope.swept_at {
                let age = self.now.duration_since(at).as_secs_f64().max(0.0);
                ConstGauge::new(age).encode(family.encode_family(&[("scope", scope.scope.as_str())])?)?;
            }
        }
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family =
            out.encode_descriptor("tasuki_aws_throttled", "Calls that AWS throttled since start", None, kind)?;
        for scope in &self.view.scopes {
            ConstCounter::new(scope.throttled).encode(family.encode_family(&[("scope", scope.scope.as_str())])?)?;
        }
        Ok(())
    }

    fn lost(&self, out: &mut DescriptorEncoder) -> fmt::Result {
        let kind = ConstCounter::new(0u64).metric_type();
        let help = "What the controller lost since start because there was too much of it";
        let mut family = out.encode_descriptor("tasuki_lost", help, None, kind)?;
        for (what, n) in &self.view.lost {
            ConstCounter::new(*n).encode(family.encode_family(&[("what", what.as_str())])?)?;
        }
        Ok(())
    }

    fn agents(&self, out: &mut DescriptorEncoder) -> fmt::Result {
        type Count = fn(&AgentTotals) -> u64;
        let gauges: [(&str, &str, Count); 5] = [
            ("tasuki_agents", "Agents that report, or did within the hour", |totals| totals.agents),
            ("tasuki_agent_findings_lost", "Findings that agents lost before the gateway took them", |totals| {
                totals.findings_lost
            }),
            ("tasuki_agent_evictions", "Evictions from agents' bounded caches", |totals| totals.evictions),
            ("tasuki_agent_unnamed_events", "Events that agents could give no task", |totals| totals.unnamed_events),
            ("tasuki_agents_without_priority", "Agents without their scheduling priority", |t| t.without_priority),
        ];
        for (name, help, count) in gauges {
            let mut family = out.encode_descriptor(name, help, None, ConstGauge::new(0i64).metric_type())?;
            for totals in &self.view.agents {
                let value = i64::try_from(count(totals)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&[("cluster", totals.cluster.as_str())])?)?;
            }
        }
        Ok(())
    }

    fn findings(&self, out: &mut DescriptorEncoder) -> fmt::Result {
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family =
            out.encode_descriptor("tasuki_findings_stored", "Findings kept, by type and severity", None, kind)?;
        for (finding, severity, n) in &self.findings {
            let labels = [("type", finding.as_str()), ("severity", severity.as_str())];
            ConstGauge::new(i64::try_from(*n).unwrap_or(i64::MAX)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

pub async fn scrape(State(web): State<Arc<Web>>) -> Response {
    let findings = web.store.count_findings().await.unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "findings cannot be counted");
        Vec::new()
    });
    match web.metrics.text(web.view(), findings, Timestamp::now()) {
        Ok(text) => {
            ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
