//! `tasuki wait`: is the controller at work, and do agents report? For scripts and `helm test`.
//!
//! It reads `/metrics`, which needs no token: what asks from another pod has none.

use super::client::{AskError, Client};
use super::exit::Exit;
use crate::text::many;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `tasuki wait`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tasuki wait\n  tasuki wait --agents 3 --for 5m\n\nExit: 0 it is so, 1 it was not in time, 2 the controller did not answer."
)]
pub struct WaitArgs {
    /// Agents that must report; one of them must do so while this waits
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub agents: u64,
    /// How long to wait
    #[arg(long = "for", value_name = "DURATION", default_value = "2m", value_parser = super::run::duration)]
    pub within: Duration,
}

/// What one look at the metrics says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Look {
    /// The fleet was judged.
    judged: bool,
    /// Agents that report, or did within the hour.
    agents: u64,
    /// Heartbeats since the controller's start.
    heartbeats: u64,
}

impl Look {
    fn at(metrics: &str) -> Self {
        let mut look = Self::default();
        for line in metrics.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            // Counts are whole, and too small to be written with an exponent.
            let count = || value.split('.').next().and_then(|whole| whole.parse::<u64>().ok()).unwrap_or(0);
            match series.split('{').next() {
                Some("tasuki_view_age_seconds") => look.judged = true,
                Some("tasuki_agents") => look.agents += count(),
                Some("tasuki_gateway_total") if series.contains("{what=\"Heartbeat\"}") => look.heartbeats = count(),
                _ => {}
            }
        }
        look
    }
}

/// What was seen while waiting.
#[derive(Debug, Default)]
struct Seen {
    last: Option<Look>,
    /// A heartbeat arrived between two looks.
    heard: bool,
}

impl Seen {
    fn add(&mut self, look: Look) {
        // A controller that has started again counts from nothing: that is no heartbeat.
        self.heard |= self.last.is_some_and(|last| look.heartbeats > last.heartbeats);
        self.last = Some(look);
    }

    /// What there is to say once all that was asked for is so.
    fn done(&self, agents: u64) -> Option<String> {
        let look = self.last.filter(|look| look.judged)?;
        match agents {
            0 => Some("the controller has judged what it watches\n".to_owned()),
            _ if look.agents >= agents && self.heard => {
                Some(format!("{} report, and a heartbeat has just arrived\n", many(look.agents, "agent")))
            }
            _ => None,
        }
    }

    /// What is missing.
    fn missing(&self, agents: u64) -> String {
        match self.last {
            Some(look) if !look.judged => "the first full sweep is not done: see the controller's log\n".to_owned(),
            Some(look) if look.agents < agents => {
                format!("{} of {} report: `tasuki coverage` says why\n", look.agents, many(agents, "agent"))
            }
            _ => "no heartbeat arrived: `tasuki coverage` says why\n".to_owned(),
        }
    }
}

/// Looks until it is so, or the time is over.
pub async fn run(args: &WaitArgs, client: &Client) -> Result<(String, Exit), AskError> {
    let end = Instant::now() + args.within;
    let mut seen = Seen::default();
    loop {
        let asked = client.metrics().await;
        if let Ok(metrics) = &asked {
            seen.add(Look::at(metrics));
            if let Some(text) = seen.done(args.agents) {
                return Ok((text, Exit::Good));
            }
        }
        if Instant::now() + INTERVAL > end {
            return asked.map(|_| (seen.missing(args.agents), Exit::Bad));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# TYPE tasuki_view_age_seconds gauge
tasuki_view_age_seconds 0.25
# TYPE tasuki_agents gauge
tasuki_agents{cluster=\"k8s/self\"} 2
tasuki_agents{cluster=\"shop {ec2} 7\"} 3
tasuki_agents_without_priority{cluster=\"k8s/self\"} 9
# TYPE tasuki_gateway counter
tasuki_gateway_total{what=\"Enrolled\"} 5
tasuki_gateway_total{what=\"Heartbeat\"} 41
# EOF
";

    #[test]
    fn a_page_of_metrics_is_read() {
        assert_eq!(Look::at(PAGE), Look { judged: true, agents: 5, heartbeats: 41 });
        assert_eq!(Look::at("# EOF\n"), Look::default());
        assert_eq!(Look::at("tasuki_agents lots\n\u{0}{ {\ntasuki_agents 18446744073709551616\n"), Look::default());
    }

    #[test]
    fn only_a_heartbeat_that_arrives_meanwhile_counts() {
        let look = |heartbeats| Look { judged: true, agents: 1, heartbeats };
        let mut seen = Seen::default();
        seen.add(look(10));
        assert_eq!(seen.done(1), None, "an hour-old agent still counts as one");
        assert!(seen.missing(1).contains("no heartbeat"));
        assert!(seen.done(0).is_some());
        seen.add(look(2));
        assert_eq!(seen.done(1), None, "the controller has started again");
        seen.add(look(3));
        assert!(seen.done(1).is_some());
        assert_eq!(seen.done(2), None);
        assert!(seen.missing(2).contains("1 of 2 agents report"), "{}", seen.missing(2));
    }

    #[test]
    fn nothing_is_well_before_the_first_sweep() {
        let mut seen = Seen::default();
        seen.add(Look { judged: false, agents: 1, heartbeats: 1 });
        seen.add(Look { judged: false, agents: 1, heartbeats: 2 });
        assert_eq!((seen.done(0), seen.done(1)), (None, None));
        assert!(seen.missing(0).contains("first full sweep"));
    }

    #[tokio::test]
    async fn it_looks_again_and_ends_in_time() {
        use super::super::client::ServerArgs;
        use axum::routing::get;
        let n = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let page = move || {
            let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move { PAGE.replace(" 41", &format!(" {n}")) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/metrics", get(page))).await });
        let client = Client::new(&ServerArgs { server, token_file: None }).unwrap();
        let ask = |agents, within| {
            let client = &client;
            async move { run(&WaitArgs { agents, within }, client).await.unwrap() }
        };
        assert_eq!(ask(5, Duration::from_secs(60)).await.1, Exit::Good);
        let (text, exit) = ask(6, Duration::ZERO).await;
        assert_eq!((text.as_str(), exit), ("5 of 6 agents report: `tasuki coverage` says why\n", Exit::Bad));
        let nobody = ServerArgs { server: "http://127.0.0.1:1".to_owned(), token_file: None };
        let nobody = Client::new(&nobody).unwrap();
        let error = run(&WaitArgs { agents: 0, within: Duration::ZERO }, &nobody).await.unwrap_err();
        assert_eq!(error.exit(), Exit::Unknown);
    }
}
