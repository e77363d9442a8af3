//! `AwsScope` and `KubernetesScope`.

use super::super::yaml::at;
use super::Report;
use super::text::{is_account, is_region, is_role_name, short};
use tasuki_api::desired::{AwsScopeSpec, KubernetesScopeSpec, Ratio};
use url::Url;

pub fn aws(spec: &AwsScopeSpec, report: &mut Report) {
    for (i, account) in spec.accounts.iter().enumerate() {
        let at = at!["spec", "accounts", i];
        if !is_account(account) {
            report.error(at, format!("`{}` is not an account id", short(account)), "write its 12 digits in quotes");
        } else if spec.accounts[..i].contains(account) {
            report.error(at, format!("account {account} is listed twice"), "");
        }
    }
    if spec.regions.is_empty() {
        report.error(
            at!["spec", "regions"],
            "a scope without Regions reaches nothing",
            "name at least one, such as eu-west-1",
        );
    }
    for (i, region) in spec.regions.iter().enumerate() {
        let at = at!["spec", "regions", i];
        if !is_region(region) {
            report.error(at, format!("`{}` is not a Region", short(region)), "write its code, such as eu-west-1");
        } else if spec.regions[..i].contains(region) {
            report.error(at, format!("Region {region} is listed twice"), "");
        }
    }
    for (field, name) in [("readRoleName", &spec.read_role_name), ("actRoleName", &spec.act_role_name)] {
        if let Some(name) = name.as_deref().filter(|name| !is_role_name(name)) {
            let message = format!("`{}` is not the name of a role", short(name));
            report.error(
                at!["spec", field],
                message,
                "write its name, not its ARN: every account has one of this name",
            );
        }
    }
    if spec.accounts.len() > 1 && spec.read_role_name.is_none() {
        let help = "add readRoleName; one set of credentials reaches one account";
        report.error(at!["spec", "accounts"], "several accounts need a role to assume in each", help);
    }
    for (field, arn) in [("agentTaskRole", &spec.agent_task_role), ("agentExecutionRole", &spec.agent_execution_role)] {
        if let Some(arn) = arn.as_deref().filter(|arn| !is_role_arn(arn)) {
            let message = format!("`{}` is not the ARN of a role", short(arn));
            report.error(at!["spec", field], message, "write arn:aws:iam::ACCOUNT:role/NAME");
        }
    }
    if let Some(queue) = &spec.event_queue {
        match Url::parse(queue) {
            Ok(url) if url.scheme() == "https" || loopback(&url) => {}
            _ => {
                let message = format!("`{}` is not the URL of a queue", short(queue));
                report.error(at!["spec", "eventQueue"], message, "write https://sqs.REGION.amazonaws.com/ACCOUNT/NAME");
            }
        }
    }
    if let Some(gateway) = &spec.gateway
        && !Url::parse(gateway).is_ok_and(|url| url.scheme() == "https" && url.host().is_some() && url.path() == "/")
    {
        let message = format!("`{}` is not the address of a gateway", short(gateway));
        report.error(at!["spec", "gateway"], message, "write https://HOST:PORT");
    }
    if spec.sweep_interval.as_secs() < 60 {
        let message = format!("{} is too often for a full sweep", spec.sweep_interval);
        report.error(at!["spec", "sweepInterval"], message, "write at least 1m; 10m is the default");
    }
    if spec.share == Ratio::default() {
        report.error(at!["spec", "share"], "0% of the request limits allows no call at all", "25% is the default");
    } else if spec.share > Ratio::from_percent(50) {
        let message = format!("{} of the account's request limits leaves little for its own pipelines", spec.share);
        report.warning(at!["spec", "share"], message, "25% is the default");
    }
}

pub fn kubernetes(spec: &KubernetesScopeSpec, report: &mut Report) {
    match (&spec.kubeconfig_secret_ref, &spec.eks) {
        (Some(_), None) => {}
        (None, Some(arn)) => {
            let parts: Vec<&str> = arn.splitn(6, ':').collect();
            let good = matches!(parts.as_slice(), ["arn", _, "eks", region, account, rest]
                if is_region(region) && is_account(account) && rest.starts_with("cluster/"));
            if !good {
                let message = format!("`{}` is not the ARN of an EKS cluster", short(arn));
                report.error(at!["spec", "eks"], message, "write arn:aws:eks:REGION:ACCOUNT:cluster/NAME");
            }
        }
        _ => report.error(
            at!["spec"],
            "name exactly one way to reach the cluster",
            "valid here: kubeconfigSecretRef, eks",
        ),
    }
}

/// Whether a URL leads to this machine and nowhere else.
pub fn loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn is_role_arn(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    matches!(parts.as_slice(), ["arn", _, "iam", "", account, rest]
        if is_account(account) && rest.strip_prefix("role/").is_some_and(|name| !name.is_empty()))
}
