//! Certificates of hosts: loading, checking, and selection for a client.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys, SignatureScheme};

use crate::api::Reason;
use crate::proxy::resume::tickets::ConnectionTickets;
use crate::report::{CertificateReport, Problem};

/// Label that replaces `*` when a certificate is checked against a wildcard host name.
const ANY_LABEL: &str = "any-label";

/// A certificate chain with its matching private key.
pub(crate) struct LoadedCertificate {
    key: Arc<CertifiedKey>,
    not_before: Timestamp,
    not_after: Timestamp,
    /// For each host name of the host, whether the certificate is valid for it.
    covers: Vec<bool>,
}

/// Why a certificate is unusable. It contains no data of the files, because the key file may have been configured as
/// the certificate file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum CertificateFault {
    /// A file does not exist.
    #[error("{file} not found{}", describe_directory(.directory.as_deref()))]
    Missing {
        /// Name of the file.
        file: String,
        /// Names of the files in its directory, if that is a mounted Secret.
        directory: Option<Vec<String>>,
    },
    /// Reading a file failed.
    #[error("failed to read {0}: {1}")]
    Unreadable(String, std::io::ErrorKind),
    /// The certificate file is not PEM, or contains no valid certificates.
    #[error("the certificate file contains no valid PEM certificate")]
    BadCertificate,
    /// The key file is not PEM, or the key type is not supported.
    #[error("the key file contains no usable PEM private key")]
    BadKey,
    /// The certificate does not match the key.
    #[error("the certificate does not match the private key")]
    KeyMismatch,
    /// The certificate is not valid for any of the host's names.
    #[error("the certificate is not valid for any of the host's names")]
    NameMismatch,
    /// The certificate expired at this time.
    #[error("the certificate expired at {0}")]
    Expired(Timestamp),
    /// The certificate is not valid before this time.
    #[error("the certificate is not valid before {0}")]
    NotYetValid(Timestamp),
}

/// Maximum number of files listed in a [`CertificateFault::Missing`].
const MOST_FILES_NAMED: usize = 4;

fn describe_directory(files: Option<&[String]>) -> String {
    let Some(files) = files else {
        return String::new();
    };
    let named = files.iter().take(MOST_FILES_NAMED).cloned().collect::<Vec<_>>();
    let named = named.join(", ");
    match files.len() {
        0 => ": the Secret does not exist, or is not mounted yet".into(),
        1..=MOST_FILES_NAMED => format!(": the Secret has the keys {named} instead of tls.crt and tls.key"),
        all => format!(
            ": the Secret has the keys {named} and {} more instead of tls.crt and tls.key",
            all - MOST_FILES_NAMED
        ),
    }
}

impl CertificateFault {
    /// The reason for the condition CertificatesReady.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } => Reason::CertificateMissing,
            Self::Unreadable(..) | Self::BadCertificate | Self::BadKey => Reason::CertificateInvalid,
            Self::KeyMismatch => Reason::KeyMismatch,
            Self::NameMismatch => Reason::NameMismatch,
            Self::Expired(_) | Self::NotYetValid(_) => Reason::CertificateExpired,
        }
    }
}

impl LoadedCertificate {
    /// Parses a chain and its key from PEM, for a host with these names.
    pub(crate) fn from_pem(
        chain: &[u8],
        key: &[u8],
        hostnames: &[String],
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateFault> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| CertificateFault::BadCertificate)?;
        let leaf = chain.first().ok_or(CertificateFault::BadCertificate)?;
        // Clients refuse a chain with anything else in it.
        if chain
            .iter()
            .any(|one| x509_parser::parse_x509_certificate(one).is_err())
        {
            return Err(CertificateFault::BadCertificate);
        }
        let parsed = ParsedCertificate::try_from(leaf).map_err(|_| CertificateFault::BadCertificate)?;
        let (_, details) =
            x509_parser::parse_x509_certificate(leaf).map_err(|_| CertificateFault::BadCertificate)?;
        // 99991231235959Z means that there is no expiry (RFC 5280 section 4.1.2.5), and is past the range of timestamps.
        let time = |time: x509_parser::time::ASN1Time| {
            let seconds = time.timestamp();
            seconds.clamp(Timestamp::MIN.as_second(), Timestamp::MAX.as_second())
        };
        let time = |at| Timestamp::from_second(time(at)).map_err(|_| CertificateFault::BadCertificate);
        let (not_before, not_after) = (
            time(details.validity.not_before)?,
            time(details.validity.not_after)?,
        );
        let covers = hostnames.iter().map(|name| covers(&parsed, name)).collect();

        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateFault::BadKey)?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => CertificateFault::KeyMismatch,
            _ => CertificateFault::BadKey,
        })?;
        Ok(Self {
            key: Arc::new(key),
            not_before,
            not_after,
            covers,
        })
    }

    /// Validity period of the leaf certificate.
    pub(crate) fn validity(&self) -> Range<Timestamp> {
        self.not_before..self.not_after
    }

    /// Checks validity period and host names; None if valid.
    pub(crate) fn fault(&self, now: Timestamp) -> Option<CertificateFault> {
        if !self.covers.contains(&true) {
            Some(CertificateFault::NameMismatch)
        } else if now > self.not_after {
            Some(CertificateFault::Expired(self.not_after))
        } else if now < self.not_before {
            Some(CertificateFault::NotYetValid(self.not_before))
        } else {
            None
        }
    }

    /// Checks the pair again for a host whose names have changed.
    pub(crate) fn for_hostnames(&self, hostnames: &[String]) -> Self {
        let parsed = self.key.end_entity_cert().and_then(ParsedCertificate::try_from);
        Self {
            key: Arc::clone(&self.key),
            covers: hostnames
                .iter()
                .map(|name| parsed.as_ref().is_ok_and(|parsed| covers(parsed, name)))
                .collect(),
            ..*self
        }
    }

    fn covers(&self, hostname: usize) -> bool {
        self.covers.get(hostname).copied().unwrap_or(false)
    }
}

impl fmt::Debug for LoadedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedCertificate")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn covers(certificate: &ParsedCertificate<'_>, hostname: &str) -> bool {
    let name = match hostname.strip_prefix("*.") {
        Some(parent) => format!("{ANY_LABEL}.{parent}"),
        None => hostname.to_owned(),
    };
    ServerName::try_from(name).is_ok_and(|name| verify_server_name(certificate, &name).is_ok())
}

/// One certificate of a host: the pair in use, and the error of its files.
#[derive(Clone, Debug)]
pub(crate) struct HostCertificate {
    /// Name of the Secret.
    pub(crate) name: String,
    /// The last valid pair.
    pub(crate) in_use: Option<Arc<LoadedCertificate>>,
    /// Why the current files are not in use.
    pub(crate) file_fault: Option<CertificateFault>,
}

impl HostCertificate {
    /// Updates the pair from the current files, unless they are worse than the pair in use.
    pub(crate) fn update(&mut self, read: Result<LoadedCertificate, CertificateFault>, now: Timestamp) {
        let kept_is_good = self.in_use.as_ref().is_some_and(|kept| kept.fault(now).is_none());
        match read {
            Ok(fresh) => match fresh.fault(now) {
                Some(fault) if kept_is_good => self.file_fault = Some(fault),
                _ => {
                    self.in_use = Some(Arc::new(fresh));
                    self.file_fault = None;
                }
            },
            Err(fault) => self.file_fault = Some(fault),
        }
    }

    /// Whether rejected files that have not changed should be loaded again: they have become valid, the pair in use has
    /// become invalid, or a transient read error, such as too many open files, may be over.
    pub(crate) fn wants_another_look(&self, now: Timestamp) -> bool {
        match self.file_fault {
            Some(CertificateFault::NotYetValid(start)) => now >= start,
            // Other files may have appeared beside a missing one, which its message lists.
            Some(CertificateFault::Unreadable(..) | CertificateFault::Missing { .. }) => true,
            Some(CertificateFault::NameMismatch | CertificateFault::Expired(_)) => {
                self.in_use.as_ref().is_some_and(|kept| kept.fault(now).is_some())
            }
            _ => false,
        }
    }

    /// Why the current files are not in use, or not valid.
    pub(crate) fn fault(&self, now: Timestamp) -> Option<CertificateFault> {
        self.file_fault
            .clone()
            .or_else(|| self.in_use.as_ref().and_then(|in_use| in_use.fault(now)))
    }

    /// Reports the state of the certificate of `host`.
    pub(crate) fn report(&self, host: &str, now: Timestamp) -> CertificateReport {
        let fault = self.fault(now);
        let kept = self.file_fault.is_some() && self.in_use.is_some();
        CertificateReport {
            host: host.into(),
            certificate: self.name.clone(),
            not_after: self.in_use.as_ref().map(|in_use| in_use.not_after),
            problem: fault.map(|fault| Problem {
                reason: fault.reason(),
                message: format!(
                    "host {host:?}, certificate {:?}: {fault}{}",
                    self.name,
                    if kept { "; keeping the previous one" } else { "" },
                ),
            }),
        }
    }
}

/// The certificates of all hosts, by the host's name.
#[derive(Clone, Debug, Default)]
pub struct CertificatesByHost(HashMap<String, Arc<HostCertificates>>);

impl CertificatesByHost {
    /// Returns the certificates of one host; empty if it is unknown.
    pub(crate) fn of(&self, host: &str) -> Arc<HostCertificates> {
        self.0.get(host).cloned().unwrap_or_default()
    }
}

impl FromIterator<(String, HostCertificates)> for CertificatesByHost {
    fn from_iter<I: IntoIterator<Item = (String, HostCertificates)>>(hosts: I) -> Self {
        let hosts = hosts.into_iter();
        Self(
            hosts
                .map(|(host, certificates)| (host, Arc::new(certificates)))
                .collect(),
        )
    }
}

/// All certificates of one host, in order of preference.
#[derive(Clone, Debug, Default)]
pub struct HostCertificates(pub(crate) Vec<HostCertificate>);

impl HostCertificates {
    /// Whether any certificate is in use.
    pub(crate) fn any_usable(&self) -> bool {
        self.0.iter().any(|certificate| certificate.in_use.is_some())
    }

    /// One report per certificate, and one for the host if certificates are in use but none of them is valid for one of
    /// its names.
    pub(crate) fn reports(&self, host: &str, hostnames: &[String], now: Timestamp) -> Vec<CertificateReport> {
        let mut reports: Vec<_> = self.0.iter().map(|c| c.report(host, now)).collect();
        let in_use: Vec<_> = self.0.iter().filter_map(|c| c.in_use.as_ref()).collect();
        let uncovered: Vec<_> = hostnames
            .iter()
            .enumerate()
            .filter(|(n, _)| !in_use.iter().any(|certificate| certificate.covers(*n)))
            .map(|(_, name)| format!("{name:?}"))
            .collect();
        if !in_use.is_empty() && !uncovered.is_empty() {
            let names: Vec<_> = self.0.iter().map(|c| c.name.as_str()).collect();
            let names = names.join(", ");
            reports.push(CertificateReport {
                host: host.into(),
                certificate: names.clone(),
                not_after: None,
                problem: Some(Problem {
                    reason: Reason::NameMismatch,
                    message: format!(
                        "host {host:?}, certificate {names:?}: no certificate is valid for {}",
                        uncovered.join(", ")
                    ),
                }),
            });
        }
        reports
    }

    /// Chooses a certificate whose key supports one of the client's signature schemes: preferably one that is valid for
    /// the host name, then one that has not expired, then the first. With an invalid certificate the client can report
    /// the cause.
    ///
    /// rustls removes the client's signature schemes that match no common cipher suite. If none is left, any
    /// certificate is returned: rustls then sends the alert for no common cipher suite.
    fn choose(
        &self,
        hostname: usize,
        schemes: &[SignatureScheme],
        now: Timestamp,
    ) -> Option<&Arc<LoadedCertificate>> {
        self.0
            .iter()
            .filter_map(|certificate| certificate.in_use.as_ref())
            .filter(|certificate| schemes.is_empty() || certificate.key.key.choose_scheme(schemes).is_some())
            .min_by_key(|certificate| (!certificate.covers(hostname), certificate.fault(now).is_some()))
    }
}

/// Certificate resolver of one connection.
#[derive(Debug)]
pub(crate) struct CertificateChoice {
    /// The host's certificates.
    pub(crate) certificates: Arc<HostCertificates>,
    /// Index of the host name that the client requested.
    pub(crate) hostname: usize,
    /// Tickets of the connection, which must not outlive the chosen certificate.
    pub(crate) tickets: Arc<ConnectionTickets>,
}

impl ResolvesServerCert for CertificateChoice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = self
            .certificates
            .choose(self.hostname, hello.signature_schemes(), Timestamp::now())?;
        self.tickets.set_certificate_until(chosen.not_after);
        Some(Arc::clone(&chosen.key))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    struct Pair {
        chain: String,
        key: String,
    }

    fn pair(names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm) -> Pair {
        let key = KeyPair::generate_for(algorithm).expect("generated");
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        let mut params = CertificateParams::new(names).expect("valid names");
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        Pair {
            chain: params.self_signed(&key).expect("signed").pem(),
            key: key.serialize_pem(),
        }
    }

    fn load(chain: &str, key: &str) -> Result<LoadedCertificate, CertificateFault> {
        let hostnames = ["shop.example.com".into(), "*.shop.example.com".into()];
        LoadedCertificate::from_pem(chain.as_bytes(), key.as_bytes(), &hostnames, &default_provider())
    }

    fn at(date: &str) -> Timestamp {
        format!("{date}T00:00:00Z").parse().expect("a date")
    }

    fn shop() -> Pair {
        pair(
            &["shop.example.com", "*.shop.example.com"],
            &PKCS_ECDSA_P256_SHA256,
        )
    }

    fn fresh() -> HostCertificate {
        HostCertificate {
            name: "shop-tls".into(),
            in_use: None,
            file_fault: None,
        }
    }

    fn reason(certificate: &HostCertificate, now: Timestamp) -> Option<Reason> {
        let problem = certificate.report("shop", now).problem?;
        assert!(
            problem.message.contains("\"shop\"") && problem.message.contains("shop-tls"),
            "{problem:?}"
        );
        Some(problem.reason)
    }

    #[test]
    fn a_chain_with_a_block_that_is_no_certificate_is_invalid() {
        let good = shop();
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let loaded = load(&(good.chain.clone() + junk), &good.key);
        assert_eq!(loaded.err(), Some(CertificateFault::BadCertificate));
    }

    #[test]
    fn a_certificate_without_an_expiry_is_valid() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("generated");
        let mut params = CertificateParams::new(vec!["shop.example.com".into()]).expect("valid names");
        // RFC 5280 section 4.1.2.5: 99991231235959Z.
        let day = std::time::Duration::from_secs(86_399);
        params.not_after = rcgen::date_time_ymd(9999, 12, 31) + day;
        let chain = params.self_signed(&key).expect("signed").pem();
        let loaded = load(&chain, &key.serialize_pem()).expect("valid");
        assert_eq!(loaded.fault(at("2026-06-01")), None);
    }

    #[test]
    fn every_fault_has_its_reason_and_recovers() {
        let good = shop();
        let now = at("2026-06-01");
        let wrong_name = pair(&["other.example.com"], &PKCS_ECDSA_P256_SHA256);
        for (read, expected) in [
            (
                Err(CertificateFault::Missing {
                    file: "tls.crt".into(),
                    directory: None,
                }),
                Reason::CertificateMissing,
            ),
            (load("nonsense", &good.key), Reason::CertificateInvalid),
            (load(&good.chain, "nonsense"), Reason::CertificateInvalid),
            (load(&good.key, &good.key), Reason::CertificateInvalid),
            (load(&good.chain, &shop().key), Reason::KeyMismatch),
            (load(&wrong_name.chain, &wrong_name.key), Reason::NameMismatch),
        ] {
            let mut certificate = fresh();
            certificate.update(read, now);
            assert_eq!(reason(&certificate, now), Some(expected));
            certificate.update(load(&good.chain, &good.key), now);
            assert_eq!(reason(&certificate, now), None);
        }
        let mut certificate = fresh();
        certificate.update(load(&good.chain, &good.key), now);
        for date in ["2025-12-31", "2027-01-02"] {
            assert_eq!(reason(&certificate, at(date)), Some(Reason::CertificateExpired));
            assert!(certificate.in_use.is_some(), "it is served all the same");
        }
    }

    #[test]
    fn a_good_certificate_is_not_given_up_for_a_bad_one_but_an_expired_one_is() {
        let (good, wrong) = (shop(), pair(&["other.example.com"], &PKCS_ECDSA_P256_SHA256));
        let mut certificate = fresh();
        certificate.update(load(&good.chain, &good.key), at("2026-06-01"));
        let kept = certificate.in_use.clone().expect("in use");
        certificate.update(load(&wrong.chain, &wrong.key), at("2026-06-01"));
        assert!(Arc::ptr_eq(&kept, certificate.in_use.as_ref().expect("in use")));
        assert_eq!(reason(&certificate, at("2026-06-01")), Some(Reason::NameMismatch));
        certificate.update(load(&good.chain, &good.key), at("2027-06-01"));
        certificate.update(load(&good.chain, &good.key), at("2027-06-02"));
        assert!(!Arc::ptr_eq(&kept, certificate.in_use.as_ref().expect("in use")));
    }

    #[test]
    fn a_name_that_no_certificate_covers_is_reported_once_for_the_host() {
        let exact = pair(&["shop.example.com"], &PKCS_ECDSA_P256_SHA256);
        let mut certificate = fresh();
        certificate.update(load(&exact.chain, &exact.key), at("2026-06-01"));
        let hostnames = ["shop.example.com".to_string(), "*.shop.example.com".to_string()];
        let reports = HostCertificates(vec![certificate]).reports("shop", &hostnames, at("2026-06-01"));
        assert_eq!(reports.len(), 2);
        assert_eq!(reports[0].problem, None);
        let problem = reports[1].problem.as_ref().expect("a problem");
        assert_eq!(problem.reason, Reason::NameMismatch);
        assert!(problem.message.contains("\"*.shop.example.com\""), "{problem:?}");
    }

    #[test]
    fn the_choice_follows_signature_scheme_name_and_validity() {
        let certificate = |pair: &Pair| {
            let mut certificate = fresh();
            certificate.update(load(&pair.chain, &pair.key), at("2026-06-01"));
            certificate
        };
        let ed25519 = pair(&["shop.example.com"], &PKCS_ED25519);
        let wildcard = pair(&["*.shop.example.com"], &PKCS_ECDSA_P256_SHA256);
        let all = HostCertificates(vec![certificate(&ed25519), certificate(&wildcard)]);
        let (ed, ec) = (SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256);
        let position = |hostname, schemes: &[_]| {
            let chosen = all.choose(hostname, schemes, at("2026-06-01"))?;
            let same = |c: &HostCertificate| Arc::ptr_eq(chosen, c.in_use.as_ref().expect("in use"));
            all.0.iter().position(same)
        };
        assert_eq!(position(0, &[ed, ec]), Some(0));
        assert_eq!(position(1, &[ed, ec]), Some(1));
        assert_eq!(position(1, &[ed]), Some(0));
        assert_eq!(position(0, &[SignatureScheme::RSA_PSS_SHA256]), None);
        assert_eq!((position(0, &[]), position(1, &[])), (Some(0), Some(1)));
        let later = at("2026-06-01") + SignedDuration::from_hours(24 * 300);
        assert!(
            all.choose(0, &[ed], later).is_some(),
            "better expired than nothing"
        );
    }
}
