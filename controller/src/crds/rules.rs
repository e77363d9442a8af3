//! What the API server checks by CEL, in the words of `tasuki check`.
//!
//! Only what is cheap and what Kubernetes 1.32 can say; each rule has its twin in
//! `desired/check`, which also says the rest. Cost is bounded by the bounds of every text and list.

use serde_json::{Value, json};

/// The form of a name; `desired/check/text.rs` has its twin.
const NAME: &str = "self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$')";
const VERSION: &str = r"self.matches('^(0|[1-9][0-9]*)[.](0|[1-9][0-9]*)[.](0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?$')";
const DIGEST: &str = "self.matches('^sha256:[0-9a-fA-F]{64}$')";
const CLOCK: &str = "self.matches('^([01][0-9]|2[0-3]):[0-5][0-9]$')";
const NOT_BLANK: &str = "self.trim() != ''";

type Rule = (&'static str, &'static str);

/// Rules of every document as a whole.
pub fn of_documents() -> Vec<Value> {
    list(&[(NAME, "metadata.name is not a name: write lower-case letters, digits and `-`, at most 63")])
}

/// Rules of values of one type.
pub fn of_type(name: &str) -> Vec<Value> {
    list(match name {
        "RuntimeMonitorSpec" => &[(
            "!has(self.mode) || self.mode != 'Enforce' || has(self.agent)",
            "mode Enforce needs an agent to place: add spec.agent with version and image, or set mode: Observe",
        )],
        "Window" => &[("self.from != self.to", "the window ends when it begins")],
        "NodeExpression" => &[
            (
                "self.operator in ['Exists', 'DoesNotExist'] ? !has(self.values) || self.values.size() == 0 : has(self.values) && self.values.size() > 0",
                "In, NotIn, Gt and Lt need values; Exists and DoesNotExist take none",
            ),
            (
                "!(self.operator in ['Gt', 'Lt']) || (has(self.values) && self.values.size() == 1 && self.values[0].matches('^-?[0-9]+$'))",
                "Gt and Lt compare with one whole number",
            ),
        ],
        "Toleration" => {
            &[("!has(self.operator) || self.operator != 'Equal' || has(self.key)", "operator Equal needs a key")]
        }
        "AwsScopeSpec" => &[(
            "!has(self.accounts) || self.accounts.size() < 2 || has(self.readRoleName)",
            "several accounts need a role to assume in each: add readRoleName",
        )],
        "KubernetesScopeSpec" => &[(
            "has(self.kubeconfigSecretRef) != has(self.eks)",
            "name exactly one way to reach the cluster: kubeconfigSecretRef or eks",
        )],
        "ThreatListSpec" => {
            &[("has(self.inline) && self.inline.size() > 0", "the list is empty: add entries under `inline`")]
        }
        "Condition" => &[(
            "[has(self.equals) && self.equals.size() > 0, has(self.matches) && self.matches.size() > 0, has(self.cidr) && self.cidr.size() > 0].exists_one(given, given)",
            "a condition is exactly one list: equals, matches or cidr",
        )],
        "FindingSinkSpec" => &[(
            "[has(self.eventBridge), has(self.webhook), has(self.stdout)].exists_one(given, given)",
            "a sink has exactly one target: eventBridge, webhook or stdout",
        )],
        _ => &[],
    })
}

/// Rules of one field of a type.
pub fn of_field(name: &str, field: &str) -> Vec<Value> {
    list(match (name, field) {
        ("AgentSpec", "version" | "minimumVersion") => {
            &[(VERSION, "not a version: write MAJOR.MINOR.PATCH, such as 1.4.2")]
        }
        ("ImageSpec", "digest") => {
            &[(DIGEST, "not a digest: write sha256: and 64 hexadecimal digits, as the registry shows")]
        }
        ("ImageSpec", "platformDigests") => &[(
            "self.all(digest, digest.matches('^sha256:[0-9a-fA-F]{64}$'))",
            "not a digest: write sha256: and 64 hexadecimal digits",
        )],
        ("ImageSpec", "repository") => &[
            (
                "!self.contains('@') && !self.matches('.*:[^/]*$')",
                "the repository carries a tag, a digest or a scheme: write HOST/NAME alone; the digest has its own field",
            ),
            (NOT_BLANK, "the repository is empty: write HOST/NAME"),
        ],
        ("RolloutSpec", "waves") => &[
            ("self.size() > 0", "a rollout without waves changes nothing: leave `waves` out for 5 %, then 100 %"),
            (
                "self.size() == 0 || self[self.size() - 1].take.startsWith('100')",
                "the last wave takes less than 100%, so the rest never gets the new version: end with take: 100%",
            ),
            ("self.all(wave, self.exists_one(other, other.name == wave.name))", "two waves have one name"),
        ],
        ("Window", "days") => {
            &[("self.size() > 0", "a window without days never opens: name days, such as [Mon, Tue]")]
        }
        ("Window", "from" | "to") => &[(CLOCK, "not a time of day: write \"HH:MM\" in quotes, such as \"09:00\"")],
        ("Exclusion", "matches") => &[(
            "self.matches('^[^/]+/[^/]+(/[^/]+)*$')",
            "matches nothing: write CLUSTER/SERVICE, or CLUSTER/KIND/NAMESPACE/NAME; `*` and `?` are allowed",
        )],
        ("Exclusion" | "SuppressionSpec", "reason") => &[(NOT_BLANK, "the reason is empty: say why")],
        ("Toleration", "effect") => &[(
            "self in ['NoSchedule', 'PreferNoSchedule', 'NoExecute']",
            "not an effect: write NoSchedule, PreferNoSchedule or NoExecute",
        )],
        ("PodResources", "cpu") => {
            &[("self.matches('^[0-9]+m$|^[0-9]+([.][0-9]{1,3})?$')", "not an amount of CPU: write 50m, 1 or 0.5")]
        }
        ("AwsScopeSpec", "accounts") => {
            &[("self.all(account, account.matches('^[0-9]{12}$'))", "not an account id: write its 12 digits in quotes")]
        }
        ("AwsScopeSpec", "regions") => &[
            ("self.size() > 0", "a scope without Regions reaches nothing: name at least one, such as eu-west-1"),
            (
                "self.all(region, region.matches('^[a-z]{2}(-[a-z]+)+-[1-9][0-9]?$'))",
                "not a Region: write its code, such as eu-west-1",
            ),
        ],
        ("AwsScopeSpec", "gateway") => {
            &[("self.startsWith('https://')", "not the address of a gateway: write https://HOST:PORT")]
        }
        ("DetectionRuleSpec", "sigma") => {
            &[("self.size() > 0", "no Sigma rule in here: write title, logsource, detection and condition")]
        }
        ("RuleFinding", "type") => &[(
            "self.matches('^[0-9A-Za-z&.!-]+:[0-9A-Za-z&.!-]+/[0-9A-Za-z&.!-]+$') && self.size() <= 128",
            "not a finding type: write PURPOSE:Runtime/NAME, such as Custom:Runtime/ToolUsed",
        )],
        ("SuppressionSpec", "filter") => {
            &[("self.size() > 0", "an empty filter would suppress every finding: name at least one field")]
        }
        ("WebhookSink", "url") => &[(
            "self.matches('^(https://|http://(localhost|127[.][0-9.]+|[[]::1[]])(:[0-9]+)?(/|$)).*')",
            "not an https:// URL; plain http is taken for loopback only",
        )],
        ("EventBridgeSink", "source") => {
            &[("!self.startsWith('aws.')", "cannot be a source: `aws.` belongs to AWS, PutEvents refuses it")]
        }
        _ => &[],
    })
}

fn list(rules: &[Rule]) -> Vec<Value> {
    rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}
