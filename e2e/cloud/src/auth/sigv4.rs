//! Verification of AWS Signature Version 4, in the Authorization header or in the query (presigned).
//!
//! Follows the published algorithm: canonical request, string to sign, HMAC chain over date, Region, service.
//! Freshness is judged by the machine's wall clock, because clients sign with it even when the cloud's own time is virtual.

use aws_lc_rs::{constant_time, digest, hmac};
use http::request::Parts;
use jiff::{SignedDuration, Timestamp};

use super::identity::{Caller, Identity};

/// A header-signed request may be this old or this far ahead (AWS: 5 minutes for most services).
const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// Longest `X-Amz-Expires` (7 days).
const MAX_EXPIRES: i64 = 604_800;

/// A request that was proved to come from a key.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Whose key signed it.
    pub caller: Caller,
    /// Region of the credential scope.
    pub region: String,
    /// Service of the credential scope.
    pub service: String,
}

/// Why a request was not accepted. Each protocol has its own names for these, see [`SignatureError::code`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No signature at all.
    #[error("Missing Authentication Token")]
    Missing,
    /// A part of it is absent or has no meaning.
    #[error("{0}")]
    Incomplete(String),
    /// The access key or the session token is not known.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// The session has ended.
    #[error("The security token included in the request is expired")]
    ExpiredToken,
    /// Wrong signature, or outside the time window.
    #[error("{0}")]
    Mismatch(String),
}

impl SignatureError {
    /// Error code and HTTP status, as the JSON services or the query services (STS, SQS) name it.
    pub fn code(&self, json: bool) -> (&'static str, u16) {
        match (self, json) {
            (Self::Missing, true) => ("MissingAuthenticationTokenException", 400),
            (Self::Missing, false) => ("MissingAuthenticationToken", 403),
            (Self::Incomplete(_), true) => ("IncompleteSignatureException", 400),
            (Self::Incomplete(_), false) => ("IncompleteSignature", 400),
            (Self::UnknownKey, true) => ("UnrecognizedClientException", 400),
            (Self::UnknownKey, false) => ("InvalidClientTokenId", 403),
            (Self::ExpiredToken, true) => ("ExpiredTokenException", 400),
            (Self::ExpiredToken, false) => ("ExpiredToken", 403),
            (Self::Mismatch(_), true) => ("InvalidSignatureException", 400),
            (Self::Mismatch(_), false) => ("SignatureDoesNotMatch", 403),
        }
    }
}

/// What a request says about its own signature.
struct Claim {
    key: String,
    date: String,
    region: String,
    service: String,
    signed_headers: String,
    signature: String,
    amz_date: String,
    token: Option<String>,
    /// Seconds of validity of a presigned request.
    expires: Option<i64>,
}

/// Checks a request against the registry. `wall` is real time, `session_now` the cloud's time.
///
/// # Errors
/// Says which part of the proof is absent, unknown, stale or wrong.
pub fn verify(
    parts: &Parts,
    body: &[u8],
    identity: &Identity,
    wall: Timestamp,
    session_now: Timestamp,
) -> Result<Verified, SignatureError> {
    let query: Vec<(String, String)> =
        parts.uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()).map(split_pair).collect();
    let presigned = query.iter().any(|(name, _)| name == "X-Amz-Algorithm");
    let claim = if presigned { from_query(&query)? } else { from_header(parts)? };
    check_time(&claim, wall)?;
    let key = identity.key(&claim.key).ok_or(SignatureError::UnknownKey)?;
    if key.token != claim.token {
        return Err(SignatureError::UnknownKey);
    }
    if key.expires.is_some_and(|end| end <= session_now) {
        return Err(SignatureError::ExpiredToken);
    }
    let canonical = canonical_request(parts, body, &query, &claim, presigned)?;
    let scope = format!("{}/{}/{}/aws4_request", claim.date, claim.region, claim.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", claim.amz_date, sha256_hex(canonical.as_bytes()));
    let expected = hex::encode(sign(&key.secret, &claim, &to_sign));
    if constant_time::verify_slices_are_equal(expected.as_bytes(), claim.signature.as_bytes()).is_err() {
        let message = "The request signature we calculated does not match the signature you provided. Check your AWS \
                       Secret Access Key and signing method. Consult the service documentation for details.";
        return Err(SignatureError::Mismatch(message.into()));
    }
    Ok(Verified { caller: key.caller.clone(), region: claim.region, service: claim.service })
}

fn from_header(parts: &Parts) -> Result<Claim, SignatureError> {
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let authorization = header("authorization").ok_or(SignatureError::Missing)?;
    let Some(fields) = authorization.strip_prefix("AWS4-HMAC-SHA256") else {
        return Err(SignatureError::Incomplete(format!("Unsupported AWS 'algorithm': '{authorization}'.")));
    };
    let field = |name: &str| {
        let found = fields.split(',').filter_map(|f| f.trim().split_once('=')).find(|(n, _)| *n == name);
        found.map(|(_, value)| value.to_owned()).ok_or_else(|| {
            SignatureError::Incomplete(format!(
                "Authorization header requires '{name}' parameter. Authorization={authorization}"
            ))
        })
    };
    let amz_date = header("x-amz-date").ok_or_else(|| {
        SignatureError::Incomplete(
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.".into(),
        )
    })?;
    scope(
        &field("Credential")?,
        field("SignedHeaders")?,
        field("Signature")?,
        amz_date,
        header("x-amz-security-token"),
        None,
    )
}

fn from_query(query: &[(String, String)]) -> Result<Claim, SignatureError> {
    let find = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, v)| percent_decode(v));
    let need = |name: &str| {
        find(name)
            .ok_or_else(|| SignatureError::Incomplete(format!("AWS query-string parameters must include '{name}'.")))
    };
    if need("X-Amz-Algorithm")? != "AWS4-HMAC-SHA256" {
        return Err(SignatureError::Incomplete("Unsupported AWS 'algorithm'.".into()));
    }
    let expires = match find("X-Amz-Expires") {
        // STS accepts presigned requests without it and gives them 15 minutes.
        None => 900,
        Some(text) => text.parse().ok().filter(|s| (1..=MAX_EXPIRES).contains(s)).ok_or_else(|| {
            SignatureError::Incomplete(format!("X-Amz-Expires must be a number between 1 and {MAX_EXPIRES}"))
        })?,
    };
    let token = find("X-Amz-Security-Token");
    let (headers, signature) = (need("X-Amz-SignedHeaders")?, need("X-Amz-Signature")?);
    scope(&need("X-Amz-Credential")?, headers, signature, need("X-Amz-Date")?, token, Some(expires))
}

fn scope(
    credential: &str,
    signed_headers: String,
    signature: String,
    amz_date: String,
    token: Option<String>,
    expires: Option<i64>,
) -> Result<Claim, SignatureError> {
    let pieces: Vec<&str> = credential.split('/').collect();
    let [key, date, region, service, "aws4_request"] = pieces.as_slice() else {
        let message = format!(
            "Credential must have 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{credential}'"
        );
        return Err(SignatureError::Incomplete(message));
    };
    Ok(Claim {
        key: (*key).into(),
        date: (*date).into(),
        region: (*region).into(),
        service: (*service).into(),
        signed_headers,
        signature,
        amz_date,
        token,
        expires,
    })
}

fn check_time(claim: &Claim, wall: Timestamp) -> Result<(), SignatureError> {
    let signed = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &claim.amz_date)
        .and_then(|civil| civil.to_zoned(jiff::tz::TimeZone::UTC))
        .map(|zoned| zoned.timestamp())
        .map_err(|_| {
            SignatureError::Incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{}'.", claim.amz_date))
        })?;
    if !claim.amz_date.starts_with(&claim.date) {
        let message = format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}'",
            claim.amz_date
        );
        return Err(SignatureError::Mismatch(message));
    }
    let age = wall.duration_since(signed);
    if age < -SKEW {
        return Err(SignatureError::Mismatch(format!(
            "Signature not yet current: {} is still later than {wall}",
            claim.amz_date
        )));
    }
    let limit = claim.expires.map_or(SKEW, SignedDuration::from_secs);
    if age > limit {
        return Err(SignatureError::Mismatch(format!(
            "Signature expired: {} is now earlier than {wall}",
            claim.amz_date
        )));
    }
    Ok(())
}

fn canonical_request(
    parts: &Parts,
    body: &[u8],
    query: &[(String, String)],
    claim: &Claim,
    presigned: bool,
) -> Result<String, SignatureError> {
    let mut pairs: Vec<(String, String)> = query
        .iter()
        .filter(|(name, _)| name != "X-Amz-Signature")
        .map(|(name, value)| (percent_encode(&percent_decode(name)), percent_encode(&percent_decode(value))))
        .collect();
    pairs.sort();
    let query_text = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("&");
    let mut headers = String::new();
    let mut host_signed = false;
    for name in claim.signed_headers.split(';') {
        host_signed |= name == "host";
        let values: Vec<String> = parts
            .headers
            .get_all(name)
            .iter()
            .map(|v| String::from_utf8_lossy(v.as_bytes()).split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        if values.is_empty() {
            return Err(SignatureError::Mismatch(format!("The signed header '{name}' is not in the request.")));
        }
        headers.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    if !host_signed {
        return Err(SignatureError::Mismatch(
            "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.".into(),
        ));
    }
    let declared = parts.headers.get("x-amz-content-sha256").and_then(|v| v.to_str().ok());
    let payload = match declared {
        Some("UNSIGNED-PAYLOAD") => "UNSIGNED-PAYLOAD".to_owned(),
        _ => sha256_hex(if presigned { b"" } else { body }),
    };
    let path = parts.uri.path().split('/').map(percent_encode).collect::<Vec<_>>().join("/");
    Ok(format!("{}\n{path}\n{query_text}\n{headers}\n{}\n{payload}", parts.method, claim.signed_headers))
}

fn sign(secret: &str, claim: &Claim, to_sign: &str) -> Vec<u8> {
    let mac =
        |key: &[u8], data: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec();
    let date = mac(format!("AWS4{secret}").as_bytes(), &claim.date);
    let region = mac(&date, &claim.region);
    let service = mac(&region, &claim.service);
    let key = mac(&service, "aws4_request");
    mac(&key, to_sign)
}

fn sha256_hex(data: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, data))
}

fn split_pair(pair: &str) -> (String, String) {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    (name.to_owned(), value.to_owned())
}

/// RFC 3986 encoding: everything but unreserved characters.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
