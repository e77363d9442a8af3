//! `tasuki aws inventory`: what has Tasuki made in AWS?

use super::Output;
use super::client::{AskError, Client};
use super::exit::Exit;
use super::table::{fixed, render, text};
use super::terminal::Terminal;
use crate::act::{Owned, OwnedKind};
use crate::text::{escape_to, short_arn};

/// Arguments of `tasuki aws`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum AwsCommand {
    /// What has Tasuki made here, as AWS says now?
    Inventory(InventoryArgs),
}

/// Arguments of `tasuki aws inventory`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  tasuki aws inventory\n  tasuki aws inventory -o json")]
pub struct InventoryArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Asks and shows.
pub async fn once(args: &InventoryArgs, client: &Client, terminal: Terminal) -> Result<(String, Exit), AskError> {
    let owned: Vec<Owned> = client.get_slow("inventory").await?;
    let text = match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&owned).unwrap_or_default()),
        output => list(&owned, output == Output::Wide, terminal),
    };
    Ok((text, Exit::Good))
}

/// The table, in the order in which `tasuki uninstall` takes things out.
pub fn list(owned: &[Owned], wide: bool, terminal: Terminal) -> String {
    if owned.is_empty() {
        return "Tasuki has made nothing here, or nothing is left\n".to_owned();
    }
    // The shortest form that is still unique: a definition's revision alone is not.
    let definition_name = |arn: &str| {
        let name = if wide { arn } else { arn.rsplit('/').next().unwrap_or(arn) };
        escape_to(name, 2048)
    };
    let shown = |arn: &str| escape_to(if wide { arn } else { short_arn(arn) }, if wide { 2048 } else { 80 });
    let row = |owned: &Owned| {
        let (what, name) = match &owned.kind {
            OwnedKind::Injected { service, definition } => {
                ("sidecar in service", format!("{} ({})", shown(service), definition_name(definition)))
            }
            OwnedKind::Offer { service } => ("sidecars for new pods", shown(service)),
            OwnedKind::Daemon { service } => ("daemon service", shown(service)),
            OwnedKind::Attribute { node, name } => {
                ("node attribute", format!("{} on {}", escape_to(name, 80), shown(node)))
            }
            OwnedKind::Definition { definition } => ("task definition", definition_name(definition)),
        };
        let cluster = if owned.cluster.is_empty() { "–".to_owned() } else { shown(&owned.cluster) };
        vec![owned.scope.to_string(), cluster, what.to_owned(), name]
    };
    let columns = [fixed("SCOPE"), fixed("CLUSTER"), fixed("WHAT"), text("NAME")];
    render(&columns, owned.iter().map(row).collect(), terminal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tasuki_core::fleet::ScopeId;

    #[test]
    fn each_thing_is_named_with_its_place() {
        let owned = |cluster: &str, kind| Owned {
            scope: ScopeId { account: "111122223333".into(), region: "eu-west-1".into() },
            cluster: cluster.into(),
            kind,
        };
        let cluster = "arn:aws:ecs:eu-west-1:111122223333:cluster/shop";
        let all = [
            owned(
                cluster,
                OwnedKind::Daemon { service: "arn:aws:ecs:eu-west-1:111122223333:service/shop/tasuki".into() },
            ),
            owned(
                "",
                OwnedKind::Definition {
                    definition: "arn:aws:ecs:eu-west-1:111122223333:task-definition/tasuki:3".into(),
                },
            ),
        ];
        let terminal = Terminal { width: 120, colour: false, live: false };
        let text = list(&all, false, terminal);
        assert!(
            text.contains("111122223333/eu-west-1") && text.contains("daemon service") && text.contains("tasuki:3"),
            "{text}"
        );
        assert!(list(&[], false, terminal).contains("nothing"));
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<Owned>>(&json).unwrap(),
            all,
            "the command line reads what the API answers"
        );
    }
}
