//! What a state machine wants done: it never does anything itself.
//!
//! Every operation and every timer runs as a plain function over the state of one account and Region, with a [`Ctx`]. It
//! changes its own state and pushes [`Effect`]s; [`crate::world`] carries them out afterwards. That keeps the state machines
//! free of locks, clocks and the network.

use std::time::Duration;

use jiff::Timestamp;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::auth::identity::TaskRole;
use crate::clock::later;
use crate::runtime::TaskSpec;
use crate::settings::Settings;

/// An account and a Region: the unit that all state belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Account, 12 digits.
    pub account: String,
    /// Region, such as `eu-central-1`.
    pub region: String,
}

impl Place {
    /// An ARN of this place.
    pub fn arn(&self, service: &str, resource: impl std::fmt::Display) -> String {
        format!("arn:aws:{service}:{}:{}:{resource}", self.region, self.account)
    }
}

/// Something to do later, in the place whose state machine asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timer {
    /// The task's network interface is attached: PROVISIONING ends.
    TaskProvisioned(String),
    /// The task's network interface is gone: DEPROVISIONING ends.
    TaskDeprovisioned(String),
    /// The task has been RUNNING long enough to count as healthy.
    TaskSteady(String),
    /// A stopped task leaves the memory.
    TaskForgotten(String),
    /// A service looks again at what it has.
    Service(String),
    /// An inactive service leaves the memory.
    ServiceForgotten(String),
    /// An event reaches a target, attempt number included.
    Deliver(Box<crate::events::deliver::Delivery>),
    /// Something in a queue becomes visible.
    QueueWake,
}

/// Something that [`crate::world`] does for a state machine.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Run this timer at that time.
    At(Timestamp, Timer),
    /// Put an event on the default bus.
    Emit(Event),
    /// Have a task run.
    Start(Box<TaskSpec>),
    /// Have a task end.
    Stop(String),
    /// Delete what is left of a task.
    Remove(String),
    /// Serve credentials under an id.
    Grant(String, TaskRole),
    /// Serve them no more.
    Revoke(String),
}

/// An event before it has an envelope.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `aws.ecs` or a customer's.
    pub source: String,
    /// `detail-type`.
    pub detail_type: String,
    /// `resources`.
    pub resources: Vec<String>,
    /// `detail`.
    pub detail: Value,
}

/// The surroundings of one call.
pub struct Ctx<'a> {
    /// The cloud's time.
    pub now: Timestamp,
    /// Whose state it is.
    pub place: &'a Place,
    /// ARN of the caller, or of the scheduler.
    pub caller: &'a str,
    /// Timings and options.
    pub settings: &'a Settings,
    /// The seeded source of every id.
    pub rng: &'a mut StdRng,
    /// What to do afterwards.
    pub effects: &'a mut Vec<Effect>,
}

impl Ctx<'_> {
    /// Runs `timer` after `delay`.
    pub fn after(&mut self, delay: Duration, timer: Timer) {
        self.effects.push(Effect::At(later(self.now, delay), timer));
    }

    /// Puts an ECS event on the bus.
    pub fn emit(&mut self, detail_type: &str, resources: Vec<String>, detail: Value) {
        let detail_type = detail_type.to_owned();
        self.effects.push(Effect::Emit(Event { source: "aws.ecs".into(), detail_type, resources, detail }));
    }

    /// 32 hex digits, as task ids are.
    pub fn hex_id(&mut self) -> String {
        hex::encode(self.rng.random::<[u8; 16]>())
    }

    /// A random UUID.
    pub fn uuid(&mut self) -> String {
        uuid(self.rng)
    }

    /// `prefix` and 17 hex digits, as EC2 ids are.
    pub fn ec2_id(&mut self, prefix: &str) -> String {
        let mut id = format!("{prefix}-{}", hex::encode(self.rng.random::<[u8; 9]>()));
        id.truncate(prefix.len() + 18);
        id
    }

    /// 19 decimal digits, as deployment ids are.
    pub fn decimal_id(&mut self) -> String {
        format!("{:019}", self.rng.random_range(1_000_000_000_000_000_000_u64..9_999_999_999_999_999_999))
    }

    /// An ECS ARN of this place.
    pub fn arn(&self, resource: impl std::fmt::Display) -> String {
        self.place.arn("ecs", resource)
    }
}

/// A random UUID, version 4.
pub fn uuid(rng: &mut StdRng) -> String {
    let mut bytes = rng.random::<[u8; 16]>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}
