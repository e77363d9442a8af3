//! Reference pages from the schemas and the command line itself, so that they cannot go stale.

use super::Cli;
use crate::desired::schema_of;
use clap::CommandFactory;
use serde_json::Value;
use tasuki_api::desired::Document;

/// docs/reference/configuration.md.
pub fn configuration() -> String {
    let mut out = "# Configuration\n\n\
        Every field of every document. Generated from the schemas by `tasuki generate`; change api/src/desired instead.\n\
        A document is `apiVersion: tasuki.dev/v1alpha1`, `kind`, `metadata: { name }` and `spec`. A directory may hold any\n\
        number of files ending in `.yaml` or `.yml` with any number of documents; `tasuki check DIR` judges them all. Unknown\n\
        fields are errors. Durations are written `10m`, sizes `128Mi`, ratios `5%`.\n\n\
        A document that becomes bad keeps its last good version in force until it is good again or gone. Bounds: 2 MiB a\n\
        file, 1000 files, 1000 documents a file, 100,000 values a document.\n"
        .to_owned();
    for kind in Document::KINDS {
        let Some(schema) = schema_of(kind) else { continue };
        let spec = resolve(&schema, &schema["properties"]["spec"]);
        out += &format!(
            "\n## {kind}\n\n{}\n\n| field | form | default | meaning |\n|---|---|---|---|\n",
            description(spec, spec)
        );
        rows(&schema, spec, "spec", 0, &mut out);
    }
    out
}

fn rows(root: &Value, schema: &Value, path: &str, depth: usize, out: &mut String) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in properties {
        let at = format!("{path}.{name}");
        let target = option(root, field);
        let (form, inner) = form(root, target);
        let default = match field.get("default") {
            _ if required.contains(&name.as_str()) => "required".to_owned(),
            Some(Value::String(text)) => format!("`{text}`"),
            Some(Value::Object(_) | Value::Array(_) | Value::Null) | None => "–".to_owned(),
            Some(other) => format!("`{other}`"),
        };
        let meaning = description(field, target).replace('|', "\\|");
        *out += &format!("| `{at}` | {form} | {default} | {meaning} |\n");
        // Schemas of ours do not refer to themselves; the bound is for the day when one does.
        if let (Some((suffix, inner)), true) = (inner, depth < 8) {
            rows(root, inner, &format!("{at}{suffix}"), depth + 1, out);
        }
    }
}

/// How a value is written, and the mapping inside it.
fn form<'a>(root: &'a Value, schema: &'a Value) -> (String, Option<(&'static str, &'a Value)>) {
    if let Some(words) = words(schema) {
        let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        return (words.join(" "), None);
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("any"),
        kind => kind.as_str().unwrap_or("any"),
    };
    match (kind, schema["pattern"].as_str().unwrap_or_default()) {
        ("string", p) if p.contains("[smhd]") => ("duration".to_owned(), None),
        ("string", p) if p.contains("Ki|Mi|Gi") => ("size".to_owned(), None),
        ("string", p) if p.ends_with("%$") => ("ratio".to_owned(), None),
        ("string", _) => ("text".to_owned(), None),
        ("boolean", _) => ("`true` `false`".to_owned(), None),
        ("integer", _) => ("whole number".to_owned(), None),
        ("array", _) => {
            let item = option(root, &schema["items"]);
            let (of, inner) = form(root, item);
            (format!("list of {of}"), inner.map(|(_, inner)| ("[]", inner)))
        }
        ("object", _) if schema["properties"].is_object() => ("mapping".to_owned(), Some(("", schema))),
        ("object", _) if schema["additionalProperties"].is_object() => {
            let value = option(root, &schema["additionalProperties"]);
            let (of, inner) = form(root, value);
            (format!("mapping of name to {of}"), inner.map(|(_, inner)| (".*", inner)))
        }
        (other, _) => (other.to_owned(), None),
    }
}

fn words(schema: &Value) -> Option<Vec<&str>> {
    if let Some(word) = schema["const"].as_str() {
        return Some(vec![word]);
    }
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(Value::as_str).collect());
    }
    let nested: Option<Vec<_>> = schema["oneOf"].as_array()?.iter().map(words).collect();
    Some(nested?.into_iter().flatten().collect())
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/"));
    name.map_or(schema, |name| &root["$defs"][name])
}

/// The schema behind a reference or an option.
fn option<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let real = schema["anyOf"].as_array().and_then(|options| options.iter().find(|o| o["type"] != "null"));
    resolve(root, real.unwrap_or(schema))
}

/// What a field means; its type's own words where the field has none.
pub fn description(field: &Value, target: &Value) -> String {
    let text = field["description"].as_str().or_else(|| target["description"].as_str()).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// docs/reference/cli.md.
pub fn command_line() -> String {
    let mut out = "# Command line\n\n\
        Generated by `tasuki generate` from the program itself. `run`, `check`, `render`, `completions` and `man` work by themselves;\n\
        the others ask a running controller (`--server`, `TASUKI_SERVER`). Those that change something send the token that the\n\
        controller keeps in `admin.token` in its state directory (mode 0600).\n\n\
        ## Exit codes\n\n\
        | code | meaning |\n|---|---|\n\
        | 0 | done. `check`: nothing is refused. `coverage`: every selected task is covered or starting |\n\
        | 1 | the answer is bad. `check` refused something; `coverage`: some tasks are not covered; `explain`, `findings show`, `render`: there is no such thing, or it cannot be done; `uninstall`: something is left |\n\
        | 2 | no answer: wrong arguments, no controller, no full sweep yet, or nothing is selected |\n\n\
        Tables fit the terminal, and are 120 columns wide where output is no terminal. Colours appear on a terminal only\n\
        (`NO_COLOR` and `CLICOLOR_FORCE` are heeded). Text that others wrote is escaped: control characters, ANSI sequences and\n\
        marks that reorder text are shown as `\\u{…}`.\n"
        .to_owned();
    let mut command = without_values(Cli::command().term_width(100));
    command.build();
    page(&mut command, "tasuki", &mut out);
    out
}

/// What the environment of whoever generates this holds is nobody's business.
fn without_values(command: clap::Command) -> clap::Command {
    command.mut_args(|argument| argument.hide_env_values(true)).mut_subcommands(without_values)
}

fn page(command: &mut clap::Command, name: &str, out: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    // The state directory's default depends on who asks.
    let help = command
        .render_long_help()
        .to_string()
        .replace(&super::run::default_state_dir().display().to_string(), "/var/lib/tasuki/controller");
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    *out += &format!("\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for sub in command.get_subcommands_mut() {
        let name = format!("{name} {}", sub.get_name());
        page(sub, &name, out);
    }
}
