//! The transform and its inverse, over generated definitions.

use super::*;
use crate::action::{AgentSpec, GatewaySpec, SIDECAR, SidecarSpec, labels};
use proptest::prelude::*;
use serde_json::json;

const SOURCE: &str = "arn:aws:ecs:eu-west-1:111122223333:task-definition/shop:17";

fn spec(share_processes: bool, fail_closed: bool, grow: bool) -> SidecarSpec {
    let agent = AgentSpec {
        version: "1.4.2".into(),
        image: "111122223333.dkr.ecr.eu-west-1.amazonaws.com/tasuki-agent@sha256:aa".into(),
        sensor: "auto".into(),
        memory_mib: 128,
        cpu: "10%".into(),
        task_role: None,
        execution_role: None,
        gateway: GatewaySpec { url: "https://g:8443".into(), ca: "ca".into(), policy_key: "key".into() },
        pods: None,
    };
    SidecarSpec { agent, share_processes, fail_closed, grow }
}

fn definition() -> Value {
    json!({
        "taskDefinitionArn": SOURCE, "revision": 17, "status": "ACTIVE", "registeredAt": 1.5, "registeredBy": "ci",
        "requiresAttributes": [], "compatibilities": ["EC2", "FARGATE"],
        "family": "shop", "executionRoleArn": "arn:aws:iam::111122223333:role/exec", "networkMode": "awsvpc",
        "cpu": "256", "memory": "1024", "requiresCompatibilities": ["FARGATE"], "volumes": [], "placementConstraints": [],
        "enableFaultInjection": false,
        "containerDefinitions": [
            {"name": "app", "image": "shop:1", "cpu": 0, "memory": 512, "essential": true, "environment": [{"name": "A", "value": ""}],
             "logConfiguration": {"logDriver": "awslogs", "options": {
                "awslogs-group": "/shop", "awslogs-region": "eu-west-1", "awslogs-create-group": "true"}}},
            {"name": "db", "image": "db:1", "dependsOn": [{"containerName": "app", "condition": "START"}]},
        ],
    })
}

fn without_read_only(definition: &Value) -> Value {
    let fields = definition.as_object().unwrap().iter().filter(|(key, _)| !READ_ONLY.contains(&key.as_str()));
    Value::Object(fields.map(|(k, v)| (k.clone(), v.clone())).collect())
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z\"\\\\é ]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,6}", inner, 0..3).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

prop_compose! {
    /// A container with fields that the transform reads, and some that it has never heard of.
    fn any_container()(
        memory in prop::option::of(1_u32..900), reservation in prop::option::of(1_u32..300), cpu in prop::option::of(0_u32..200),
        depends in prop::option::of(prop::collection::vec(anything(), 0..3)),
        labels in prop::option::of(prop::collection::btree_map("[a-z.]{1,8}", "[a-z]{0,4}", 0..3)),
        extra in prop::collection::btree_map("x[a-zA-Z]{1,8}", anything(), 0..4),
    ) -> Value {
        let mut container = json!({"image": "i"});
        for (key, value) in [("memory", memory), ("memoryReservation", reservation), ("cpu", cpu)] {
            if let Some(value) = value { container[key] = json!(value); }
        }
        if let Some(depends) = depends { container["dependsOn"] = json!(depends); }
        if let Some(labels) = labels { container["dockerLabels"] = json!(labels); }
        for (key, value) in extra { container[key] = value; }
        container
    }
}

prop_compose! {
    fn any_definition()(
        containers in prop::collection::vec(any_container(), 1..11),
        size in prop::option::of(prop::sample::select(vec![("256", "512"), ("512", "1GB"), (".25 vCPU", "2 GB"), ("4096", "30720")])),
        pid in prop::option::of(prop::sample::select(vec!["task", "host"])),
        role in prop::option::of("[a-z]{1,5}"),
        family in "[a-z]{1,6}(-tasuki)?",
        others in prop::collection::btree_map(
            prop::sample::select(WRITABLE[8..].iter().filter(|k| !["cpu", "memory", "pidMode", "runtimePlatform"].contains(*k)).copied().collect::<Vec<_>>()),
            anything(), 0..4),
        read_only in prop::collection::btree_map(prop::sample::select(READ_ONLY.to_vec()), anything(), 0..5),
    ) -> Value {
        let mut definition = json!({"family": family});
        for (key, value) in others.into_iter().chain(read_only) { definition[key] = value; }
        if let Some(role) = role { definition["executionRoleArn"] = json!(role); }
        if let Some((cpu, memory)) = size { definition["cpu"] = json!(cpu); definition["memory"] = json!(memory); }
        if let Some(pid) = pid { definition["pidMode"] = json!(pid); }
        let mut containers = containers;
        for (index, container) in containers.iter_mut().enumerate() { container["name"] = json!(format!("c{index}")); }
        definition["containerDefinitions"] = json!(containers);
        definition
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_inverse_gives_back_the_input(definition in any_definition(), share: bool, closed: bool, grow: bool) {
        let spec = spec(share, closed, grow);
        if let Ok(injected) = inject(&definition, &spec, SOURCE) {
            prop_assert_eq!(strip(&injected).unwrap(), without_read_only(&definition));
            prop_assert_eq!(strip(&injected).unwrap().to_string(), without_read_only(&definition).to_string(), "order of keys too");
            let again = inject(&injected, &spec, "arn of the injected one").unwrap();
            prop_assert_eq!(&again, &injected, "injecting twice is injecting once");
            prop_assert!(serde_json::to_vec(&injected).unwrap().len() < 64 * 1024);
            prop_assert!(injected["containerDefinitions"].as_array().unwrap().len() <= 10);
            if let (Some(memory), (_, reserved)) = (sizes::task_memory(injected.as_object().unwrap()),
                sizes::reserved(containers(injected.as_object().unwrap()))) {
                prop_assert!(reserved <= memory, "ECS would refuse {reserved} of {memory} MiB");
            }
        }
        if let Ok(rendered) = render(&definition, &spec) {
            prop_assert_eq!(&rendered["family"], &definition["family"]);
            prop_assert_eq!(strip(&rendered).unwrap(), without_read_only(&definition));
        }
    }

    #[test]
    fn the_hash_knows_content_not_order(definition in any_definition()) {
        let fields = definition.as_object().unwrap();
        let reversed = Value::Object(fields.iter().rev().map(|(k, v)| (k.clone(), v.clone())).collect());
        prop_assert_eq!(content_hash(&definition), content_hash(&reversed));
        prop_assert_eq!(content_hash(&definition), content_hash(&without_read_only(&definition)));
        let mut other = definition.clone();
        other["family"] = json!("OTHER");
        prop_assert_ne!(content_hash(&definition), content_hash(&other));
    }
}

#[test]
fn the_sidecar_is_as_fargate_takes_it() {
    let injected = inject(&definition(), &spec(true, false, false), SOURCE).unwrap();
    assert_eq!(injected["family"], "shop-tasuki");
    assert_eq!(injected["pidMode"], "task");
    assert!(READ_ONLY.iter().all(|key| injected.get(key).is_none()));
    let sidecar = &injected["containerDefinitions"][2];
    insta::assert_json_snapshot!(sidecar);
    // Fargate allows only SYS_PTRACE to be added; NET_RAW must stay where Docker puts it.
    let capabilities = &sidecar["linuxParameters"]["capabilities"];
    assert_eq!(capabilities["add"], json!(["SYS_PTRACE"]));
    assert!(!capabilities["drop"].as_array().unwrap().contains(&json!("NET_RAW")));
    let keep = inject(&definition(), &spec(false, false, false), SOURCE).unwrap();
    assert_eq!(keep.get("pidMode"), None);
    assert_eq!(keep["containerDefinitions"][2]["linuxParameters"]["capabilities"].get("add"), None);
}

#[test]
fn fail_closed_makes_every_container_wait_and_records_it() {
    let injected = inject(&definition(), &spec(true, true, false), SOURCE).unwrap();
    let wait = json!({"containerName": SIDECAR, "condition": "HEALTHY"});
    assert_eq!(injected["containerDefinitions"][0]["dependsOn"], json!([wait]));
    assert_eq!(injected["containerDefinitions"][1]["dependsOn"][1], wait);
    let label = injected["containerDefinitions"][2]["dockerLabels"][labels::ADDED].as_str().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(label).unwrap(),
        json!({"pidMode": true, "dependsOn": ["app", "db"], "dependsOnNew": ["app"]})
    );
    assert!(injected["containerDefinitions"][2]["healthCheck"].is_object());
}

#[test]
fn a_full_task_is_refused_or_grows() {
    let mut full = definition();
    full["memory"] = json!("512");
    let refused = inject(&full, &spec(true, false, false), SOURCE).unwrap_err();
    assert_eq!((refused.reason, refused.detail.contains("512 of 512 MiB")), (Reason::NoRoom, true));
    let grown = inject(&full, &spec(true, false, true), SOURCE).unwrap();
    assert_eq!((&grown["cpu"], &grown["memory"]), (&json!("256"), &json!("1024")));
    assert_eq!(strip(&grown).unwrap()["memory"], "512");
    full["containerDefinitions"][0]["cpu"] = json!(256);
    let tight = inject(&full, &spec(true, false, true), SOURCE).unwrap();
    assert_eq!(tight["containerDefinitions"][2].get("cpu"), None, "no CPU room: no cpu is set");
}

#[test]
fn every_obstacle_has_its_reason() {
    type Edit = fn(&mut Value);
    let edits: Vec<(Reason, Edit)> = vec![
        (Reason::UnsupportedPlatform, |d| {
            d["runtimePlatform"] = json!({"operatingSystemFamily": "WINDOWS_SERVER_2022_CORE"})
        }),
        (Reason::UnsupportedPlatform, |d| d["somethingNew"] = json!(1)),
        (Reason::UnsupportedPlatform, |d| d["containerDefinitions"] = json!([])),
        (Reason::UnsupportedArchitecture, |d| d["runtimePlatform"] = json!({"cpuArchitecture": "RISCV64"})),
        (Reason::UnsupportedNetworkMode, |d| d["networkMode"] = json!("none")),
        (Reason::MissingExecutionRole, |d| d["executionRoleArn"] = json!("")),
        (Reason::NoRoom, |d| d["family"] = json!("f".repeat(252))),
        (Reason::NoRoom, |d| d["containerDefinitions"][0]["name"] = json!(SIDECAR)),
        (Reason::NoRoom, |d| {
            let all: Vec<_> = (0..10).map(|i| json!({"name": format!("c{i}")})).collect();
            d["containerDefinitions"] = json!(all);
        }),
        (Reason::NoRoom, |d| d["containerDefinitions"][0]["image"] = json!("i".repeat(64 * 1024))),
        (Reason::PidNamespaceConflict, |d| d["pidMode"] = json!("host")),
        (Reason::PidNamespaceConflict, |d| d["containerDefinitions"][1]["entryPoint"] = json!(["/init"])),
        (Reason::PidNamespaceConflict, |d| {
            d["containerDefinitions"][1]["dockerLabels"] = json!({(labels::PID_ONE): "required"})
        }),
    ];
    for (reason, edit) in edits {
        let mut definition = definition();
        edit(&mut definition);
        let obstacle = inject(&definition, &spec(true, false, false), SOURCE).unwrap_err();
        assert_eq!(obstacle.reason, reason, "{obstacle}");
    }
    assert!(inject(&json!([]), &spec(true, false, false), SOURCE).is_err());
}

#[test]
fn the_projection_holds_no_secret_and_knows_whose_sidecar_it_is() {
    let mut secret = definition();
    secret["containerDefinitions"][0]["environment"][0]["value"] = json!("hunter2");
    let spec = spec(true, false, false);
    let plain = project(&secret, Some(&spec)).unwrap();
    assert_eq!((plain.sidecar, plain.obstacle, plain.judged_for), (None, None, Some(spec.fingerprint())));
    let mut injected = inject(&secret, &spec, SOURCE).unwrap();
    injected["taskDefinitionArn"] = json!("arn:aws:ecs:eu-west-1:111122223333:task-definition/shop-tasuki:1");
    let projected = project(&injected, None).unwrap();
    assert!(!serde_json::to_string(&projected).unwrap().contains("hunter2"));
    let mark = projected.sidecar.unwrap();
    assert_eq!((mark.source.as_deref(), mark.spec), (Some(SOURCE), Some(spec.fingerprint())));
    let mut rendered = render(&secret, &spec).unwrap();
    rendered["taskDefinitionArn"] = json!(SOURCE);
    assert_eq!(project(&rendered, None).unwrap().sidecar.unwrap().source, None, "the owner's own");
}

#[test]
fn the_daemon_is_privileged_on_the_host_and_carries_no_secret() {
    let agent = AgentSpec { task_role: Some("role".into()), ..spec(true, false, false).agent };
    insta::assert_json_snapshot!(daemon_definition(&agent));
}

#[test]
fn notes_name_what_is_no_obstacle() {
    let mut definition = definition();
    definition["proxyConfiguration"] = json!({"type": "APPMESH"});
    definition["containerDefinitions"][0]["linuxParameters"] = json!({"initProcessEnabled": true});
    let notes = notes(&definition, &spec(true, false, false));
    assert_eq!(notes.len(), 3, "{notes:?}");
}
