//! From a container of a task to the engine's own configuration.

use super::{Engine, LABEL, cgroup};
use crate::runtime::*;
use bollard::models::{ContainerCreateBody, DeviceMapping, HealthConfig, HostConfig, PortBinding, ResourcesUlimits};
use std::collections::HashMap;

/// Names of the engine's things for one task.
pub(super) fn pause_name(engine: &Engine, spec: &TaskSpec) -> String {
    format!("{}-{}-pause", engine.options.name, spec.task_id)
}

/// As the ECS agent names its containers: `ecs-<family>-<revision>-<container>-<id>`.
pub(super) fn container_name(engine: &Engine, spec: &TaskSpec, container: &ContainerSpec) -> String {
    let id = &spec.task_id[..spec.task_id.len().min(12)];
    format!("{}-ecs-{}-{}-{}-{id}", engine.options.name, spec.family, spec.revision, container.name)
}

/// Whether the task needs a pause container: something is shared that no container may own.
pub(super) fn needs_pause(spec: &TaskSpec) -> bool {
    spec.network_mode == NetworkMode::Awsvpc || spec.pid_mode == PidMode::Task || spec.ipc_mode == IpcMode::Task
}

/// The configuration of the pause container.
pub(super) fn pause(engine: &Engine, spec: &TaskSpec) -> ContainerCreateBody {
    let network = match spec.network_mode {
        NetworkMode::Awsvpc | NetworkMode::Bridge => engine.options.name.clone(),
        NetworkMode::Host => "host".to_owned(),
        NetworkMode::None => "none".to_owned(),
    };
    ContainerCreateBody {
        image: Some(super::image::PAUSE.to_owned()),
        cmd: Some(super::image::PAUSE_COMMAND.map(str::to_owned).to_vec()),
        labels: Some(HashMap::from([(LABEL.to_owned(), engine.options.name.clone())])),
        host_config: Some(HostConfig {
            network_mode: Some(network),
            ipc_mode: (spec.ipc_mode == IpcMode::Task).then(|| "shareable".to_owned()),
            cgroup_parent: Some(cgroup::parent(spec)),
            // ECS applies the task's namespaced kernel parameters to the shared network namespace.
            sysctls: Some(spec.containers.iter().flat_map(|c| c.system_controls.iter().cloned()).collect()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The configuration of one container; `image` is the id that its reference was resolved to.
pub(super) fn container(
    engine: &Engine,
    spec: &TaskSpec,
    container: &ContainerSpec,
    image: &str,
) -> ContainerCreateBody {
    let pause = format!("container:{}", pause_name(engine, spec));
    let shares_network = spec.network_mode == NetworkMode::Awsvpc;
    let mut labels: HashMap<String, String> = container.labels.clone().into_iter().collect();
    labels.insert(LABEL.to_owned(), engine.options.name.clone());
    let privileged = if container.privileged { Privileged::of_this_host() } else { Privileged::default() };
    let capabilities = if container.privileged { privileged.capabilities } else { container.capabilities_add.clone() };
    let mut security = container.docker_security_options.clone();
    security.extend(privileged.security);
    ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: container.entry_point.clone(),
        cmd: container.command.clone(),
        env: Some(container.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: container.working_directory.clone(),
        user: container.user.clone(),
        labels: Some(labels),
        hostname: container.hostname.clone().filter(|_| !shares_network),
        open_stdin: Some(container.interactive),
        tty: Some(container.pseudo_terminal),
        network_disabled: Some(container.disable_networking).filter(|_| !shares_network),
        stop_timeout: i64::try_from(container.stop_timeout.as_secs()).ok(),
        healthcheck: container.health_check.as_ref().map(health),
        exposed_ports: Some(container.port_mappings.iter().map(port).collect()),
        host_config: Some(HostConfig {
            network_mode: Some(match spec.network_mode {
                NetworkMode::Awsvpc => pause.clone(),
                NetworkMode::Bridge => engine.options.name.clone(),
                NetworkMode::Host => "host".to_owned(),
                NetworkMode::None => "none".to_owned(),
            }),
            pid_mode: match spec.pid_mode {
                PidMode::Private => None,
                PidMode::Task => Some(pause.clone()),
                PidMode::Host => Some("host".to_owned()),
            },
            ipc_mode: match spec.ipc_mode {
                IpcMode::Private => None,
                IpcMode::Task => Some(pause),
                IpcMode::Host => Some("host".to_owned()),
                IpcMode::None => Some("none".to_owned()),
            },
            cgroup_parent: Some(cgroup::parent(spec)),
            // Docker's least value where none is asked for, as the ECS agent does.
            cpu_shares: Some(i64::from(container.cpu.max(2))),
            memory: container.memory.map(|mib| i64::from(mib) << 20),
            memory_reservation: container.memory_reservation.map(|mib| i64::from(mib) << 20),
            memory_swap: container
                .max_swap
                .map(|swap| (i64::from(swap) + i64::from(container.memory.unwrap_or(0))) << 20),
            memory_swappiness: container.swappiness.map(i64::from),
            cap_add: Some(capabilities),
            cap_drop: Some(if container.privileged { vec![] } else { container.capabilities_drop.clone() }),
            security_opt: Some(security),
            masked_paths: container.privileged.then(Vec::new),
            readonly_paths: container.privileged.then(Vec::new),
            readonly_rootfs: Some(container.readonly_root_filesystem),
            init: container.init_process_enabled.then_some(true),
            shm_size: container.shared_memory_size.map(|mib| i64::from(mib) << 20),
            devices: Some(container.devices.iter().map(device).collect()),
            tmpfs: Some(container.tmpfs.iter().map(tmpfs).collect()),
            binds: Some(binds(engine, spec, container)),
            volumes_from: Some(container.volumes_from.iter().map(|from| volumes_from(engine, spec, from)).collect()),
            ulimits: Some(container.ulimits.iter().map(ulimit).collect()),
            sysctls: (!shares_network).then(|| container.system_controls.iter().cloned().collect()),
            port_bindings: (spec.network_mode == NetworkMode::Bridge)
                .then(|| container.port_mappings.iter().map(binding).collect()),
            extra_hosts: Some(
                container.extra_hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect(),
            )
            .filter(|_| !shares_network),
            dns: Some(container.dns_servers.clone()).filter(|list: &Vec<_>| !shares_network && !list.is_empty()),
            dns_search: Some(container.dns_search_domains.clone())
                .filter(|list: &Vec<_>| !shares_network && !list.is_empty()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What `privileged` becomes: everything that this host itself has. The engine's own switch asks for
/// all that the kernel knows, which a host with fewer cannot give.
#[derive(Default)]
struct Privileged {
    capabilities: Vec<String>,
    security: Vec<String>,
}

/// The capabilities by number, as far as Docker Engine 20.10 knows their names (linux/capability.h).
const CAPABILITIES: [&str; 38] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
];

impl Privileged {
    fn of_this_host() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let bounding = bounding.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
        let has = |number: &usize| bounding >> number & 1 == 1;
        Self {
            capabilities: (0..CAPABILITIES.len()).filter(has).map(|number| CAPABILITIES[number].to_owned()).collect(),
            security: vec!["seccomp=unconfined".to_owned(), "apparmor=unconfined".to_owned()],
        }
    }
}

fn health(check: &HealthCheck) -> HealthConfig {
    let nanos = |duration: std::time::Duration| i64::try_from(duration.as_nanos()).ok();
    HealthConfig {
        test: Some(check.command.clone()),
        interval: nanos(check.interval),
        timeout: nanos(check.timeout),
        retries: Some(i64::from(check.retries)),
        start_period: nanos(check.start_period),
        ..Default::default()
    }
}

fn port(mapping: &PortMapping) -> String {
    let protocol = match mapping.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}/{protocol}", mapping.container_port)
}

fn binding(mapping: &PortMapping) -> (String, Option<Vec<PortBinding>>) {
    // Loopback: what tasks publish is for this machine only.
    let host = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(mapping.host_port.to_string()) };
    (port(mapping), Some(vec![host]))
}

fn device(device: &Device) -> DeviceMapping {
    let letters = |word: &String| match word.as_str() {
        "read" => "r",
        "write" => "w",
        _ => "m",
    };
    let permissions: String = device.permissions.iter().map(letters).collect();
    DeviceMapping {
        path_on_host: Some(device.host_path.clone()),
        path_in_container: Some(device.container_path.clone()),
        cgroup_permissions: Some(if permissions.is_empty() { "rwm".to_owned() } else { permissions }),
    }
}

fn tmpfs(mount: &Tmpfs) -> (String, String) {
    let mut options = vec![format!("size={}m", mount.size)];
    options.extend(mount.mount_options.iter().cloned());
    (mount.container_path.clone(), options.join(","))
}

fn ulimit(limit: &Ulimit) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(limit.name.clone()), soft: Some(limit.soft), hard: Some(limit.hard) }
}

/// The engine's name of a volume of the task; scratch volumes carry the task's id.
pub(super) fn volume_name(engine: &Engine, spec: &TaskSpec, volume: &VolumeSpec) -> Option<String> {
    match &volume.source {
        VolumeSource::HostPath(_) => None,
        VolumeSource::Docker { shared: true, .. } => Some(volume.name.clone()),
        VolumeSource::Scratch | VolumeSource::Docker { .. } => {
            Some(format!("{}-{}-{}", engine.options.name, spec.task_id, volume.name))
        }
    }
}

fn binds(engine: &Engine, spec: &TaskSpec, container: &ContainerSpec) -> Vec<String> {
    let bind = |mount: &MountPoint| {
        let volume = spec.volumes.iter().find(|volume| volume.name == mount.source_volume)?;
        let source = match &volume.source {
            VolumeSource::HostPath(path) => path.clone(),
            _ => volume_name(engine, spec, volume)?,
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        Some(format!("{source}:{}:{access}", mount.container_path))
    };
    container.mount_points.iter().filter_map(bind).collect()
}

fn volumes_from(engine: &Engine, spec: &TaskSpec, from: &VolumeFrom) -> String {
    let source = spec.containers.iter().find(|container| container.name == from.source_container);
    let name = source.map_or_else(|| from.source_container.clone(), |source| container_name(engine, spec, source));
    format!("{name}:{}", if from.read_only { "ro" } else { "rw" })
}
