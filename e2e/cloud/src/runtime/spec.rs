//! The order for one task: a task definition with overrides applied and every default resolved.
//!
//! Field names follow the ECS API; [`TaskSpec`] carries what ECS's semantics need and nothing of how Docker is driven.

use std::collections::BTreeMap;
use std::time::Duration;

/// One task to run.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSpec {
    /// Task ARN; the key of the task in every later call and event.
    pub task_arn: String,
    /// Last part of the ARN, 32 hex digits; fit for names of containers and networks.
    pub task_id: String,
    /// Cluster ARN.
    pub cluster_arn: String,
    /// Account that owns the task, 12 digits.
    pub account: String,
    /// Region of the task.
    pub region: String,
    /// Task definition family.
    pub family: String,
    /// Task definition revision.
    pub revision: u32,
    /// Service that owns the task, if one does.
    pub service: Option<String>,
    /// What kind of machine it runs on.
    pub launch_type: LaunchType,
    /// The container instance; `None` on Fargate.
    pub instance: Option<InstanceRef>,
    /// How the containers reach the network.
    pub network_mode: NetworkMode,
    /// Whose processes the containers see.
    pub pid_mode: PidMode,
    /// Whose System V IPC and POSIX queues the containers see.
    pub ipc_mode: IpcMode,
    /// Task CPU limit in CPU units (1024 = one vCPU).
    pub cpu: Option<u32>,
    /// Task memory limit, MiB.
    pub memory: Option<u32>,
    /// `LINUX`; anything else was refused before it came here.
    pub cpu_architecture: Architecture,
    /// In definition order.
    pub containers: Vec<ContainerSpec>,
    /// In definition order; mounts name them.
    pub volumes: Vec<VolumeSpec>,
    /// The id behind `/v2/credentials/<id>` when the task has a role.
    pub credentials_id: Option<String>,
    /// Subnets that the task asked for (`awsvpcConfiguration`); for the ENI in metadata and events.
    pub subnets: Vec<String>,
    /// Security groups that the task asked for.
    pub security_groups: Vec<String>,
}

/// One container of a task. An absent option means: what the image says.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerSpec {
    /// Name in the task definition, unique within the task.
    pub name: String,
    /// Container ARN.
    pub container_arn: String,
    /// Image reference as written in the definition.
    pub image: String,
    /// The task ends when this container does.
    pub essential: bool,
    /// Replaces the image's entry point.
    pub entry_point: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// Environment in order, overrides and the ECS variables (metadata URI, credentials URI, Region) included; a later entry wins.
    pub environment: Vec<(String, String)>,
    /// Working directory.
    pub working_directory: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// All capabilities, all devices, no seccomp or AppArmor.
    pub privileged: bool,
    /// The root file system is mounted read-only.
    pub readonly_root_filesystem: bool,
    /// CPU shares in CPU units; 0 means none asked for (Docker then uses its least value, 2).
    pub cpu: u32,
    /// Hard memory limit, MiB.
    pub memory: Option<u32>,
    /// Soft memory limit, MiB.
    pub memory_reservation: Option<u32>,
    /// Linux capabilities to add, without `CAP_`; may be `ALL`.
    pub capabilities_add: Vec<String>,
    /// Linux capabilities to drop, without `CAP_`; may be `ALL`.
    pub capabilities_drop: Vec<String>,
    /// Run an init process that reaps children (`docker run --init`).
    pub init_process_enabled: bool,
    /// Size of /dev/shm, MiB.
    pub shared_memory_size: Option<u32>,
    /// Host devices.
    pub devices: Vec<Device>,
    /// tmpfs mounts.
    pub tmpfs: Vec<Tmpfs>,
    /// Swap that the container may use beside its memory, MiB.
    pub max_swap: Option<u32>,
    /// 0 to 100.
    pub swappiness: Option<u8>,
    /// Volumes of the task mounted into this container.
    pub mount_points: Vec<MountPoint>,
    /// All mounts of another container of the task.
    pub volumes_from: Vec<VolumeFrom>,
    /// Ports to publish. In `awsvpc` and `host` the host port equals the container port.
    pub port_mappings: Vec<PortMapping>,
    /// Containers that must reach a condition before this one starts.
    pub depends_on: Vec<Dependency>,
    /// How long a dependency of this container may take; `None`: 3 minutes, ECS's default.
    pub start_timeout: Option<Duration>,
    /// Time from SIGTERM to SIGKILL; the default of 30 s is filled in.
    pub stop_timeout: Duration,
    /// Health check.
    pub health_check: Option<HealthCheck>,
    /// Restart policy; absent or disabled is `None`.
    pub restart_policy: Option<RestartPolicy>,
    /// Docker labels of the definition and ECS's own five (`com.amazonaws.ecs.*`).
    pub labels: BTreeMap<String, String>,
    /// Kernel parameters (`sysctl`).
    pub system_controls: Vec<(String, String)>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// `label:…`, `apparmor:…`, `no-new-privileges`.
    pub docker_security_options: Vec<String>,
    /// Legacy links, bridge mode only.
    pub links: Vec<String>,
    /// Host name; not in `awsvpc`.
    pub hostname: Option<String>,
    /// Lines for /etc/hosts: name, address.
    pub extra_hosts: Vec<(String, String)>,
    /// DNS servers; not in `awsvpc`.
    pub dns_servers: Vec<String>,
    /// DNS search domains; not in `awsvpc`.
    pub dns_search_domains: Vec<String>,
    /// Keep stdin open.
    pub interactive: bool,
    /// Allocate a terminal.
    pub pseudo_terminal: bool,
    /// No network at all.
    pub disable_networking: bool,
    /// Log driver; `None` is Docker's default. `awslogs` is for the runtime to map to something local.
    pub log_driver: Option<String>,
    /// Options of the log driver.
    pub log_options: BTreeMap<String, String>,
    /// The last part of this container's metadata path (`/v4/<token>`), already in `environment`.
    pub metadata_token: String,
}

/// What the task runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LaunchType {
    /// A container instance.
    Ec2,
    /// One task alone on a machine of AWS's.
    Fargate,
    /// A container instance outside AWS (ECS Anywhere).
    External,
}

impl LaunchType {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ec2 => "EC2",
            Self::Fargate => "FARGATE",
            Self::External => "EXTERNAL",
        }
    }
}

/// A container instance, as the runtime needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRef {
    /// Container instance ARN.
    pub arn: String,
    /// EC2 instance id, or the `mi-…` id of an external one.
    pub ec2_instance_id: String,
}

/// `networkMode`, default resolved (`awsvpc` on Fargate, `bridge` elsewhere).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// All containers share one network namespace with an address of its own.
    Awsvpc,
    /// Each container has its own namespace on Docker's bridge.
    Bridge,
    /// The host's network.
    Host,
    /// Loopback only.
    None,
}

/// `pidMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidMode {
    /// Each container has its own PID namespace.
    Private,
    /// The containers of the task share one; PID 1 is the pause process.
    Task,
    /// The host's.
    Host,
}

/// `ipcMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpcMode {
    /// Not given: Docker's default (private).
    Private,
    /// The containers of the task share one.
    Task,
    /// The host's.
    Host,
    /// No sharing at all.
    None,
}

/// `runtimePlatform.cpuArchitecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Not given: that of the machine.
    Native,
    /// amd64.
    X86_64,
    /// arm64.
    Arm64,
}

/// A volume of the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Name that mount points use.
    pub name: String,
    /// Where its content lives.
    pub source: VolumeSource,
}

/// Where a volume's content lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// A path on the host.
    HostPath(String),
    /// Empty, made for the task, deleted with it.
    Scratch,
    /// A Docker volume.
    Docker {
        /// Lives longer than the task.
        shared: bool,
        /// Volume driver, `local` by default.
        driver: Option<String>,
        /// Options of the driver.
        driver_opts: BTreeMap<String, String>,
        /// Make it when it is not there.
        autoprovision: bool,
    },
}

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Name of a [`VolumeSpec`].
    pub source_volume: String,
    /// Absolute path in the container.
    pub container_path: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Mounts taken from another container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFrom {
    /// Name of that container.
    pub source_container: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// Port inside the container.
    pub container_port: u16,
    /// Port on the host; 0 lets the engine choose.
    pub host_port: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// One `dependsOn` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Name of the container that must come first.
    pub container: String,
    /// What it must have reached.
    pub condition: DependencyCondition,
}

/// What a dependency must have reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DependencyCondition {
    /// Started.
    Start,
    /// Ended, with any exit code.
    Complete,
    /// Ended with exit code 0.
    Success,
    /// Passed its health check.
    Healthy,
}

/// `healthCheck`, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// `CMD …` or `CMD-SHELL …`, as in the definition.
    pub command: Vec<String>,
    /// Between two checks (default 30 s).
    pub interval: Duration,
    /// For one check (default 5 s).
    pub timeout: Duration,
    /// Failures in a row until unhealthy (default 3).
    pub retries: u32,
    /// Failures that do not count, from the start (default none).
    pub start_period: Duration,
}

/// `restartPolicy` of an enabled policy, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Exit codes after which the container stays down.
    pub ignored_exit_codes: Vec<i32>,
    /// A container that ran for less than this is not restarted (default 300 s).
    pub restart_attempt_period: Duration,
}

/// A host device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Path on the host.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// `read`, `write`, `mknod`; all three by default.
    pub permissions: Vec<String>,
}

/// A tmpfs mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Path in the container.
    pub container_path: String,
    /// Size, MiB.
    pub size: u32,
    /// Mount options.
    pub mount_options: Vec<String>,
}

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}
