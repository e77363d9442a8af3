//! Where a task can go: Fargate always, a container instance when it has the room.

use serde_json::Value;

use super::constraint::Expression;
use super::task::Needs;
use super::{Definition, Ecs, Instance};
use crate::error::{ApiError, ApiResult};
use crate::runtime::LaunchType;

/// Constraints of a service or a RunTask call, parsed.
#[derive(Debug, Clone, Default)]
pub struct Constraints {
    /// `memberOf` expressions; all must hold.
    pub member_of: Vec<Expression>,
    /// At most one task of the group per instance.
    pub distinct: bool,
}

impl Constraints {
    /// Reads `placementConstraints`.
    ///
    /// # Errors
    /// `InvalidParameterException`.
    pub fn parse(value: Option<&Value>) -> ApiResult<Self> {
        let mut constraints = Self::default();
        for one in value.and_then(Value::as_array).into_iter().flatten() {
            let text = |member: &str| one.get(member).and_then(Value::as_str).unwrap_or_default();
            match text("type") {
                "memberOf" => constraints.member_of.push(Expression::parse(text("expression"))?),
                "distinctInstance" => constraints.distinct = true,
                other => return Err(ApiError::invalid(format!("Invalid placement constraint type '{other}'."))),
            }
        }
        Ok(constraints)
    }

    /// True when every `memberOf` holds.
    pub fn allow(&self, instance: &Instance) -> bool {
        self.member_of.iter().all(|expression| expression.holds(instance))
    }
}

/// Why no instance was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    /// The instance that came closest, if any was a candidate.
    pub closest: Option<String>,
    /// `RESOURCE:MEMORY`, `ATTRIBUTE`, …, as in RunTask failures and events.
    pub code: &'static str,
}

impl NoRoom {
    /// The sentence of a service event.
    pub fn sentence(&self, service: &str) -> String {
        let head = format!(
            "(service {service}) was unable to place a task because no container instance met all of its requirements."
        );
        let words = match self.code {
            "RESOURCE:MEMORY" => "has insufficient memory available",
            "RESOURCE:CPU" => "has insufficient CPU units available",
            "RESOURCE:PORTS" => "is already using a port required by your task",
            "AGENT" => "encountered error \"AGENT\"",
            _ => "is missing an attribute required by your task",
        };
        let tail = "For more information, see the Troubleshooting section of the Amazon ECS Developer Guide.";
        match &self.closest {
            Some(arn) => {
                format!("{head} The closest matching (container-instance {}) {words}. {tail}", super::short(arn))
            }
            None => format!("{head} Reason: No Container Instances were found in your cluster. {tail}"),
        }
    }
}

impl Ecs {
    /// Instances of a cluster that may get tasks of this launch type at all.
    pub(super) fn candidates<'a>(
        &'a self,
        cluster_arn: &'a str,
        launch_type: LaunchType,
    ) -> impl Iterator<Item = &'a Instance> {
        let external = launch_type == LaunchType::External;
        self.instances
            .values()
            .filter(move |i| i.cluster_arn == cluster_arn && i.status == "ACTIVE" && i.external == external)
    }

    /// Whether a task fits on an instance now.
    pub(super) fn fits(&self, instance: &Instance, needs: &Needs, constraints: &Constraints) -> Result<(), NoRoom> {
        let refuse = |code| Err(NoRoom { closest: Some(instance.arn.clone()), code });
        if !instance.agent_connected {
            return refuse("AGENT");
        }
        if !constraints.allow(instance) {
            return refuse("MemberOf placement constraint unsatisfied.");
        }
        let room = self.room(instance);
        if room.cpu < needs.cpu {
            return refuse("RESOURCE:CPU");
        }
        if room.memory < needs.memory {
            return refuse("RESOURCE:MEMORY");
        }
        if needs.ports.iter().any(|port| room.ports.contains(port)) {
            return refuse("RESOURCE:PORTS");
        }
        Ok(())
    }

    /// The instance with the fewest tasks that can take one more; `group` matters for `distinctInstance`.
    pub(super) fn pick(
        &self,
        cluster_arn: &str,
        launch_type: LaunchType,
        needs: &Needs,
        constraints: &Constraints,
        group: &str,
    ) -> Result<String, NoRoom> {
        let mut reason = NoRoom { closest: None, code: "RESOURCE:MEMORY" };
        let mut best: Option<(usize, &Instance)> = None;
        for instance in self.candidates(cluster_arn, launch_type) {
            if constraints.distinct && self.tasks_on(&instance.arn).any(|t| t.group == group) {
                reason = NoRoom {
                    closest: Some(instance.arn.clone()),
                    code: "distinctInstance placement constraint unsatisfied.",
                };
                continue;
            }
            match self.fits(instance, needs, constraints) {
                Ok(()) => {
                    let load = self.tasks_on(&instance.arn).count();
                    if best.is_none_or(|(least, _)| load < least) {
                        best = Some((load, instance));
                    }
                }
                Err(why) => reason = why,
            }
        }
        best.map(|(_, instance)| instance.arn.clone()).ok_or(reason)
    }
}

/// What a task of this definition takes from an instance.
pub(super) fn needs(definition: &Definition) -> Needs {
    let number = |c: &Value, member: &str| c.get(member).and_then(Value::as_i64).unwrap_or(0);
    let task = |kind| definition.text(kind).and_then(|text| text.parse::<i64>().ok());
    let memory = |c: &Value| match number(c, "memoryReservation") {
        0 => number(c, "memory"),
        soft => soft,
    };
    let mut ports = Vec::new();
    // awsvpc tasks have an interface of their own.
    if definition.text("networkMode") != Some("awsvpc") {
        for mapping in definition.containers().filter_map(|c| c.get("portMappings")?.as_array()).flatten() {
            let host = mapping.get("hostPort").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
            ports.extend(host.filter(|port| *port != 0));
        }
    }
    Needs {
        cpu: task("cpu").unwrap_or_else(|| definition.containers().map(|c| number(c, "cpu")).sum()),
        memory: task("memory").unwrap_or_else(|| definition.containers().map(memory).sum()),
        ports,
    }
}
