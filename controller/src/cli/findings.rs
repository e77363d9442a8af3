//! `tasuki findings`: what happened, and where?

use super::client::{AskError, Client};
use super::exit::Exit;
use super::table::{fixed, render, text};
use super::terminal::{Terminal, print};
use super::tree::{Branch, draw};
use super::{Output, Watch};
use crate::store::StoredFinding;
use crate::text::{ago, escape, escape_to, many, short_arn};
use jiff::Timestamp;
use std::collections::HashSet;
use std::time::Duration;
use tasuki_api::finding::{Ancestor, Finding, Severity};

/// Arguments of `tasuki findings`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tasuki findings --severity High --since 24h\n  tasuki findings show 01JD…\n  tasuki findings --follow -o json | jq -c ."
)]
pub struct FindingsArgs {
    /// One finding, with everything about it
    #[command(subcommand)]
    pub show: Option<Show>,
    /// At least this severe: Low, Medium, High, Critical
    #[arg(long)]
    pub severity: Option<String>,
    /// Exactly this type
    #[arg(long = "type")]
    pub kind: Option<String>,
    /// Only of this cluster (name or ARN)
    #[arg(long)]
    pub cluster: Option<String>,
    /// Seen since: 24h, 7d, or a time (RFC 3339)
    #[arg(long)]
    pub since: Option<String>,
    /// Suppressed ones too
    #[arg(long)]
    pub suppressed: bool,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
    /// Go on, and print what comes
    #[arg(short, long, conflicts_with = "watch")]
    pub follow: bool,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Repeat
    #[command(flatten)]
    pub watch: Watch,
}

/// `tasuki findings show`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Show {
    /// One finding: resource, lineage, evidence, rule, response, what to check next
    #[command(after_help = "Example:\n  tasuki findings show 01JDF3Z6E0Q9T4V5W6X7Y8Z9AB")]
    Show {
        /// Its id
        id: String,
        /// Form of the answer
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Asks and shows once.
pub async fn once(args: &FindingsArgs, client: &Client, terminal: Terminal) -> Result<(String, Exit), AskError> {
    if let Some(Show::Show { id, output }) = &args.show {
        let id = id.trim();
        if id.parse::<ulid::Ulid>().is_err() {
            return Err(AskError::Absent(format!(
                "`{}` is not the id of a finding; `tasuki findings -o wide` lists them",
                escape(id)
            )));
        }
        let found: StoredFinding = client.get(&format!("findings/{id}"), &[]).await?;
        let text = match output {
            Output::Json => json(&found),
            _ => one(&found, Timestamp::now()),
        };
        return Ok((text, Exit::Good));
    }
    let found: Vec<StoredFinding> = client.get("findings", &query(args)).await?;
    let text = match args.output {
        Output::Json => json(&found),
        output => list(&found, output == Output::Wide, terminal, Timestamp::now()),
    };
    Ok((text, Exit::Good))
}

fn json<T: serde::Serialize>(value: &T) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default())
}

fn query(args: &FindingsArgs) -> Vec<(&'static str, String)> {
    let mut query = vec![("limit", args.limit.to_string()), ("suppressed", args.suppressed.to_string())];
    let options =
        [("severity", &args.severity), ("type", &args.kind), ("cluster", &args.cluster), ("since", &args.since)];
    query.extend(options.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    query
}

/// Prints what comes, one line each, until it is stopped. Ids that were printed are kept for as
/// many findings as one question may return, so that none is shown twice.
pub async fn follow(args: &FindingsArgs, client: &Client, terminal: Terminal) -> Result<Exit, AskError> {
    let mut shown: HashSet<ulid::Ulid> = HashSet::new();
    loop {
        let found: Vec<StoredFinding> = client.get("findings", &query(args)).await?;
        let new: Vec<StoredFinding> = found.iter().filter(|f| !shown.contains(&f.finding.id)).rev().cloned().collect();
        shown = found.iter().map(|f| f.finding.id).collect();
        for finding in &new {
            match args.output {
                Output::Json => print(&format!("{}\n", serde_json::to_string(finding).unwrap_or_default())),
                _ => {
                    let table =
                        list(std::slice::from_ref(finding), args.output == Output::Wide, terminal, Timestamp::now());
                    print(table.split_once('\n').map_or("", |(_, rows)| rows));
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Terminals from this width on show types unbroken.
const ROOM_FOR_TYPES: usize = 130;
/// Programs whose file says nothing of what they do.
const MANY_NAMES: [&str; 3] = ["busybox", "toybox", "coreutils"];

/// The table.
pub fn list(found: &[StoredFinding], wide: bool, terminal: Terminal, now: Timestamp) -> String {
    if found.is_empty() {
        return "no finding matches\n".to_owned();
    }
    let row = |stored: &StoredFinding| {
        let finding = &stored.finding;
        let suppressed = if stored.suppressed.is_some() { " (suppressed)" } else { "" };
        let times = if finding.count > 1 { format!(" ×{}", finding.count) } else { String::new() };
        let mut row = vec![
            ago(finding.last_seen, now),
            severity(finding.severity).to_owned(),
            format!("{}{times}{suppressed}", escape_to(&finding.kind, 80)),
            place(finding),
            what(finding),
        ];
        if wide {
            row.insert(0, finding.id.to_string());
        }
        row
    };
    // A type is read as one word, and searched for as one, wherever there is room for it.
    let kind = if terminal.width >= ROOM_FOR_TYPES { fixed("TYPE") } else { text("TYPE") };
    let mut columns = vec![fixed("WHEN"), fixed("SEV"), kind, text("WHERE"), text("WHAT")];
    if wide {
        columns.insert(0, fixed("ID"));
    }
    render(&columns, found.iter().map(row).collect(), terminal)
}

/// The severity as a word of at most four letters.
pub fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Low => "LOW",
        Severity::Medium => "MED",
        Severity::High => "HIGH",
        Severity::Critical => "CRIT",
    }
}

/// `cluster · service · task · container` or `cluster · workload · namespace/pod · container`, escaped and short.
pub fn place(finding: &Finding) -> String {
    let resource = &finding.resource;
    let workload = resource.service.as_deref().or(resource.workload.as_deref());
    let pod = resource.pod.as_deref().map(|pod| {
        let namespace = resource.namespace.as_deref().unwrap_or_default();
        format!("{}/{}", escape_to(namespace, 20), escape_to(pod, 40))
    });
    let id = pod.or_else(|| resource.task.as_deref().map(|task| escape_to(short_arn(task), 5)));
    let parts = [
        resource.cluster.as_deref().map(|cluster| escape_to(short_arn(cluster), 40)),
        workload.map(|name| escape_to(name, 40)),
        id,
        resource.container.as_ref().map(|container| escape_to(&container.name, 30)).filter(|name| !name.is_empty()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "–".to_owned() } else { parts.join(" · ") }
}

/// One line: what was done, by whom; escaped.
pub fn what(finding: &Finding) -> String {
    let mut parts = Vec::new();
    if let Some(dns) = &finding.dns {
        let answers: Vec<String> = dns.answers.iter().take(2).map(ToString::to_string).collect();
        let answers = if answers.is_empty() { String::new() } else { format!(" → {}", answers.join(", ")) };
        parts.push(format!("asked {}{answers}", escape_to(&dns.question, 100)));
    }
    if let Some(net) = &finding.network {
        let sign = if net.direction == "inbound" { "←" } else { "→" };
        let address = std::net::SocketAddr::new(net.remote_ip, net.remote_port);
        parts.push(format!("{} {sign} {address}", escape_to(&net.transport, 8)));
    }
    if let Some(file) = &finding.file {
        parts.push(format!("{} {}", escape_to(&file.operation, 16), escape_to(&file.path, 100)));
    }
    if let Some(process) = &finding.process {
        let command =
            if process.arguments.is_empty() { process.executable.clone() } else { process.arguments.join(" ") };
        let from: Vec<String> = process.lineage.iter().take(3).map(called).collect();
        let from = if from.is_empty() { String::new() } else { format!(" ← {}", from.join(" ← ")) };
        parts.push(format!("{} (uid {}){from}", escape_to(&command, 120), process.uid));
    }
    if parts.is_empty() { escape_to(&finding.title, 120) } else { parts.join(" · ") }
}

/// What an ancestor is called: its program's file, or for a program with many names the one that it
/// was called by.
fn called(ancestor: &Ancestor) -> String {
    let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let program = base(&ancestor.executable);
    let by_name = MANY_NAMES.contains(&program.as_str()).then(|| ancestor.arguments.first()).flatten();
    escape_to(&by_name.map_or(program, |name| base(name)), 30)
}

/// Everything about one finding.
pub fn one(stored: &StoredFinding, now: Timestamp) -> String {
    let f = &stored.finding;
    let mut out = format!("{}  {}\n{}\n\n", severity(f.severity), escape(&f.kind), escape(&f.title));
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            out += &format!("{name:<12}{value}\n");
        }
    };
    line("id", f.id.to_string());
    line(
        "seen",
        format!(
            "{} ({}), first {} ({}), {}",
            ago(f.last_seen, now),
            f.last_seen,
            ago(f.first_seen, now),
            f.first_seen,
            many(f.count, "time")
        ),
    );
    let r = &f.resource;
    let account: Vec<&str> = [r.account.as_deref(), r.region.as_deref()].into_iter().flatten().collect();
    line("account", escape(&account.join("/")));
    for (name, value) in [
        ("cluster", &r.cluster),
        ("service", &r.service),
        ("namespace", &r.namespace),
        ("pod", &r.pod),
        ("workload", &r.workload),
        ("task", &r.task),
        ("definition", &r.task_definition),
        ("node", &r.node),
    ] {
        line(name, value.as_deref().map(escape).unwrap_or_default());
    }
    if let Some(c) = &r.container {
        let image =
            [c.image.as_deref(), c.image_digest.as_deref()].into_iter().flatten().map(escape).collect::<Vec<_>>();
        line("container", format!("{} ({})", escape(&c.name), image.join(" ")));
    }
    line("suppressed", stored.suppressed.as_deref().map(|by| format!("by {}", escape(by))).unwrap_or_default());
    let done = match f.response.done {
        None => String::new(),
        Some(true) => ", done".to_owned(),
        Some(false) => format!(", not done: {}", escape(f.response.detail.as_deref().unwrap_or("no reason given"))),
    };
    line("response", format!("{:?}{done}", f.response.wanted));
    line("agent", format!("{} ({}, depth {:?})", escape(&f.agent.version), escape(&f.agent.sensor), f.agent.depth));
    if let Some(net) = &f.network {
        let name = net.remote_name.as_deref().map(|name| format!(" ({})", escape(name))).unwrap_or_default();
        line(
            "connection",
            format!(
                "{} {} {}{name}",
                escape(&net.direction),
                escape(&net.transport),
                std::net::SocketAddr::new(net.remote_ip, net.remote_port)
            ),
        );
    }
    if let Some(dns) = &f.dns {
        let answers: Vec<String> = dns.answers.iter().map(ToString::to_string).collect();
        line("question", format!("{} {} → {}", escape(&dns.question), escape(&dns.question_type), answers.join(", ")));
    }
    if let Some(file) = &f.file {
        let target = file.target.as_deref().map(|target| format!(" → {}", escape(target))).unwrap_or_default();
        line("file", format!("{} {}{target}", escape(&file.operation), escape(&file.path)));
    }
    if f.process.is_some() {
        out += "\nprocess\n";
        out += &lineage(f);
    }
    if !f.evidence.is_empty() {
        out += "\nevidence (facts that the rule tested)\n";
        for (name, value) in &f.evidence {
            out += &format!("  {} = {}\n", escape(name), escape_to(&value.to_string(), 400));
        }
    }
    out += &format!("\nrule\n  {} ({})\n", escape(&f.rule.title), escape(&f.rule.id));
    if !f.rule.tags.is_empty() {
        out += &format!("  {}\n", escape(&f.rule.tags.join(" ")));
    }
    for reference in &f.rule.references {
        out += &format!("  {}\n", escape(reference));
    }
    if !f.rule.next_checks.is_empty() {
        out += "\nwhat to check next\n";
        for (i, check) in f.rule.next_checks.iter().enumerate() {
            out += &format!("  {}. {}\n", i + 1, escape(check));
        }
    }
    out
}

/// The process under its ancestors, the oldest first.
pub fn lineage(finding: &Finding) -> String {
    let Some(process) = &finding.process else { return String::new() };
    let label = |executable: &str, arguments: &[String], pid: u32, uid: u32| {
        let arguments =
            if arguments.is_empty() { String::new() } else { format!("  {}", escape_to(&arguments.join(" "), 200)) };
        format!("{} (pid {pid}, uid {uid}){arguments}", escape(executable))
    };
    let mut leaf = Branch::leaf(label(&process.executable, &process.arguments, process.pid, process.uid));
    let details = [
        process.sha256.as_deref().map(|hash| format!("sha256 {}", escape(hash))),
        process.working_directory.as_deref().map(|dir| format!("in {}", escape(dir))),
        process.user.as_deref().map(|user| format!("user {}", escape(user))),
        (process.euid != process.uid).then(|| format!("effective uid {}", process.euid)),
    ];
    leaf.children.extend(details.into_iter().flatten().map(Branch::leaf));
    for ancestor in &process.lineage {
        let label = label(&ancestor.executable, &ancestor.arguments, ancestor.pid, ancestor.uid);
        leaf = Branch { label, children: vec![leaf] };
    }
    draw(&leaf)
}
