//! The task role's signature: credentials from ECS's endpoint, and a presigned `GetCallerIdentity`.
//!
//! Nothing secret leaves this file: of the signed request only the query's parts go to the gateway,
//! and they are good for 60 s, for this gateway, nonce and key alone.

use super::http::{Http, HttpError};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::Request;
use jiff::Timestamp;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tasuki_api::agent::{PresignedSts, STS_GATEWAY_HEADER, STS_KEY_HEADER, STS_NONCE_HEADER};
use url::Url;

/// Where the task role's credentials come from.
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialSource {
    /// The endpoint.
    pub url: Url,
    /// File with the value of the Authorization header, read for each request.
    pub token_file: Option<PathBuf>,
    /// Value of the Authorization header.
    pub token: Option<String>,
}

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum PresignError {
    /// The variables name something that is not asked.
    #[error("{variable} names an address that is not the container's own credential endpoint; it is not asked")]
    Refused {
        /// Environment variable.
        variable: &'static str,
    },
    /// No answer.
    #[error("the task role's credentials cannot be read")]
    Http(#[from] HttpError),
    /// Not credentials.
    #[error("the credential endpoint gave no credentials (status {status})")]
    Unreadable {
        /// Status of its answer.
        status: u16,
    },
    /// The file with the token cannot be read.
    #[error("{path} with the credential endpoint's token cannot be read")]
    Token {
        /// File.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The request cannot be signed.
    #[error("GetCallerIdentity cannot be signed")]
    Sign {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CredentialSource {
    /// Reads `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `…_FULL_URI` from `variable`. `None` where the task
    /// has no role.
    pub fn find(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, PresignError> {
        let (relative, full) = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let token_file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(PathBuf::from);
        let token = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN");
        let (name, url) = match (variable(relative), variable(full)) {
            (Some(path), _) => (relative, Url::parse("http://169.254.170.2").and_then(|base| base.join(&path))),
            (None, Some(url)) => (full, Url::parse(&url)),
            (None, None) => return Ok(None),
        };
        let refused = || PresignError::Refused { variable: name };
        let url = url.map_err(|_| refused())?;
        // Plain HTTP only to this machine, ECS's and EKS's endpoints, as the SDKs have it: the token
        // must not travel.
        let near = match url.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback() || matches!(ip.octets(), [169, 254, 170, 2 | 23]),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback() || ip.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23],
            _ => false,
        };
        if url.scheme() != "https" && !near {
            return Err(refused());
        }
        Ok(Some(Self { url, token_file, token }))
    }

    /// Reads the credentials.
    pub async fn credentials(&self, http: &Http) -> Result<Credentials, PresignError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            access_key_id: String,
            secret_access_key: String,
            token: String,
        }
        let mut request = Request::get(self.url.as_str());
        let token = match &self.token_file {
            Some(path) => {
                let read = tokio::fs::read_to_string(path).await;
                Some(read.map_err(|source| PresignError::Token { path: path.clone(), source })?.trim().to_owned())
            }
            None => self.token.clone(),
        };
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let request = request.body(Bytes::new()).map_err(|error| PresignError::Sign { source: error.into() })?;
        let answer = http.send(request, 64 << 10, Duration::from_secs(5)).await?;
        let status = answer.status.as_u16();
        let keys: Answer = serde_json::from_slice(&answer.body).map_err(|_| PresignError::Unreadable { status })?;
        Ok(Credentials::new(keys.access_key_id, keys.secret_access_key, Some(keys.token), None, "ecs"))
    }
}

/// What the signature is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The gateway's id.
    pub gateway: &'a str,
    /// Its nonce.
    pub nonce: &'a str,
    /// Hexadecimal SHA-256 of the agent's raw public key.
    pub key_hash: &'a str,
}

/// Host of STS in a Region.
pub fn sts_host(partition: &str, region: &str) -> Option<String> {
    let suffix = match partition {
        "aws" | "aws-us-gov" => "amazonaws.com",
        "aws-cn" => "amazonaws.com.cn",
        "aws-iso" => "c2s.ic.gov",
        "aws-iso-b" => "sc2s.sgov.gov",
        "aws-iso-e" => "cloud.adc-e.uk",
        "aws-iso-f" => "csp.hci.ic.gov",
        "aws-eusc" => "amazonaws.eu",
        _ => return None,
    };
    Some(format!("sts.{region}.{suffix}"))
}

/// Presigns `GetCallerIdentity` for `host` (with its port, where it is not the scheme's own).
pub fn presign(
    credentials: &Credentials,
    scheme: &str,
    host: &str,
    region: &str,
    binding: Binding<'_>,
    now: Timestamp,
) -> Result<PresignedSts, PresignError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| PresignError::Sign { source };
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(Duration::from_secs(60));
    settings.excluded_headers = None;
    let identity = credentials.clone().into();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(time)
        .settings(settings)
        .build()
        .map_err(|error| failed(error.into()))?;
    let headers = [
        ("host", host),
        (STS_GATEWAY_HEADER, binding.gateway),
        (STS_NONCE_HEADER, binding.nonce),
        (STS_KEY_HEADER, binding.key_hash),
    ];
    let url = format!("{scheme}://{host}/?Action=GetCallerIdentity&Version=2011-06-15");
    let request = SignableRequest::new("GET", url, headers.into_iter(), SignableBody::Bytes(&[]))
        .map_err(|error| failed(error.into()))?;
    let (instructions, _) = sign(request, &params.into()).map_err(|error| failed(error.into()))?.into_parts();
    let query = instructions.params().iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect();
    Ok(PresignedSts { region: region.to_owned(), query })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_asked_only_where_they_belong() {
        let find = |name: &'static str, value: &str| {
            let value = value.to_owned();
            CredentialSource::find(move |asked| (asked == name).then(|| value.clone()))
        };
        let (relative, full) = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI");
        assert_eq!(find("other", "x").unwrap(), None);
        let source = find(relative, "/v2/credentials/abc").unwrap().unwrap();
        assert_eq!(source.url.as_str(), "http://169.254.170.2/v2/credentials/abc");
        assert!(find(relative, "http://evil.example/x").is_err());
        assert!(find(relative, "//evil.example/x").is_err());
        assert!(find(full, "http://127.0.0.1:8080/c").is_ok());
        assert!(find(full, "http://[::1]/c").is_ok());
        assert!(find(full, "http://example.com/c").is_err());
        assert!(find(full, "https://example.com/c").is_ok());
    }

    #[test]
    fn the_signature_covers_gateway_nonce_and_key_and_holds_no_secret() {
        let credentials = Credentials::new("AKIDEXAMPLE", "very-secret", Some("tok/en+=".to_owned()), None, "test");
        let binding = Binding { gateway: "g", nonce: "n", key_hash: "k" };
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let signed = presign(&credentials, "https", "sts.eu-west-1.amazonaws.com", "eu-west-1", binding, now).unwrap();
        assert_eq!(signed.query["X-Amz-SignedHeaders"], "host;x-tasuki-gateway;x-tasuki-key;x-tasuki-nonce");
        assert_eq!(signed.query["X-Amz-Security-Token"], "tok/en+=");
        assert_eq!(signed.query["X-Amz-Date"], "20231114T221320Z");
        assert_eq!(signed.query.len(), 7);
        assert!(!serde_json::to_string(&signed).unwrap().contains("very-secret"));
        let other = Binding { nonce: "m", ..binding };
        let other = presign(&credentials, "https", "sts.eu-west-1.amazonaws.com", "eu-west-1", other, now).unwrap();
        assert_ne!(signed.query["X-Amz-Signature"], other.query["X-Amz-Signature"]);
    }
}
