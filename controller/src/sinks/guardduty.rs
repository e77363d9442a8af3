//! A finding in the detail shape of GuardDuty, so that a customer's rules change only `source` and
//! `detail-type`.
//! <https://docs.aws.amazon.com/guardduty/latest/ug/guardduty_findings-summary.html>

use serde_json::{Map, Value, json};
use tasuki_api::finding::{Finding, Process};

/// The `detail` of the event. Fields without a value are absent, as GuardDuty has it.
pub fn detail(finding: &Finding) -> Value {
    let resource = &finding.resource;
    let container = resource
        .container
        .as_ref()
        .map(|container| json!({"id": container.id, "name": container.name, "image": container.image}));
    let task = resource.task.as_ref().map(|task| {
        json!({
            "arn": task, "definitionArn": resource.task_definition, "launchType": resource.launch_type,
            "group": resource.service.as_ref().map(|service| format!("service:{service}")),
            "containers": container.as_ref().map(|container| vec![container]),
        })
    });
    let name = resource.cluster.as_deref().and_then(|arn| arn.rsplit('/').next());
    let cluster = json!({"arn": resource.cluster, "name": name, "taskDetails": task});
    let (account, region) = (resource.account.as_deref(), resource.region.as_deref());
    let partition = resource.cluster.as_deref().and_then(|arn| arn.split(':').nth(1)).unwrap_or("aws");
    let detail = json!({
        "schemaVersion": "2.0",
        "accountId": account,
        "region": region,
        "partition": partition,
        "id": finding.id.to_string(),
        "arn": format!("arn:{partition}:tasuki:{}:{}:finding/{}", region.unwrap_or(""), account.unwrap_or(""), finding.id),
        "type": finding.kind,
        "severity": finding.severity.number(),
        "title": finding.title,
        "description": finding.title,
        "createdAt": finding.first_seen.to_string(),
        "updatedAt": finding.last_seen.to_string(),
        "resource": {"resourceType": "ECSCluster", "ecsClusterDetails": cluster},
        "service": {
            "serviceName": "tasuki",
            "detectorId": "tasuki",
            "featureName": "RuntimeMonitoring",
            "eventFirstSeen": finding.first_seen.to_string(),
            "eventLastSeen": finding.last_seen.to_string(),
            "count": finding.count,
            "archived": false,
            "resourceRole": "TARGET",
            "action": action(finding),
            "runtimeDetails": {"process": finding.process.as_ref().map(process), "context": context(finding)},
        },
    });
    without_nulls(detail)
}

fn process(process: &Process) -> Value {
    let lineage: Vec<_> = process
        .lineage
        .iter()
        .map(|a| {
            json!({"pid": a.pid, "executablePath": a.executable, "userId": a.uid, "euid": a.uid,
            "name": a.executable.rsplit('/').next()})
        })
        .collect();
    json!({
        "name": process.name, "executablePath": process.executable, "executableSha256": process.sha256,
        "pid": process.pid, "namespacePid": process.namespace_pid, "pwd": process.working_directory,
        "startTime": process.started_at.map(|at| at.to_string()), "user": process.user, "userId": process.uid,
        "euid": process.euid, "lineage": lineage,
    })
}

fn context(finding: &Finding) -> Value {
    json!({
        "filePath": finding.file.as_ref().map(|file| &file.path),
        "fileOperation": finding.file.as_ref().map(|file| &file.operation),
        "commandLineExample": finding.process.as_ref().filter(|p| !p.arguments.is_empty()).map(|p| p.arguments.join(" ")),
    })
}

fn action(finding: &Finding) -> Value {
    if let Some(dns) = &finding.dns {
        let request = json!({"domain": dns.question, "protocol": "UDP", "blocked": false});
        return json!({"actionType": "DNS_REQUEST", "dnsRequestAction": request});
    }
    let Some(network) = &finding.network else { return Value::Null };
    let connection = json!({
        "connectionDirection": network.direction.to_uppercase(), "protocol": network.transport.to_uppercase(), "blocked": false,
        "remoteIpDetails": {"ipAddressV4": network.remote_ip.is_ipv4().then(|| network.remote_ip.to_string()),
            "ipAddressV6": network.remote_ip.is_ipv6().then(|| network.remote_ip.to_string())},
        "remotePortDetails": {"port": network.remote_port},
        "localIpDetails": network.local_ip.map(|ip| json!({"ipAddressV4": ip.to_string()})),
        "localPortDetails": network.local_port.map(|port| json!({"port": port})),
    });
    json!({"actionType": "NETWORK_CONNECTION", "networkConnectionAction": connection})
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect::<Map<_, _>>())
        }
        Value::Array(members) => Value::Array(members.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
