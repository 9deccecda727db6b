//! Immutable state that connections and requests use. It is built from the configuration and the certificates, and
//! swapped as a whole.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;

use super::host_names::HostTable;
use crate::config::ProxyConfig;
use crate::proxy::host::Host;
use crate::proxy::tls::certificates::CertificatesByHost;
use crate::report::CertificateReport;

/// The hosts, certificates, routes and limits in use at one point in time.
pub struct Snapshot {
    /// The configuration that it was built from.
    pub(crate) config: ProxyConfig,
    /// Fingerprint of that configuration's file.
    pub(crate) fingerprint: String,
    hosts: Vec<Arc<Host>>,
    by_name: HostTable<ServedName>,
}

/// A host name and its host.
pub(crate) struct ServedName {
    pub(crate) host: Arc<Host>,
    /// Index of the name in the host's list.
    pub(crate) index: usize,
}

impl Snapshot {
    /// Builds a snapshot. A host without entries in `certificates` rejects handshakes.
    ///
    /// # Errors
    ///
    /// Fails if rustls rejects the configuration.
    pub fn new(
        config: ProxyConfig,
        fingerprint: String,
        certificates: &CertificatesByHost,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let hosts = config
            .hosts
            .iter()
            .map(|host| Host::new(&config, host, certificates.of(&host.name), provider).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let by_name = hosts
            .iter()
            .flat_map(|host| {
                let names = host.hostnames.iter().cloned().enumerate();
                names.map(|(index, name)| {
                    let host = Arc::clone(host);
                    (name, ServedName { host, index })
                })
            })
            .collect();
        Ok(Self {
            config,
            fingerprint,
            hosts,
            by_name,
        })
    }

    /// Finds the host for a server name, and which of its host names matches.
    pub(crate) fn find(&self, server_name: &str) -> Option<&ServedName> {
        self.by_name.find(server_name)
    }

    /// Finds the host for a lower-case host name.
    pub fn host(&self, hostname: &str) -> Option<&Arc<Host>> {
        self.find(hostname).map(|served| &served.host)
    }

    /// Whether the forwarding headers of this peer are trusted.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        let networks = &self.config.trusted_proxies;
        networks.iter().any(|network| network.contains(&peer))
    }

    /// Whether at least one host has a usable certificate.
    pub(crate) fn any_servable(&self) -> bool {
        self.hosts.iter().any(|host| host.certificates.any_usable())
    }

    /// Reports on all certificates of all hosts.
    pub(crate) fn certificate_reports(&self, now: Timestamp) -> Vec<CertificateReport> {
        self.hosts
            .iter()
            .flat_map(|host| host.certificates.reports(&host.name, &host.hostnames, now))
            .collect()
    }

    /// Host, name and validity period of every certificate in use.
    pub(crate) fn certificates_in_use(&self) -> impl Iterator<Item = (&str, &str, Range<Timestamp>)> {
        self.hosts.iter().flat_map(|host| {
            host.certificates.0.iter().filter_map(|certificate| {
                let validity = certificate.in_use.as_ref()?.validity();
                Some((host.name.as_str(), certificate.name.as_str(), validity))
            })
        })
    }
}

#[cfg(test)]
pub(crate) mod fixtures;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_networks_are_trusted() {
        let mut config = fixtures::config();
        config.trusted_proxies = vec!["10.0.0.0/8".parse().expect("valid")];
        let snapshot = fixtures::snapshot(config);
        assert!(snapshot.trusts("10.1.2.3".parse().expect("valid")));
        assert!(!snapshot.trusts("11.1.2.3".parse().expect("valid")));
    }

    #[test]
    fn certificates_are_assigned_by_host_name_and_not_by_position() {
        let mut config = fixtures::config();
        config.hosts.reverse();
        let snapshot = fixtures::snapshot(config);
        let served = |hostname| {
            let host = snapshot.host(hostname).expect("configured");
            host.certificates.any_usable()
        };
        assert!(served("shop.test") && served("once.test") && !served("bare.test"));
    }
}
