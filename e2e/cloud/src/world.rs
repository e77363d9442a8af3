//! All accounts and Regions together: runs operations and timers, and carries out their effects.
//!
//! ```text
//!  call / timer / runtime event ─▶ state machine of one place ─▶ effects ─▶ timers · bus → queues · runtime · credentials
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::auth::identity::{AssumeRequest, Identity};
use crate::auth::sigv4::Verified;
use crate::clock::{Clock, later};
use crate::ecs::{self, Ecs};
use crate::effect::{Ctx, Effect, Event, Place, Timer, uuid};
use crate::error::{ApiError, ApiResult, input};
use crate::events::bus::Bus;
use crate::events::deliver::{Delivery, envelope};
use crate::faults::{FaultCounts, Faults};
use crate::runtime::{Runtime, RuntimeEvent};
use crate::settings::Settings;
use crate::sqs::{Queues, policy};
use crate::throttle::Throttle;

/// What one account has in one Region.
#[derive(Debug, Default)]
pub struct Region {
    /// ECS.
    pub ecs: Ecs,
    /// EventBridge.
    pub bus: Bus,
    /// SQS.
    pub queues: Queues,
}

/// Events and deliveries, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Put on a bus.
    pub emitted: u64,
    /// Put into a target queue.
    pub delivered: u64,
    /// Put into a dead-letter queue.
    pub dead: u64,
    /// Given up with no dead-letter queue to take it.
    pub lost: u64,
}

/// Everything.
pub struct World {
    /// Time.
    pub clock: Clock,
    /// Options.
    pub settings: Settings,
    /// Faults to do.
    pub faults: Faults,
    /// Faults done.
    pub fault_counts: FaultCounts,
    /// Events, counted.
    pub event_counts: EventCounts,
    /// Keys, roles, sessions.
    pub identity: Identity,
    /// By account and Region, made at first use.
    pub places: BTreeMap<Place, Region>,
    pub(crate) runtime: Arc<dyn Runtime>,
    timers: BTreeMap<(Timestamp, u64), (Place, Timer)>,
    serial: u64,
    pub(crate) rng: StdRng,
    /// A generator of its own, so that faults do not move ids.
    fault_rng: StdRng,
    throttle: Throttle,
}

/// A service that the cloud offers, by its `X-Amz-Target` prefix or protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Amazon ECS.
    Ecs,
    /// EventBridge.
    Events,
    /// SQS.
    Sqs,
    /// STS.
    Sts,
}

impl Service {
    /// Name in a credential scope and in an IAM action.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ecs => "ecs",
            Self::Events => "events",
            Self::Sqs => "sqs",
            Self::Sts => "sts",
        }
    }
}

impl World {
    /// An empty world.
    pub fn new(clock: Clock, settings: Settings, faults: Faults, runtime: Arc<dyn Runtime>, seed: u64) -> Self {
        Self {
            clock,
            settings,
            faults,
            fault_counts: FaultCounts::default(),
            event_counts: EventCounts::default(),
            identity: Identity::default(),
            places: BTreeMap::new(),
            runtime,
            timers: BTreeMap::new(),
            serial: 0,
            rng: StdRng::seed_from_u64(seed),
            fault_rng: StdRng::seed_from_u64(seed ^ 0x7461_7375_6b69),
            throttle: Throttle::default(),
        }
    }

    /// Runs one verified API call.
    ///
    /// # Errors
    /// AWS's own.
    pub fn call(&mut self, who: &Verified, service: Service, operation: &str, value: Value, host: &str) -> ApiResult {
        let place = Place { account: who.caller.account.clone(), region: who.region.clone() };
        let action = format!("{}:{operation}", service.name());
        if self.faults.denies(&who.caller.arn, &action, &mut self.fault_counts) {
            return Err(denied(&who.caller.arn, &action, service));
        }
        self.throttle(&place, service, operation)?;
        if service == Service::Sts {
            return self.sts(who, operation, value);
        }
        let caller = who.caller.arn.clone();
        let answer = self.with(&place, &caller, |region, ctx| match service {
            Service::Ecs => ecs::call(&mut region.ecs, ctx, operation, value),
            Service::Events => region.bus.call(ctx, operation, value),
            Service::Sqs => region.queues.call(ctx, operation, value, host),
            Service::Sts => None,
        });
        answer.unwrap_or_else(|| {
            Err(ApiError::new("UnknownOperationException", format!("The operation {operation} is not offered.")))
        })
    }

    fn throttle(&mut self, place: &Place, service: Service, operation: &str) -> ApiResult<()> {
        let limit = (service == Service::Ecs).then(|| ecs::api::bucket(operation)).flatten();
        let now = self.clock.now();
        let by_bucket = self.settings.throttling
            && limit.is_some_and(|(group, burst, refill)| !self.throttle.take(place, group, burst, refill, now));
        let by_chance = self.faults.throttles(&mut self.fault_rng, &mut self.fault_counts);
        match by_bucket || by_chance {
            true => Err(ApiError::new("ThrottlingException", "Rate exceeded")),
            false => Ok(()),
        }
    }

    fn sts(&mut self, who: &Verified, operation: &str, value: Value) -> ApiResult {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct AssumeInput {
            role_arn: String,
            role_session_name: String,
            duration_seconds: Option<String>,
            external_id: Option<String>,
        }
        let caller = &who.caller;
        match operation {
            "GetCallerIdentity" => Ok(json!({"Arn": caller.arn, "UserId": caller.user_id, "Account": caller.account})),
            "AssumeRole" => {
                let request: AssumeInput =
                    input(value).map_err(|error| ApiError::new("ValidationError", error.message))?;
                let seconds = request.duration_seconds.map_or(Some(3600), |s| s.parse().ok());
                let seconds = seconds.filter(|s| (900..=43_200).contains(s)).ok_or_else(|| {
                    ApiError::new("ValidationError", "DurationSeconds must be between 900 and 43200.")
                })?;
                let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
                let session = request.role_session_name;
                if !(2..=64).contains(&session.len()) || !session.chars().all(fits) {
                    return Err(ApiError::new("ValidationError", format!("RoleSessionName '{session}' is invalid.")));
                }
                let request = AssumeRequest {
                    role_arn: request.role_arn,
                    session,
                    duration: Duration::from_secs(seconds),
                    external_id: request.external_id,
                };
                let (now, caller) = (self.clock.now(), caller.clone());
                let (keys, session) = self.identity.assume(&caller, &request, now, &mut self.rng)?;
                Ok(json!({
                    "Credentials": {"AccessKeyId": keys.access_key_id, "SecretAccessKey": keys.secret_access_key,
                        "SessionToken": keys.session_token, "Expiration": crate::clock::iso_seconds(keys.expiration)},
                    "AssumedRoleUser": {"AssumedRoleId": session.user_id, "Arn": session.arn},
                }))
            }
            other => {
                let message = format!("Could not find operation {other} for version 2011-06-15");
                Err(ApiError::new("InvalidAction", message))
            }
        }
    }

    /// Runs `work` on the state of a place and carries out its effects.
    pub fn with<T>(&mut self, place: &Place, caller: &str, work: impl FnOnce(&mut Region, &mut Ctx<'_>) -> T) -> T {
        let mut effects = Vec::new();
        let region = self.places.entry(place.clone()).or_default();
        let mut ctx = Ctx {
            now: self.clock.now(),
            place,
            caller,
            settings: &self.settings,
            rng: &mut self.rng,
            effects: &mut effects,
        };
        let result = work(region, &mut ctx);
        for effect in effects {
            self.carry_out(place, effect);
        }
        result
    }

    fn carry_out(&mut self, place: &Place, effect: Effect) {
        match effect {
            Effect::At(at, timer) => self.plan(at, place.clone(), timer),
            Effect::Emit(event) => self.emit(place, &event),
            Effect::Start(spec) => self.runtime.start_task(*spec),
            Effect::Stop(arn) => self.runtime.stop_task(&arn),
            Effect::Remove(arn) => self.runtime.remove_task(&arn),
            Effect::Grant(id, role) => self.identity.add_task_role(&id, role),
            Effect::Revoke(id) => self.identity.remove_task_role(&id),
        }
    }

    fn plan(&mut self, at: Timestamp, place: Place, timer: Timer) {
        self.serial += 1;
        self.timers.insert((at, self.serial), (place, timer));
    }

    fn emit(&mut self, place: &Place, event: &Event) {
        let now = self.clock.now();
        self.event_counts.emitted += 1;
        let id = uuid(&mut self.rng);
        let body = envelope(event, place, &id, now);
        let deliveries = self.places.get(place).map(|region| region.bus.route(&body, now)).unwrap_or_default();
        for delivery in deliveries {
            for wait in self.faults.arrivals(&mut self.fault_rng, &mut self.fault_counts) {
                self.plan(later(now, wait), place.clone(), Timer::Deliver(Box::new(delivery.clone())));
            }
        }
    }

    /// When the next timer is due, the runtime's included.
    pub fn next_due(&self) -> Option<Timestamp> {
        let own = self.timers.keys().next().map(|(at, _)| *at);
        match (own, self.runtime.next_due()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Runs every timer that is due now.
    pub fn run_due(&mut self) {
        let now = self.clock.now();
        self.runtime.advance(now);
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (place, timer) = entry.remove();
            match timer {
                Timer::Deliver(delivery) => self.deliver(&place, *delivery),
                Timer::QueueWake => {}
                other => {
                    self.with(&place, "ecs.amazonaws.com", |region, ctx| ecs::api::timer(&mut region.ecs, ctx, &other))
                }
            }
        }
    }

    /// Takes what the runtime says.
    pub fn runtime_event(&mut self, event: RuntimeEvent) {
        let mut parts = event.task_arn.split(':');
        let (Some(region), Some(account)) = (parts.nth(3), parts.next()) else { return };
        let place = Place { account: account.into(), region: region.into() };
        self.with(&place, "ecs.amazonaws.com", |region, ctx| region.ecs.runtime_event(ctx, event));
    }

    /// One try to bring an event to its queue.
    fn deliver(&mut self, place: &Place, mut delivery: Delivery) {
        let now = self.clock.now();
        let refusal = match self.send(place, &delivery, &delivery.target_arn.clone(), &delivery.body.clone()) {
            Ok(()) => {
                self.event_counts.delivered += 1;
                return;
            }
            Err(refusal) => refusal,
        };
        delivery.attempt += 1;
        let old = later(delivery.since, delivery.max_age) <= now;
        // A missing permission may be given later, a missing queue may be made: both are tried again, as EventBridge does.
        if delivery.attempt <= delivery.max_attempts && !old {
            tracing::debug!(rule = %delivery.rule_arn, target = %delivery.target_arn, refusal, "delivery will be tried again");
            let at = later(now, delivery.pause(self.settings.event_retry));
            return self.plan(at, place.clone(), Timer::Deliver(Box::new(delivery)));
        }
        let dead = delivery.dead_letter_arn.clone();
        let taken = dead.is_some_and(|arn| self.send(place, &delivery, &arn, &delivery.body.clone()).is_ok());
        if taken {
            self.event_counts.dead += 1;
        } else {
            self.event_counts.lost += 1;
            tracing::warn!(rule = %delivery.rule_arn, target = %delivery.target_arn, refusal, "event lost: no dead-letter queue took it");
        }
    }

    fn send(&mut self, from: &Place, delivery: &Delivery, queue_arn: &str, body: &str) -> Result<(), &'static str> {
        let parts: Vec<&str> = queue_arn.split(':').collect();
        let [_, _, _, region, account, name] = parts.as_slice() else { return Err("the target is not a queue ARN") };
        if *region != from.region {
            return Err("the target is in another Region");
        }
        let role = delivery.role_arn.as_deref();
        if let Some(role) = role
            && !self.identity.service_may_assume(role, "events.amazonaws.com")
        {
            return Err("the target's role does not exist or does not trust events.amazonaws.com");
        }
        if *account != from.account && role.is_none() {
            return Err("a target in another account needs a RoleArn");
        }
        let to = Place { account: (*account).into(), region: (*region).into() };
        let sender = policy::Sender {
            service: role.is_none().then_some("events.amazonaws.com"),
            role_arn: role,
            source_arn: &delivery.rule_arn,
            account: &from.account,
        };
        let queue = self.places.get(&to).and_then(|r| r.queues.get(name)).ok_or("the queue does not exist")?;
        let granted = queue.attributes.get("Policy").is_some_and(|text| policy::allows(text, &sender));
        // A role of the queue's own account needs no queue policy.
        let own_role = role.is_some() && *account == from.account;
        if !granted && !own_role {
            return Err("the queue's policy does not allow sqs:SendMessage from this rule");
        }
        let put = self.with(&to, "events.amazonaws.com", |region, ctx| {
            region.queues.put(ctx, name, body, "events.amazonaws.com")
        });
        if put { Ok(()) } else { Err("the queue does not exist") }
    }
}

fn denied(caller: &str, action: &str, service: Service) -> ApiError {
    let message = format!(
        "User: {caller} is not authorized to perform: {action} with an explicit deny in a service control policy"
    );
    match service {
        Service::Ecs | Service::Events => ApiError::new("AccessDeniedException", message),
        Service::Sqs | Service::Sts => ApiError::new("AccessDenied", message).with_status(403),
    }
}
