//! The registry of access keys, roles and sessions.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use rand::Rng;
use rand::rngs::StdRng;

use crate::clock::later;
use crate::error::{ApiError, ApiResult};

/// Sessions held at once; the oldest go first. Far above what a test fleet uses.
pub const MAX_SESSIONS: usize = 50_000;

/// Who made a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Account, 12 digits.
    pub account: String,
    /// Principal ARN: an account root, a user or an assumed-role session.
    pub arn: String,
    /// `UserId` of GetCallerIdentity.
    pub user_id: String,
}

/// What a key can sign with.
#[derive(Debug, Clone)]
pub struct Key {
    /// Secret access key.
    pub secret: String,
    /// Session token that must come along.
    pub token: Option<String>,
    /// Whose key it is.
    pub caller: Caller,
    /// When the session ends; `None` for long-term keys.
    pub expires: Option<Timestamp>,
}

/// Credentials as they are handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AKIA…` or `ASIA…`.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: String,
    /// Session token.
    pub session_token: String,
    /// When they end.
    pub expiration: Timestamp,
}

/// A role and who may assume it.
#[derive(Debug, Clone)]
pub struct Role {
    /// Principals: a 12-digit account, an ARN (`…:root` covers the whole account), a service name, or `*`.
    pub trust: Vec<String>,
    /// External id that AssumeRole must name.
    pub external_id: Option<String>,
    /// `AROA…`, the first half of a session's `UserId`.
    pub id: String,
}

/// What stands behind `/v2/credentials/<id>`.
#[derive(Debug, Clone)]
pub struct TaskRole {
    /// Role ARN of the task definition.
    pub role_arn: String,
    /// Session name: the task's id.
    pub session: String,
}

/// Keys, roles and sessions of all accounts.
#[derive(Debug, Default)]
pub struct Identity {
    keys: HashMap<String, Key>,
    roles: HashMap<String, Role>,
    task_roles: HashMap<String, TaskRole>,
    /// Session keys in the order in which they were made.
    sessions: std::collections::VecDeque<String>,
    /// Sessions dropped because the registry was full.
    pub evicted_sessions: u64,
}

impl Identity {
    /// Adds a root key of an account.
    pub fn add_root(&mut self, account: &str, access_key_id: &str, secret: &str) {
        let caller =
            Caller { account: account.into(), arn: format!("arn:aws:iam::{account}:root"), user_id: account.into() };
        let key = Key { secret: secret.into(), token: None, caller, expires: None };
        self.keys.insert(access_key_id.into(), key);
    }

    /// Adds or replaces a role.
    pub fn add_role(&mut self, role_arn: &str, trust: Vec<String>, external_id: Option<String>, rng: &mut StdRng) {
        let id = format!("AROA{}", upper(rng, 17));
        self.roles.insert(role_arn.into(), Role { trust, external_id, id });
    }

    /// The key with this id, live or expired.
    pub fn key(&self, access_key_id: &str) -> Option<&Key> {
        self.keys.get(access_key_id)
    }

    /// AssumeRole with the trust check.
    ///
    /// # Errors
    /// `AccessDenied` when the role is unknown, does not trust the caller, or wants another external id.
    pub fn assume(
        &mut self,
        caller: &Caller,
        request: &AssumeRequest,
        now: Timestamp,
        rng: &mut StdRng,
    ) -> ApiResult<(Credentials, Caller)> {
        let denied = || {
            let message = format!(
                "User: {} is not authorized to perform: sts:AssumeRole on resource: {}",
                caller.arn, request.role_arn
            );
            ApiError::new("AccessDenied", message).with_status(403)
        };
        let role = self.roles.get(&request.role_arn).ok_or_else(denied)?;
        if !role.trust.iter().any(|trusted| trusts(trusted, caller)) {
            return Err(denied());
        }
        if role.external_id.is_some() && role.external_id != request.external_id {
            return Err(denied());
        }
        let role_id = role.id.clone();
        self.issue(&request.role_arn, &role_id, &request.session, request.duration, now, rng)
    }

    /// True when `service` (such as `events.amazonaws.com`) may assume the role.
    pub fn service_may_assume(&self, role_arn: &str, service: &str) -> bool {
        self.roles.get(role_arn).is_some_and(|role| role.trust.iter().any(|t| t == service || t == "*"))
    }

    /// Makes `/v2/credentials/<id>` answer for a task.
    pub fn add_task_role(&mut self, credentials_id: &str, role: TaskRole) {
        self.task_roles.insert(credentials_id.into(), role);
    }

    /// The task ended: its credentials document goes, sessions already handed out live until they expire.
    pub fn remove_task_role(&mut self, credentials_id: &str) {
        self.task_roles.remove(credentials_id);
    }

    /// Fresh credentials for a task, 6 hours as the ECS agent hands out.
    pub fn task_credentials(
        &mut self,
        credentials_id: &str,
        now: Timestamp,
        rng: &mut StdRng,
    ) -> Option<(Credentials, String)> {
        let role = self.task_roles.get(credentials_id)?.clone();
        let role_id =
            self.roles.get(&role.role_arn).map_or_else(|| format!("AROA{}", upper(rng, 17)), |r| r.id.clone());
        let six_hours = Duration::from_secs(6 * 3600);
        let (credentials, _) = self.issue(&role.role_arn, &role_id, &role.session, six_hours, now, rng).ok()?;
        Some((credentials, role.role_arn))
    }

    fn issue(
        &mut self,
        role_arn: &str,
        role_id: &str,
        session: &str,
        duration: Duration,
        now: Timestamp,
        rng: &mut StdRng,
    ) -> ApiResult<(Credentials, Caller)> {
        let (account, name) =
            split_role(role_arn).ok_or_else(|| ApiError::new("ValidationError", format!("{role_arn} is invalid")))?;
        let caller = Caller {
            account: account.into(),
            arn: format!("arn:aws:sts::{account}:assumed-role/{name}/{session}"),
            user_id: format!("{role_id}:{session}"),
        };
        let credentials = Credentials {
            access_key_id: format!("ASIA{}", upper(rng, 16)),
            secret_access_key: hex::encode(rng.random::<[u8; 20]>()),
            session_token: format!("FwoGZXIvYXdzE{}", hex::encode(rng.random::<[u8; 48]>())),
            expiration: later(now, duration),
        };
        let key = Key {
            secret: credentials.secret_access_key.clone(),
            token: Some(credentials.session_token.clone()),
            caller: caller.clone(),
            expires: Some(credentials.expiration),
        };
        self.keys.insert(credentials.access_key_id.clone(), key);
        self.sessions.push_back(credentials.access_key_id.clone());
        while self.sessions.len() > MAX_SESSIONS {
            if let Some(oldest) = self.sessions.pop_front() {
                self.keys.remove(&oldest);
                self.evicted_sessions += 1;
            }
        }
        Ok((credentials, caller))
    }
}

/// Input of [`Identity::assume`].
#[derive(Debug, Clone)]
pub struct AssumeRequest {
    /// Role ARN.
    pub role_arn: String,
    /// `RoleSessionName`.
    pub session: String,
    /// How long the session lasts.
    pub duration: Duration,
    /// `ExternalId`.
    pub external_id: Option<String>,
}

/// Account and bare name of a role ARN (the path is not part of a session's ARN).
pub fn split_role(role_arn: &str) -> Option<(&str, &str)> {
    let mut parts = role_arn.splitn(6, ':');
    let (arn, _partition, service) = (parts.next()?, parts.next()?, parts.next()?);
    let (_region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
    let name = resource.strip_prefix("role/")?.rsplit('/').next()?;
    (arn == "arn" && service == "iam" && account.len() == 12 && !name.is_empty()).then_some((account, name))
}

fn trusts(trusted: &str, caller: &Caller) -> bool {
    if trusted == "*" || trusted == caller.arn || trusted == caller.account {
        return true;
    }
    if trusted == format!("arn:aws:iam::{}:root", caller.account) {
        return true;
    }
    // A trust policy names the role; the caller is a session of it.
    match (split_role(trusted), caller.arn.split_once(":assumed-role/")) {
        (Some((account, name)), Some((_, session))) => {
            account == caller.account && session.split('/').next() == Some(name)
        }
        _ => false,
    }
}

fn upper(rng: &mut StdRng, count: usize) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    (0..count).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn request(role_arn: &str) -> AssumeRequest {
        AssumeRequest {
            role_arn: role_arn.into(),
            session: "s".into(),
            duration: Duration::from_secs(900),
            external_id: None,
        }
    }

    #[test]
    fn only_trusted_callers_assume_a_role() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut identity = Identity::default();
        let role = "arn:aws:iam::222222222222:role/path/tasuki-read";
        identity.add_role(role, vec!["arn:aws:iam::111111111111:root".into()], None, &mut rng);
        let friend = Caller {
            account: "111111111111".into(),
            arn: "arn:aws:iam::111111111111:root".into(),
            user_id: "111111111111".into(),
        };
        let stranger = Caller { account: "333333333333".into(), arn: "x".into(), user_id: "x".into() };
        let now = Timestamp::UNIX_EPOCH;
        let (credentials, session) = identity.assume(&friend, &request(role), now, &mut rng).unwrap();
        assert_eq!(session.arn, "arn:aws:sts::222222222222:assumed-role/tasuki-read/s");
        assert_eq!(identity.key(&credentials.access_key_id).unwrap().caller, session);
        let refused = identity.assume(&stranger, &request(role), now, &mut rng).unwrap_err();
        assert_eq!((refused.code.as_ref(), refused.status), ("AccessDenied", 403));
        let unknown = request("arn:aws:iam::222222222222:role/none");
        assert!(identity.assume(&friend, &unknown, now, &mut rng).is_err());
    }

    #[test]
    fn a_role_session_is_trusted_by_its_role_arn() {
        let session = Caller {
            account: "111111111111".into(),
            arn: "arn:aws:sts::111111111111:assumed-role/hub/x".into(),
            user_id: "x".into(),
        };
        assert!(trusts("arn:aws:iam::111111111111:role/hub", &session));
        assert!(!trusts("arn:aws:iam::111111111111:role/other", &session));
    }

    #[test]
    fn the_session_registry_is_bounded() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut identity = Identity::default();
        let role = TaskRole { role_arn: "arn:aws:iam::111111111111:role/t".into(), session: "t".into() };
        identity.add_task_role("c", role);
        for _ in 0..MAX_SESSIONS + 3 {
            identity.task_credentials("c", Timestamp::UNIX_EPOCH, &mut rng).unwrap();
        }
        assert_eq!((identity.keys.len(), identity.evicted_sessions), (MAX_SESSIONS, 3));
    }
}
