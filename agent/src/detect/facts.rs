//! Facts: the named, typed properties of an event that rules can test.
//!
//! The table below is the documentation (docs/reference/facts.md is generated from it) and the
//! name index at once, so a fact that is not documented does not exist.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

/// What a fact's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactType {
    /// Text.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Flag,
    /// Several texts; a condition holds when it holds for one of them.
    List,
}

impl FactType {
    const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "number",
            Self::Flag => "flag",
            Self::List => "list of text",
        }
    }
}

/// One fact's documentation.
#[derive(Clone, Copy, Debug)]
pub struct FactInfo {
    /// Name in rules.
    pub name: &'static str,
    /// Names that the Sigma linux taxonomy uses for it.
    pub aliases: &'static [&'static str],
    /// What its value is.
    pub kind: FactType,
    /// Event classes that give it.
    pub classes: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

macro_rules! facts {
    ($($id:ident $name:literal [$($alias:literal),*] $kind:ident $classes:literal $meaning:literal;)+) => {
        /// A fact's place in the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Fact {
            $(#[doc = $meaning] $id,)+
        }
        /// Every fact, in the order of [`Fact`].
        pub const FACTS: &[FactInfo] = &[
            $(FactInfo { name: $name, aliases: &[$($alias),*], kind: FactType::$kind, classes: $classes, meaning: $meaning },)+
        ];
        const IDS: &[Fact] = &[$(Fact::$id),+];
    };
}

facts! {
    Category "event.category" ["category"] Text "all" "Event class, as in a rule's `logsource.category`.";
    ContainerPresent "container.present" [] Flag "all" "The process is in a container. Rules apply to containers only unless they say `tasuki.scope: host` or `any`.";
    ContainerId "container.id" [] Text "all" "Runtime id of the container.";
    ContainerName "container.name" [] Text "all" "Name of the container in its task definition or pod, once known.";
    ContainerImage "container.image.name" [] Text "all" "Image as it was asked for, once known.";
    ContainerAge "container.age_seconds" [] Number "all" "Seconds since the container's first process started, as far as the agent saw.";
    TaskArn "task.arn" [] Text "all" "ARN of the ECS task, or `k8s/CLUSTER/pod/NAMESPACE/UID/NAME`, once known.";
    ServiceName "service.name" [] Text "all" "ECS service, or task-definition family where there is none.";
    Pid "process.pid" ["ProcessId"] Number "all" "Process id as the agent's host sees it.";
    Image "process.executable" ["Image", "exe"] Text "all" "Path of the program that runs.";
    ImageName "process.name" ["comm"] Text "all" "Last part of `process.executable`, without ` (deleted)`.";
    CommandLine "process.command_line" ["CommandLine"] Text "all" "Arguments, joined by spaces.";
    Arguments "process.args" [] List "all" "Arguments, one each.";
    ArgumentCount "process.args_count" [] Number "all" "Number of arguments, the name that the process was called as among them.";
    Cwd "process.working_directory" ["CurrentDirectory"] Text "process_creation" "Working directory, where it was readable.";
    Uid "process.user.id" ["uid"] Number "all" "Real user id.";
    Euid "process.effective_user.id" ["euid"] Number "all" "Effective user id.";
    PreviousEuid "process.previous.effective_user.id" [] Number "process_creation, credentials_change" "Effective user id before the event.";
    UserName "process.user.name" ["User"] Text "all" "Name of the real user in the container's passwd file, where it has one.";
    ParentImage "process.parent.executable" ["ParentImage"] Text "all" "Path of the parent's program.";
    ParentName "process.parent.name" [] Text "all" "Last part of `process.parent.executable`.";
    ParentCommandLine "process.parent.command_line" ["ParentCommandLine"] Text "all" "The parent's arguments, joined by spaces.";
    ParentPid "process.parent.pid" ["ParentProcessId"] Number "all" "The parent's process id.";
    AncestorNames "process.ancestors.name" [] List "all" "Names of the programs of up to 16 ancestors, parent first.";
    ServiceAncestor "process.parent.listening" [] Flag "process_creation" "The parent, or the nearest ancestor that is not a shell, listens on an internet socket or was forked from one that does.";
    PackageManager "process.lineage.package_manager" [] Flag "all" "The process or an ancestor in its container is a package manager or build tool.";
    SuspiciousContext "process.suspicious_context" [] List "all" "Why what this process does deserves a closer look: `exec_session` (not a descendant of the container's first process), `service_ancestor`, `new_binary` (it or an ancestor runs a program that was written after the start), `earlier_finding` (the container had one in the last hour).";
    Shell "process.is_shell" [] Flag "process_creation" "The program is a command shell.";
    Interactive "process.interactive" [] Flag "process_creation" "Descriptor 0 is a terminal, or a shell was started with -i, or without a script on a pipe or socket.";
    ReverseShell "process.reverse_shell" [] Flag "process_creation" "A shell whose descriptors 0 and 1 are connected internet sockets, or whose near ancestor's are while the shell has a terminal.";
    ReversePeer "process.reverse_shell.peer" [] Text "process_creation" "The other side of that socket, where known.";
    StdinSocket "process.stdin_is_socket" [] Flag "process_creation" "Descriptor 0 is an internet socket.";
    StdoutSocket "process.stdout_is_socket" [] Flag "process_creation" "Descriptor 1 is an internet socket.";
    StderrSocket "process.stderr_is_socket" [] Flag "process_creation" "Descriptor 2 is an internet socket.";
    Script "process.script" [] Text "process_creation" "Script that an interpreter was started for.";
    Memfd "process.image.memfd" [] Flag "process_creation" "The program lies in memory only (memfd), with no file behind it.";
    Deleted "process.image.deleted" [] Flag "process_creation" "The program's file had no directory entry when it was started.";
    UpperLayer "process.image.upper_layer" [] Flag "process_creation" "The program's file lies in the container's writable layer: it is not the image's own.";
    Written "process.image.written_after_start" [] Flag "process_creation" "A write to the program's file was seen in this container, or it lies in the writable layer.";
    WrittenWeak "process.image.changed_after_start_weak" [] Flag "process_creation" "Weak: the file's ctime is later than the container's start; a chmod by an entry point looks the same.";
    Writer "process.image.writer" [] Text "process_creation" "Program that was seen writing the file.";
    WriterPackageManager "process.image.writer_is_package_manager" [] Flag "process_creation" "`process.image.writer` is a package manager or build tool.";
    Setuid "process.image.setuid_root" [] Flag "process_creation" "The file is set-user-id and owned by root.";
    Sha256 "process.hash.sha256" ["sha256"] Text "process_creation" "SHA-256 of the program, once computed; rules that test it are judged again when it is.";
    Sha256Listed "process.image.sha256_listed" [] Flag "process_creation" "The SHA-256 is on a threat list and on no trusted one.";
    Sha256Category "process.image.sha256_category" [] List "process_creation" "Categories of those lists.";
    LdPreload "process.env.ld_preload" [] Text "process_creation" "LD_PRELOAD, where set.";
    LdLibraryPath "process.env.ld_library_path" [] Text "process_creation" "LD_LIBRARY_PATH, where set.";
    MinerArguments "process.miner_arguments" [] Flag "process_creation" "The arguments are those of a cryptocurrency miner: a stratum address, or at least two options that only miners have.";
    CwdProcFd "process.working_directory_is_proc_fd" [] Flag "process_creation" "The working directory is a descriptor path (/proc/self/fd/N, /proc/N/fd/N), as in CVE-2024-21626.";
    Elevated "process.elevated_to_root" [] Flag "process_creation, credentials_change" "The effective user became root at this event, and neither the user nor the program's start had been.";
    Transport "network.transport" ["Protocol"] Text "network_connection, network_listen" "`tcp` or `udp`.";
    Direction "network.direction" [] Text "network_connection" "`outbound` or `inbound`.";
    Initiated "network.initiated" ["Initiated"] Text "network_connection" "`true` for outbound, `false` for inbound (text, as Sigma rules write it).";
    RemoteIp "destination.ip" ["DestinationIp"] Text "network_connection" "Address of the other side.";
    RemotePort "destination.port" ["DestinationPort"] Number "network_connection" "Port of the other side.";
    RemoteName "destination.domain" ["DestinationHostname"] Text "network_connection" "Name that an earlier DNS answer gave for that address.";
    RemotePublic "destination.public" [] Flag "network_connection" "The address is not private, loopback, link-local or otherwise reserved.";
    RemoteListed "network.remote.listed" [] Flag "network_connection" "The address is on a threat list and on no trusted one.";
    RemoteCategory "network.remote.category" [] List "network_connection" "Categories of those lists.";
    RemoteNameCategory "network.remote.name_category" [] List "network_connection" "Categories of the lists that `destination.domain` is on.";
    MinerPort "network.remote.miner_port" [] Flag "network_connection" "The port is one that mining pools publish and little else uses. A hint, not proof.";
    LocalIp "source.ip" ["SourceIp"] Text "network_connection, network_listen" "This side's address.";
    LocalPort "source.port" ["SourcePort"] Number "network_connection, network_listen" "This side's port.";
    Question "dns.question.name" ["QueryName", "query"] Text "dns_query" "Name asked for, lower case, without the final dot.";
    QuestionType "dns.question.type" ["record_type"] Text "dns_query" "`A`, `AAAA`, …";
    QuestionListed "dns.question.listed" [] Flag "dns_query" "The name or a parent domain is on a threat list and on no trusted one. Absent on an answer whose question was seen.";
    QuestionCategory "dns.question.category" [] List "dns_query" "Categories of those lists.";
    IsAnswer "dns.is_answer" [] Flag "dns_query" "The message is an answer.";
    Answers "dns.answers" ["QueryResults", "answer"] List "dns_query" "Addresses in the answer.";
    MetadataAnswer "dns.answers.metadata_address" [] Flag "dns_query" "An answer is the address of the instance metadata service (169.254.169.254 or fd00:ec2::254).";
    DnsServer "dns.server.ip" [] Text "dns_query" "The server asked.";
    FilePath "file.path" ["TargetFilename"] Text "file_event" "Path as the container sees it.";
    FileName "file.name" [] Text "file_event" "Last part of `file.path`.";
    FileOperation "file.operation" [] Text "file_event" "`write`, `create`, `rename`, `link`, `symlink`, `unlink`, `chmod` or `open`.";
    FileTarget "file.target" [] Text "file_event" "The other path of a rename, link or symlink.";
    FilePaths "file.paths" [] List "file_event" "`file.path` and `file.target`, so that a rename onto a path is a change of it.";
    ActorKnown "file.actor_known" [] Flag "file_event" "The sensor saw who did it.";
}

/// A fact's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// A whole number.
    Number(i64),
    /// `true` or `false`.
    Flag(bool),
    /// Several texts.
    List(Vec<Cow<'a, str>>),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}
impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}
impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}
impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Number(i64::from(number))
    }
}
impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// The facts of one event.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    values: Vec<Option<Value<'a>>>,
}

impl Default for Facts<'_> {
    fn default() -> Self {
        Self { values: vec![None; FACTS.len()] }
    }
}

impl<'a> Facts<'a> {
    /// States a fact.
    pub fn set(&mut self, fact: Fact, value: impl Into<Value<'a>>) {
        let value = value.into();
        if let Some(slot) = self.values.get_mut(fact as usize) {
            *slot = Some(value);
        }
    }

    /// States a fact if there is something to state.
    pub fn set_some(&mut self, fact: Fact, value: Option<impl Into<Value<'a>>>) {
        if let Some(value) = value {
            self.set(fact, value);
        }
    }

    /// States a list fact; an empty list is no fact.
    pub fn set_list<T: Into<Cow<'a, str>>>(&mut self, fact: Fact, values: impl IntoIterator<Item = T>) {
        let list: Vec<Cow<'a, str>> = values.into_iter().map(Into::into).collect();
        if !list.is_empty() {
            self.set(fact, Value::List(list));
        }
    }

    /// What is known of a fact.
    pub fn get(&self, fact: Fact) -> Option<&Value<'a>> {
        self.values.get(fact as usize)?.as_ref()
    }

    /// Whether a flag is known and true.
    pub fn flag(&self, fact: Fact) -> bool {
        matches!(self.get(fact), Some(Value::Flag(true)))
    }

    /// A text fact.
    pub fn text(&self, fact: Fact) -> Option<&str> {
        match self.get(fact)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn known(&self) -> impl Iterator<Item = (Fact, &Value<'a>)> {
        IDS.iter().zip(&self.values).filter_map(|(id, value)| Some((*id, value.as_ref()?)))
    }
}

static BY_NAME: LazyLock<HashMap<&'static str, Fact>> = LazyLock::new(|| {
    let mut map = HashMap::new();
    for (id, info) in IDS.iter().zip(FACTS) {
        map.insert(info.name, *id);
        for alias in info.aliases {
            map.insert(alias, *id);
        }
    }
    map
});

/// The fact that a rule calls `name`, by its own name or a Sigma alias.
pub fn by_name(name: &str) -> Option<Fact> {
    BY_NAME.get(name).copied()
}

/// A fact's documentation.
pub fn info(fact: Fact) -> &'static FactInfo {
    &FACTS[fact as usize]
}

fn view<'s>(value: &'s Value<'_>) -> rsigma_eval::EventValue<'s> {
    use rsigma_eval::EventValue;
    match value {
        Value::Text(text) => EventValue::Str(Cow::Borrowed(text)),
        Value::Number(number) => EventValue::Int(*number),
        Value::Flag(flag) => EventValue::Bool(*flag),
        Value::List(list) => {
            EventValue::Array(list.iter().map(|text| EventValue::Str(Cow::Borrowed(text.as_ref()))).collect())
        }
    }
}

impl rsigma_eval::Event for Facts<'_> {
    fn get_field(&self, path: &str) -> Option<rsigma_eval::EventValue<'_>> {
        self.get(by_name(path)?).map(view)
    }

    fn any_string_value(&self, pred: &dyn Fn(&str) -> bool) -> bool {
        self.known().any(|(_, value)| match value {
            Value::Text(text) => pred(text),
            Value::List(list) => list.iter().any(|text| pred(text)),
            Value::Number(_) | Value::Flag(_) => false,
        })
    }

    fn all_string_values(&self) -> Vec<Cow<'_, str>> {
        let mut all = Vec::new();
        for (_, value) in self.known() {
            match value {
                Value::Text(text) => all.push(Cow::Borrowed(text.as_ref())),
                Value::List(list) => all.extend(list.iter().map(|text| Cow::Borrowed(text.as_ref()))),
                Value::Number(_) | Value::Flag(_) => {}
            }
        }
        all
    }

    fn to_json(&self) -> serde_json::Value {
        self.known().map(|(id, value)| (info(id).name.to_owned(), view(value).to_json())).collect()
    }
}

/// docs/reference/facts.md, from the table.
pub fn reference() -> String {
    let mut page = String::from(
        "# Facts\n\n\
         <!-- Generated from agent/src/detect/facts.rs by `tasuki-agent rules facts`; a test keeps it current. -->\n\n\
         Rules test facts. Each one is given by the event classes named beside it; a fact that an event does not have\n\
         is absent, and a condition on it does not hold. All are there since version 0.1.0.\n\n\
         | fact | Sigma names | type | classes | meaning |\n|---|---|---|---|---|\n",
    );
    for fact in FACTS {
        let aliases: Vec<String> = fact.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} |",
            fact.name,
            aliases.join(", "),
            fact.kind.name(),
            fact.classes,
            fact.meaning
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsigma_eval::Event as _;

    #[test]
    fn every_name_and_alias_is_one_fact() {
        let names = FACTS.iter().map(|fact| 1 + fact.aliases.len()).sum::<usize>();
        assert_eq!(BY_NAME.len(), names, "a name or alias stands twice");
        for (id, info) in IDS.iter().zip(FACTS) {
            assert_eq!(by_name(info.name), Some(*id));
        }
    }

    #[test]
    fn a_rule_reads_a_fact_by_either_name() {
        let mut facts = Facts::default();
        facts.set(Fact::Image, "/bin/sh");
        assert_eq!(facts.get_field("Image"), facts.get_field("process.executable"));
        assert!(facts.get_field("Image").is_some());
        assert!(facts.get_field("nonsense").is_none());
    }

    #[test]
    fn the_reference_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/facts.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == reference(),
            "docs/reference/facts.md is stale: tasuki-agent rules facts > docs/reference/facts.md"
        );
    }
}
