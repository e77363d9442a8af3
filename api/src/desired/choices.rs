//! The choices that a `RuntimeMonitor` offers; the first variant of each is what no word means, and
//! never changes the user's workloads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! choice {
    ($($(#[$meta:meta])* pub enum $name:ident { $($body:tt)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name { $($body)* }
    )*};
}

choice! {
    /// Whether anything may be changed.
    pub enum Mode {
        /// Report only.
        #[default] Observe,
        /// Place and roll agents.
        Enforce,
    }
    /// A kind of compute.
    pub enum Compute {
        /// ECS on Fargate.
        #[default] Fargate,
        /// ECS on the customer's EC2 instances.
        #[serde(rename = "EC2")] Ec2,
        /// ECS Managed Instances.
        ManagedInstances,
        /// ECS Anywhere.
        External,
    }
    /// How an agent sees.
    pub enum SensorChoice {
        /// The best that the kernel and the capabilities allow.
        #[default] Auto,
        /// Kernel programs.
        Ebpf,
        /// Process tracing, for sidecars.
        Ptrace,
        /// Packets and sockets only.
        Network,
    }
    /// When a syscall tracepoint may be attached.
    pub enum SyscallTracepoints {
        /// Not at all.
        #[default] Never,
        /// While an active rule has no other source.
        WhenNeeded,
        /// From start to end.
        Always,
    }
    /// How an agent proves whose agent it is (docs/concepts/identity.md).
    pub enum IdentityChoice {
        /// Evidence and address always; a signature where the task has a role.
        #[default] Auto,
        /// Evidence and address only.
        Metadata,
        /// A signature is demanded.
        Signed,
    }
    /// Who adds the sidecar to a Fargate service.
    pub enum Delivery {
        /// The owner's pipeline, from what `tasuki render` prints.
        #[default] Render,
        /// The controller, where it cannot interrupt anything.
        Live,
    }
    /// Whether a task's containers share their process namespace.
    pub enum PidMode {
        /// `pidMode: task`: the full process view.
        #[default] Task,
        /// Leave it alone: network view only.
        Keep,
    }
    /// What a broken agent does to the application.
    pub enum Startup {
        /// Nothing.
        #[default] BestEffort,
        /// Application containers wait for a healthy agent.
        FailClosed,
    }
    /// How it is found out beforehand whether the agent can run.
    pub enum Preflight {
        /// Run one probe task on the service's own network and execution role.
        #[default] Probe,
        /// Static checks only.
        Static,
    }
    /// Whether a new agent version may restart application tasks.
    pub enum OnOutdated {
        /// It waits for the owner's next deployment.
        #[default] NextDeployment,
        /// The service is redeployed.
        Roll,
    }
    /// Whether a full task may grow.
    pub enum Sizing {
        /// It stays uncovered with reason `NoRoom`.
        #[default] Refuse,
        /// It moves to the next valid Fargate size.
        Grow,
    }
    /// What happens for tasks that no service owns.
    pub enum Standalone {
        /// They are reported.
        #[default] Report,
        /// The injected revision is registered in the same family.
        LatestRevision,
    }
    /// When instances may be replaced.
    pub enum ReplaceInstances {
        /// Inside a window and after approval.
        #[default] WithinWindow,
        /// Never.
        Never,
    }
    /// Whether the agent's pod may evict others where a node is full.
    pub enum Preempt {
        /// It waits; the node's pods are `NodeWithoutAgent` until there is room.
        #[default] Never,
        /// Pods of a lower priority make room for it.
        LowerPriority,
    }
    /// How a node's label is compared.
    pub enum NodeOperator {
        /// One of the values.
        #[default] In,
        /// None of the values, or absent.
        NotIn,
        /// Present.
        Exists,
        /// Absent.
        DoesNotExist,
        /// A greater number.
        Gt,
        /// A smaller number.
        Lt,
    }
    /// How a toleration meets a taint.
    pub enum TolerationOperator {
        /// Whatever its value.
        #[default] Exists,
        /// Of the same value.
        Equal,
    }
    /// Whether pods wait for a new node's agent.
    pub enum NodeStartup {
        /// They start at once.
        #[default] BestEffort,
        /// They wait for the first heartbeat, for two minutes at most, where the node pool sets the start-up taint.
        TaintUntilReady,
    }
    /// How a node changes from one agent to the next.
    pub enum Handover {
        /// The new agent runs before the old one goes.
        #[default] Overlap,
        /// The old one goes first: a gap, which is counted.
        DeleteFirst,
    }
    /// What a failed gate does.
    pub enum OnFailure {
        /// Back to the previous version.
        #[default] Rollback,
        /// Stop and wait for a person.
        Pause,
    }
    /// Who makes VPC endpoints.
    pub enum VpcEndpoints {
        /// The owner; `tasuki plan` prints what is missing.
        #[default] Unmanaged,
        /// The controller.
        Managed,
    }
    /// What the agent does about a finding.
    pub enum Response {
        /// Report it.
        #[default] Alert,
        /// Report it and end the process.
        Kill,
        /// Refuse the operation where the kernel allows.
        Block,
    }
    /// A day of the week.
    pub enum Day {
        /// Monday.
        #[default] Mon,
        /// Tuesday.
        Tue,
        /// Wednesday.
        Wed,
        /// Thursday.
        Thu,
        /// Friday.
        Fri,
        /// Saturday.
        Sat,
        /// Sunday.
        Sun,
    }
}
