//! The third check: STS says whose credentials signed.
//!
//! *Expected flow*: the agent presigns `GetCallerIdentity` with headers that name this gateway, its
//! nonce and the agent's key, and sends only the query's `X-Amz-*` parts. [`build`] makes the request
//! anew from a table and from what this gateway itself knows; STS judges it; [`judge`] compares.
//! *Guarantees*: nothing from the agent reaches the host, path, action or headers; no redirect is
//! followed; the answer is bounded. So no agent can aim the gateway at another server, and a
//! signature that was made for another gateway, nonce or key is worth nothing here.

use super::evidence::shown;
use super::refuse::{Code, Refused};
use crate::http::Http;
use bytes::Bytes;
use http::{Request, StatusCode};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use std::time::Duration;
use tasuki_api::agent::{PresignedSts, STS_GATEWAY_HEADER, STS_KEY_HEADER, STS_NONCE_HEADER};
use tokio::sync::Semaphore;
use url::Url;

/// Where STS is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StsEndpoint {
    /// `sts.<region>.<suffix of the partition>`.
    #[default]
    Aws,
    /// Exactly this one, for a local cloud.
    Override(Url),
}

/// What the signed headers must say.
#[derive(Clone, Copy, Debug)]
pub struct Proof<'a> {
    /// This gateway's id.
    pub gateway: &'a str,
    /// The nonce that this gateway gave.
    pub nonce: &'a str,
    /// Hexadecimal SHA-256 of the agent's raw public key.
    pub key_hash: &'a str,
}

/// The parts of a task's ARN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskArn<'a> {
    /// Such as `aws`.
    pub partition: &'a str,
    /// Such as `eu-west-1`.
    pub region: &'a str,
    /// 12 digits.
    pub account: &'a str,
    /// The last part.
    pub id: &'a str,
}

impl<'a> TaskArn<'a> {
    /// Reads `arn:<partition>:ecs:<region>:<account>:task/[<cluster>/]<id>`.
    pub fn parse(arn: &'a str) -> Option<Self> {
        let mut parts = arn.splitn(6, ':');
        let (scheme, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
        let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
        let id = resource.strip_prefix("task/")?.rsplit('/').next()?;
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let whole = scheme == "arn"
            && service == "ecs"
            && plain(partition)
            && plain(region)
            && plain(account)
            && !id.is_empty();
        whole.then_some(Self { partition, region, account, id })
    }
}

/// DNS suffix of a partition (AWS General Reference, "Service endpoints"; botocore `partitions.json`).
fn suffix(partition: &str) -> Option<&'static str> {
    Some(match partition {
        "aws" | "aws-us-gov" => "amazonaws.com",
        "aws-cn" => "amazonaws.com.cn",
        "aws-iso" => "c2s.ic.gov",
        "aws-iso-b" => "sc2s.sgov.gov",
        "aws-iso-e" => "cloud.adc-e.uk",
        "aws-iso-f" => "csp.hci.ic.gov",
        "aws-eusc" => "amazonaws.eu",
        _ => return None,
    })
}

/// How far the signature's date may be from now, both ways.
const WINDOW: SignedDuration = SignedDuration::from_mins(5);
/// The signed headers, exactly; SigV4 lists them sorted.
const SIGNED_HEADERS: &str = "host;x-tasuki-gateway;x-tasuki-key;x-tasuki-nonce";
/// STS session tokens are below 4 KiB in practice; AWS names no limit.
const LONGEST_PARAMETER: usize = 8 << 10;

/// Makes the request that STS is asked, from the signature's parts.
pub fn build(
    presigned: &PresignedSts,
    task: TaskArn<'_>,
    proof: Proof<'_>,
    endpoint: &StsEndpoint,
    now: Timestamp,
) -> Result<Request<Bytes>, Refused> {
    let refuse = |what: String| Refused::new(Code::SignatureNotAcceptable, what);
    if presigned.region != task.region {
        return Err(refuse(format!(
            "it is signed for Region `{}`, the task runs in {}",
            shown(&presigned.region),
            task.region
        )));
    }
    let part = |name: &str| {
        let value = presigned.query.get(name).map(String::as_str).unwrap_or_default();
        match value.len() {
            0 => Err(refuse(format!("it has no {name}"))),
            n if n > LONGEST_PARAMETER => Err(refuse(format!("its {name} is too long"))),
            _ => Ok(value),
        }
    };
    if part("X-Amz-Algorithm")? != "AWS4-HMAC-SHA256" {
        return Err(refuse("its algorithm is not AWS4-HMAC-SHA256".to_owned()));
    }
    if part("X-Amz-SignedHeaders")? != SIGNED_HEADERS {
        return Err(refuse(format!("its signed headers are not {SIGNED_HEADERS}")));
    }
    let date = part("X-Amz-Date")?;
    let at = DateTime::strptime("%Y%m%dT%H%M%SZ", date)
        .and_then(|date| date.to_zoned(TimeZone::UTC))
        .map_err(|_| refuse("its date cannot be read".to_owned()))?
        .timestamp();
    if now.duration_since(at).abs() > WINDOW {
        return Err(refuse(format!("its date {at} is more than 5 minutes from {now}; set the clock")));
    }
    let expires: u32 = part("X-Amz-Expires")?.parse().map_err(|_| refuse("its expiry is not a number".to_owned()))?;
    if expires == 0 || expires > 300 {
        return Err(refuse("it must expire within 300 s".to_owned()));
    }
    let credential = part("X-Amz-Credential")?;
    let scope = format!("/{}/{}/sts/aws4_request", date.get(..8).unwrap_or_default(), task.region);
    let key_id = credential.strip_suffix(&scope).unwrap_or_default();
    if key_id.is_empty() || !key_id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(refuse(format!("its credential scope is not {scope}")));
    }
    let signature = part("X-Amz-Signature")?;
    if signature.len() != 64 || !signature.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(refuse("its signature is not 64 hexadecimal digits".to_owned()));
    }
    part("X-Amz-Security-Token")?;

    let mut query = "Action=GetCallerIdentity&Version=2011-06-15".to_owned();
    for name in [
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-Security-Token",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
    ] {
        query.push('&');
        query.push_str(name);
        query.push('=');
        encode(part(name)?, &mut query);
    }
    let (base, host) = match endpoint {
        StsEndpoint::Aws => {
            let suffix = suffix(task.partition).ok_or_else(|| refuse("its partition is not known".to_owned()))?;
            let host = format!("sts.{}.{suffix}", task.region);
            (format!("https://{host}"), host)
        }
        StsEndpoint::Override(url) => {
            let host = url.host_str().unwrap_or_default();
            let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            (format!("{}://{host}", url.scheme()), host)
        }
    };
    Request::get(format!("{base}/?{query}"))
        .header("host", host)
        .header(STS_GATEWAY_HEADER, proof.gateway)
        .header(STS_NONCE_HEADER, proof.nonce)
        .header(STS_KEY_HEADER, proof.key_hash)
        .header("accept", "application/json")
        .body(Bytes::new())
        .map_err(|_| refuse("it cannot be sent".to_owned()))
}

/// Percent-encodes all but RFC 3986's unreserved characters, as SigV4 wants it.
fn encode(text: &str, to: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => to.push(char::from(byte)),
            _ => to.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// Compares who STS says signed with who must have signed: the role of the task, in a session that
/// ECS named after the task.
pub fn judge(caller: &str, task: TaskArn<'_>, role: &str) -> Result<(), Refused> {
    let role_name = role.rsplit('/').next().unwrap_or_default();
    let wanted = format!("arn:{}:sts::{}:assumed-role/{role_name}/{}", task.partition, task.account, task.id);
    if caller == wanted {
        return Ok(());
    }
    Err(Refused::new(Code::SignatureOfAnother, format!("STS says {} signed, not {wanted}", shown_arn(caller))))
}

fn shown_arn(arn: &str) -> String {
    arn.chars().take(200).flat_map(char::escape_default).collect()
}

/// The ARN in an answer of GetCallerIdentity, JSON or XML.
pub fn caller(body: &[u8]) -> Option<String> {
    if body.trim_ascii_start().starts_with(b"{") {
        let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
        return Some(answer.pointer("/GetCallerIdentityResponse/GetCallerIdentityResult/Arn")?.as_str()?.to_owned());
    }
    let mut reader = quick_xml::Reader::from_reader(body);
    let (mut inside, mut arn) = (false, None);
    loop {
        match reader.read_event().ok()? {
            quick_xml::events::Event::Start(tag) => inside = tag.local_name().as_ref() == "Arn",
            quick_xml::events::Event::Text(text) if inside && arn.is_none() => {
                arn = Some(text.trim().to_owned());
            }
            quick_xml::events::Event::End(_) => inside = false,
            quick_xml::events::Event::Eof => return arn,
            _ => {}
        }
    }
}

/// Asks STS; a few at a time, so that a storm of enrolments is not one at STS.
#[derive(Debug)]
pub struct Sts {
    http: Http,
    endpoint: StsEndpoint,
    permits: Semaphore,
}

impl Sts {
    /// Asks `endpoint` by `http`.
    pub fn new(http: Http, endpoint: StsEndpoint) -> Self {
        Self { http, endpoint, permits: Semaphore::new(16) }
    }

    /// Checks that the role of the task made this signature, for this gateway, nonce and key.
    pub async fn check(
        &self,
        presigned: &PresignedSts,
        task: TaskArn<'_>,
        role: &str,
        proof: Proof<'_>,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let request = build(presigned, task, proof, &self.endpoint, now)?;
        let _permit = self.permits.acquire().await.map_err(|_| Refused::busy("STS"))?;
        let (status, body) = self.http.send(request, 16 << 10, Duration::from_secs(5)).await.map_err(|error| {
            tracing::warn!(error = %error, cause = ?std::error::Error::source(&error).map(ToString::to_string), "STS could not be asked");
            Refused::busy("STS")
        })?;
        match status {
            StatusCode::OK => {
                let caller = caller(&body).ok_or_else(|| Refused::busy("STS (its answer cannot be read)"))?;
                judge(&caller, task, role)
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => Err(Refused::busy("STS")),
            status => {
                let message =
                    format!("STS answered {status}; the credentials are expired, or made for another request");
                Err(Refused::new(Code::SignatureRefused, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "arn:aws:ecs:eu-west-1:111122223333:task/c/abc";
    const PROOF: Proof<'_> = Proof { gateway: "g", nonce: "n", key_hash: "k" };

    fn presigned(change: Option<(&str, &str)>) -> PresignedSts {
        let signature = "0".repeat(64);
        let mut query = std::collections::BTreeMap::new();
        for (name, value) in [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", "ASIAX/20231114/eu-west-1/sts/aws4_request"),
            ("X-Amz-Date", "20231114T221320Z"),
            ("X-Amz-Expires", "60"),
            ("X-Amz-Security-Token", "a+/="),
            ("X-Amz-SignedHeaders", SIGNED_HEADERS),
            ("X-Amz-Signature", &signature),
        ] {
            query.insert(name.to_owned(), value.to_owned());
        }
        if let Some((name, value)) = change {
            query.insert(name.to_owned(), value.to_owned());
        }
        PresignedSts { region: "eu-west-1".to_owned(), query }
    }

    fn built(presigned: &PresignedSts, after: i64) -> Result<Request<Bytes>, Refused> {
        let now = Timestamp::from_second(1_700_000_000 + after).unwrap();
        build(presigned, TaskArn::parse(TASK).unwrap(), PROOF, &StsEndpoint::Aws, now)
    }

    #[test]
    fn the_request_is_the_gateways_own() {
        let request = built(&presigned(Some(("Action", "DeleteEverything"))), 0).unwrap();
        assert_eq!(request.uri().host(), Some("sts.eu-west-1.amazonaws.com"));
        let query = request.uri().query().unwrap();
        assert!(query.starts_with("Action=GetCallerIdentity&Version=2011-06-15&") && !query.contains("Delete"));
        assert!(query.contains("X-Amz-Security-Token=a%2B%2F%3D"));
        assert_eq!(request.headers()[STS_NONCE_HEADER], "n");
    }

    #[test]
    fn whatever_is_not_that_request_is_refused() {
        for change in [
            ("X-Amz-Algorithm", "AWS4-ECDSA-P256-SHA256"),
            ("X-Amz-Credential", "ASIAX/20231114/us-east-1/sts/aws4_request"),
            ("X-Amz-Credential", "../x/20231114/eu-west-1/sts/aws4_request"),
            ("X-Amz-Date", "yesterday"),
            ("X-Amz-Expires", "604800"),
            ("X-Amz-SignedHeaders", "host"),
            ("X-Amz-Signature", "&host=evil"),
            ("X-Amz-Security-Token", ""),
        ] {
            assert_eq!(
                built(&presigned(Some(change)), 0).unwrap_err().code,
                Code::SignatureNotAcceptable,
                "{change:?}"
            );
        }
        let elsewhere = PresignedSts { region: "evil.example/".to_owned(), ..presigned(None) };
        assert!(built(&elsewhere, 0).is_err());
        assert!(built(&presigned(None), 299).is_ok() && built(&presigned(None), 301).is_err());
        assert!(built(&presigned(None), -301).is_err());
    }

    #[test]
    fn only_the_tasks_own_role_session_will_do() {
        let task = TaskArn::parse(TASK).unwrap();
        let role = "arn:aws:iam::111122223333:role/path/web";
        assert!(judge("arn:aws:sts::111122223333:assumed-role/web/abc", task, role).is_ok());
        for other in [
            "arn:aws:sts::999999999999:assumed-role/web/abc",
            "arn:aws:sts::111122223333:assumed-role/web/abd",
            "arn:aws:sts::111122223333:assumed-role/admin/abc",
            "arn:aws:iam::111122223333:user/abc",
        ] {
            assert_eq!(judge(other, task, role).unwrap_err().code, Code::SignatureOfAnother, "{other}");
        }
        let xml = b"<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:x</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>";
        assert_eq!(caller(xml).as_deref(), Some("arn:x"));
        assert_eq!(caller(b"<a><b>"), None);
        assert_eq!(caller(b"{}"), None);
    }
}
