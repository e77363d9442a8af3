//! Commands that change something: `freeze`, `rollout retry`, `uninstall`. They need the token.

use super::client::{AskError, Client};
use super::exit::Exit;
use crate::text::{escape, many};
use crate::web::{FreezeAnswer, RetryAnswer, UninstallAnswer};
use serde_json::json;

/// Arguments of `tasuki freeze`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tasuki freeze          (stop every change at once, git is not touched)\n  tasuki freeze --off"
)]
pub struct FreezeArgs {
    /// Allow changes again
    #[arg(long)]
    pub off: bool,
}

/// Arguments of `tasuki rollout`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum RolloutCommand {
    /// Try failed versions and rolled-back services again
    #[command(after_help = "Example:\n  tasuki rollout retry shop-ec2")]
    Retry {
        /// Name or ARN of the cluster
        cluster: String,
    },
}

/// Arguments of `tasuki uninstall`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tasuki uninstall --yes\n\nChanges stay frozen afterwards, so that nothing comes back; `tasuki freeze --off` allows them again."
)]
pub struct UninstallArgs {
    /// Take every agent out of every cluster
    #[arg(long)]
    pub yes: bool,
}

/// Stops, or allows again, every change.
pub async fn freeze(args: &FreezeArgs, client: &Client) -> Result<(String, Exit), AskError> {
    let answer: FreezeAnswer = client.post("freeze", &json!({ "frozen": !args.off })).await?;
    let text = if answer.frozen {
        "frozen: nothing is changed any more; `tasuki freeze --off` allows it again\n"
    } else {
        "not frozen: changes go on, as far as the desired state allows\n"
    };
    Ok((text.to_owned(), Exit::Good))
}

/// Forgets failures of a cluster.
pub async fn retry(cluster: &str, client: &Client) -> Result<(String, Exit), AskError> {
    let answer: RetryAnswer = client.post("retry", &json!({ "cluster": cluster })).await?;
    Ok(match answer.forgotten {
        0 => (format!("nothing has failed in {}\n", escape(cluster)), Exit::Bad),
        n => (
            format!("{} forgotten in {}; the next round tries again\n", many(n as u64, "failure"), escape(cluster)),
            Exit::Good,
        ),
    })
}

/// Takes everything out again.
pub async fn uninstall(args: &UninstallArgs, client: &Client) -> Result<(String, Exit), AskError> {
    if !args.yes {
        let text = "this takes every agent that Tasuki placed out of every cluster; say --yes if that is meant\n";
        return Ok((text.to_owned(), Exit::Unknown));
    }
    let answer: UninstallAnswer = client.post("uninstall", &json!({})).await?;
    if answer.left.is_empty() {
        let text = "nothing of Tasuki is left in the clusters; changes are frozen so that it stays so \
                    (`tasuki freeze --off` allows them again)\n";
        return Ok((text.to_owned(), Exit::Good));
    }
    let left: Vec<String> = answer.left.iter().map(|thing| format!("  {}\n", escape(thing))).collect();
    let text =
        format!("{} left (`tasuki aws inventory` asks again):\n{}", many(left.len() as u64, "thing"), left.concat());
    Ok((text, Exit::Bad))
}
