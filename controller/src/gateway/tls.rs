//! The gateway's certificate: from its own authority, or from the user's files.
//!
//! The authority is made once and kept in the store; agents get its certificate as
//! `TASUKI_GATEWAY_CA`. The server's certificate is made anew at every start and 30 days before it
//! expires, and its key never leaves the process.

use super::GatewayError;
use crate::store::{GATEWAY_CA, Store};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::Arc;

/// Where the gateway's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// From the gateway's own authority, for these host names and addresses.
    Own {
        /// Names by which agents reach the gateway.
        names: Vec<String>,
    },
    /// From the user's files, read again every hour.
    Files {
        /// PEM chain, the server's certificate first.
        chain: PathBuf,
        /// PEM key.
        key: PathBuf,
    },
}

/// Days for which a server certificate is made.
const SERVER_DAYS: i64 = 90;
/// Days before expiry at which it is made anew.
const RENEW_DAYS: i64 = 30;

fn tls_error<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> GatewayError {
    move |source| GatewayError::Certificate { what, source: source.into() }
}

/// The gateway's own certificate authority.
pub struct Authority {
    /// Its certificate, PEM: what agents trust.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority from the store, or makes it.
    pub async fn open(store: &Store, now: Timestamp) -> Result<Self, GatewayError> {
        let made = match store.setting(GATEWAY_CA).await? {
            Some(kept) => kept,
            None => {
                let key = KeyPair::generate().map_err(tls_error("make the authority's key"))?;
                let certificate =
                    authority_params(now).self_signed(&key).map_err(tls_error("make the authority's certificate"))?;
                let both = format!("{}{}", certificate.pem(), key.serialize_pem());
                store.setting_or_insert(GATEWAY_CA, &both).await?
            }
        };
        let unreadable = "read the authority that the store keeps";
        let start = made.find("-----BEGIN PRIVATE KEY-----");
        let (pem, key) = made.split_at(start.ok_or("no private key in it").map_err(tls_error(unreadable))?);
        let key = KeyPair::from_pem(key).map_err(tls_error(unreadable))?;
        // Name and key are all that an issuer gives to what it signs; the dates do not matter here.
        Ok(Self { pem: pem.to_owned(), issuer: Issuer::new(authority_params(now), key) })
    }

    /// Makes a server certificate for `names`, good from yesterday for 90 days.
    pub fn server(&self, names: &[String], now: Timestamp) -> Result<Arc<ServerConfig>, GatewayError> {
        let failed = "make the server's certificate; check the names that are given for it";
        let mut params = CertificateParams::new(names.to_vec()).map_err(tls_error(failed))?;
        params.distinguished_name.push(DnType::CommonName, "tasuki gateway");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_dates(&mut params, now, SERVER_DAYS);
        let key = KeyPair::generate().map_err(tls_error(failed))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(tls_error(failed))?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(tls_error(failed))?;
        server_config(vec![certificate.der().clone()], key)
    }
}

fn authority_params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "tasuki gateway authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_dates(&mut params, now, 3650);
    params
}

/// Good from yesterday (clocks differ) for `days`.
fn set_dates(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let today: Date = now.to_zoned(TimeZone::UTC).date();
    let midnight = |days: i64| {
        let date = today.checked_add(days.days()).unwrap_or(today);
        date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    (params.not_before, params.not_after) = (midnight(-1), midnight(days));
}

/// Whether a certificate made at `made` should be made anew.
pub fn due(made: Timestamp, now: Timestamp) -> bool {
    now.duration_since(made).as_hours() >= (SERVER_DAYS - RENEW_DAYS) * 24
}

/// Reads the user's files.
pub fn from_files(chain: &PathBuf, key: &PathBuf) -> Result<Arc<ServerConfig>, GatewayError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(tls_error("read the certificate chain (PEM)"))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(tls_error("read the certificate's key (PEM)"))?;
    server_config(chain, key)
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, GatewayError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls_error("set TLS up"))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(tls_error("use the certificate; does the key belong to it?"))?;
    // HTTP/1.1 only: one request at a time is what an agent needs, and it is the smaller surface.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_authority_outlives_a_restart_and_certificates_are_renewed_in_time() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let first = Authority::open(&store, now).await.unwrap();
        let again = Authority::open(&store, now + jiff::SignedDuration::from_hours(24 * 400)).await.unwrap();
        assert_eq!(first.pem, again.pem);
        assert!(first.pem.contains("BEGIN CERTIFICATE") && !first.pem.contains("PRIVATE"));
        again.server(&["gateway.example".to_owned(), "127.0.0.1".to_owned()], now).unwrap();
        assert!(!due(now, now + jiff::SignedDuration::from_hours(24 * 59)));
        assert!(due(now, now + jiff::SignedDuration::from_hours(24 * 60)));
    }

    #[test]
    fn missing_files_are_named() {
        let error = from_files(&"/nonexistent/chain.pem".into(), &"/nonexistent/key.pem".into()).unwrap_err();
        assert!(error.to_string().contains("chain"), "{error}");
    }
}
