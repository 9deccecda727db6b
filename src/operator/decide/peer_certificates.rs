//! The certificates with which a farm's caches authenticate to each other, and their renewal. Pure.
//!
//! A farm has one CA, whose key never leaves the operator and its Secret, and one leaf certificate, which all its
//! caches present in both directions. A cache trusts the CA certificates that are mounted with the leaf certificate. A
//! new CA is announced first, and signs a leaf certificate only after [`OVERLAP`], when every cache has loaded it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use zeroize::Zeroizing;

/// Validity of a CA certificate.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// Validity of a leaf certificate.
const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Allowed clock skew: how far a cache's clock may be behind the operator's.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);

/// Time that caches have to load a new CA certificate. A kubelet needs up to two minutes; a disconnected node needs
/// longer.
const OVERLAP: SignedDuration = SignedDuration::from_hours(24);

/// Issuing a certificate failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to issue a certificate: {0}")]
pub(crate) struct IssueError(#[from] rcgen::Error);

/// The CA of a farm: signs its leaf certificate.
pub(crate) struct Authority {
    certificate: Certificate,
    key: Zeroizing<String>,
}

/// The leaf certificate that a farm's caches present, and the CA certificates that they trust.
pub(crate) struct Leaf {
    certificate: Certificate,
    key: Zeroizing<String>,
    authorities: Vec<CertificateDer<'static>>,
    /// Since when the newest CA certificate has been among `authorities`.
    trusted_since: Option<Timestamp>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Nothing to do before `until`.
    Keep {
        /// When to decide again.
        until: Timestamp,
    },
    /// There is no usable CA, or it is due for renewal: create one.
    Found,
    /// Add the new CA certificate to the trusted ones and keep the leaf certificate: [`Leaf::announcing`].
    Announce,
    /// Issue a new leaf certificate: [`Leaf::issue`].
    Issue,
}

/// Decides the next step from the existing CA and leaf certificate.
pub(crate) fn plan(ca: Option<&Authority>, leaf: Option<&Leaf>, server_name: &str, now: Timestamp) -> Step {
    let Some(ca) = ca.filter(|ca| now < ca.certificate.renewal()) else {
        return Step::Found;
    };
    let Some(leaf) = leaf.filter(|leaf| leaf.is_usable(server_name, now)) else {
        return Step::Issue;
    };
    let Some(trusted_since) = leaf.trusted_since.filter(|since| *since <= now + OVERLAP) else {
        return Step::Announce;
    };
    if !leaf.authorities.contains(&ca.certificate.der) {
        return Step::Announce;
    }
    if !leaf.is_signed_by(&ca.certificate.der, server_name, now) {
        let until = trusted_since + OVERLAP;
        return if now < until {
            Step::Keep { until }
        } else {
            Step::Issue
        };
    }
    let renewal = leaf.certificate.renewal();
    let settled = leaf.certificate.not_before + BACKDATED + OVERLAP;
    match leaf.authorities.len() {
        _ if now >= renewal => Step::Issue,
        0 | 1 => Step::Keep { until: renewal },
        // Nobody presents a leaf certificate of the old CA any more.
        _ if now >= settled => Step::Announce,
        _ => Step::Keep { until: settled },
    }
}

impl Authority {
    /// Creates a CA. Fails if no key can be generated.
    pub(crate) fn create(now: Timestamp) -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = authority_params();
        set_validity(&mut params, now, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: Certificate::parse(certificate.der().clone()).ok_or(UNREADABLE)?,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    /// Parses a CA from PEM; None if it is invalid.
    pub(crate) fn read(certificate: &[u8], key: &[u8]) -> Option<Self> {
        let certificate = Certificate::parse(CertificateDer::from_pem_slice(certificate).ok()?)?;
        let key = read_key(key, &certificate)?;
        Some(Self { certificate, key })
    }

    /// The certificate as PEM.
    pub(crate) fn certificate(&self) -> String {
        pem(&self.certificate.der)
    }

    /// The private key as PEM.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }
}

impl Leaf {
    /// Issues a leaf certificate. The CA that signed `before` stays trusted, because some caches still present that
    /// certificate.
    pub(crate) fn issue(
        ca: &Authority,
        before: Option<&Self>,
        server_name: &str,
        now: Timestamp,
    ) -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new([server_name.to_owned()])?;
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::OrganizationName, "tlsfarm.dev");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, LEAF_LIFE);
        let issuer = Issuer::new(authority_params(), KeyPair::from_pem(ca.key())?);
        let certificate = params.signed_by(&key, &issuer)?;
        let before = before.filter(|before| before.is_usable(server_name, now));
        Ok(Self {
            certificate: Certificate::parse(certificate.der().clone()).ok_or(UNREADABLE)?,
            key: Zeroizing::new(key.serialize_pem()),
            authorities: authorities(ca, before, server_name, now),
            trusted_since: Some(trusted_since(ca, before, now)),
        })
    }

    /// The same leaf certificate with the CA certificates to trust from now on.
    pub(crate) fn announcing(&self, ca: &Authority, server_name: &str, now: Timestamp) -> Self {
        Self {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authorities: authorities(ca, Some(self), server_name, now),
            trusted_since: Some(trusted_since(ca, Some(self), now)),
        }
    }

    /// Parses a leaf certificate and CA certificates from PEM; None if any of them is invalid.
    pub(crate) fn read(
        certificate: &[u8],
        key: &[u8],
        authorities: &[u8],
        trusted_since: Option<Timestamp>,
    ) -> Option<Self> {
        let certificate = Certificate::parse(CertificateDer::from_pem_slice(certificate).ok()?)?;
        let key = read_key(key, &certificate)?;
        let authorities = CertificateDer::pem_slice_iter(authorities)
            .collect::<Result<_, _>>()
            .ok()?;
        Some(Self {
            certificate,
            key,
            authorities,
            trusted_since,
        })
    }

    /// The certificate as PEM.
    pub(crate) fn certificate(&self) -> String {
        pem(&self.certificate.der)
    }

    /// The private key as PEM.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The trusted CA certificates as PEM.
    pub(crate) fn authorities(&self) -> String {
        self.authorities.iter().map(pem).collect()
    }

    /// Since when the newest CA certificate has been announced.
    pub(crate) fn trusted_since(&self) -> Option<Timestamp> {
        self.trusted_since
    }

    /// Time of its renewal.
    pub(crate) fn renewal(&self) -> Timestamp {
        self.certificate.renewal()
    }

    /// Whether caches with this certificate accept each other.
    fn is_usable(&self, server_name: &str, now: Timestamp) -> bool {
        self.authorities
            .iter()
            .any(|ca| self.is_signed_by(ca, server_name, now))
    }

    fn is_signed_by(&self, ca: &CertificateDer<'static>, server_name: &str, now: Timestamp) -> bool {
        let mut roots = RootCertStore::empty();
        let (Ok(()), Ok(name), Ok(now)) = (
            roots.add(ca.clone()),
            ServerName::try_from(server_name),
            u64::try_from(now.as_second()),
        ) else {
            return false;
        };
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
                .build();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        verifier.is_ok_and(|verifier| {
            verifier
                .verify_server_cert(&self.certificate.der, &[], &name, &[], now)
                .is_ok()
        })
    }
}

/// A certificate and its validity period.
#[derive(Clone)]
struct Certificate {
    der: CertificateDer<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
    public_key: Vec<u8>,
}

impl Certificate {
    fn parse(der: CertificateDer<'static>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        let validity = parsed.validity();
        let not_before = Timestamp::from_second(validity.not_before.timestamp()).ok()?;
        let not_after = Timestamp::from_second(validity.not_after.timestamp()).ok()?;
        let public_key = parsed.public_key().raw.to_vec();
        Some(Self {
            der,
            not_before,
            not_after,
            public_key,
        })
    }

    /// Time of renewal: two thirds of the validity period.
    fn renewal(&self) -> Timestamp {
        self.not_before + self.not_after.duration_since(self.not_before) / 3 * 2
    }
}

/// Error for a new certificate that fails to parse, which does not happen.
const UNREADABLE: rcgen::Error = rcgen::Error::CouldNotParseCertificate;

/// Parameters shared by all CA certificates, which differ only in their keys.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "tlsfarm.dev");
    params
        .distinguished_name
        .push(DnType::CommonName, "TLSFarm session cache");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// Sets the validity period, which begins slightly before `now`.
fn set_validity(params: &mut CertificateParams, now: Timestamp, life: SignedDuration) {
    // rcgen does not re-export its time type; this is the only public way to construct one.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |time: Timestamp| epoch + Duration::from_secs(time.as_second().unsigned_abs());
    params.not_before = at(now - BACKDATED);
    params.not_after = at(now + life);
}

/// CA certificates to trust: that of `ca`, and the one that signed `before`.
fn authorities(
    ca: &Authority,
    before: Option<&Leaf>,
    server_name: &str,
    now: Timestamp,
) -> Vec<CertificateDer<'static>> {
    let ours = &ca.certificate.der;
    let older = before.and_then(|before| {
        let mut others = before.authorities.iter().filter(|other| *other != ours);
        others.find(|other| before.is_signed_by(other, server_name, now))
    });
    [Some(ours), older].into_iter().flatten().cloned().collect()
}

fn trusted_since(ca: &Authority, before: Option<&Leaf>, now: Timestamp) -> Timestamp {
    before
        .filter(|before| before.authorities.contains(&ca.certificate.der))
        .and_then(|before| before.trusted_since)
        .map_or(now, |since| since.min(now))
}

/// The key as PEM, if it matches `certificate`.
fn read_key(key: &[u8], certificate: &Certificate) -> Option<Zeroizing<String>> {
    let key = Zeroizing::new(std::str::from_utf8(key).ok()?.to_owned());
    let pair = KeyPair::from_pem(&key).ok()?;
    (pair.subject_public_key_info() == certificate.public_key).then_some(key)
}

fn pem(certificate: &CertificateDer<'static>) -> String {
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (at, character) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem + "\n-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests;
