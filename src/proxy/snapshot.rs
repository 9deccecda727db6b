//! Everything that a handshake needs to know, immutable: it is built whole from the configuration and the certificates,
//! and then swapped in.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::certificates::{CertificateChoice, HostCertificates};
use super::hosts::HostTable;
use super::metrics::Metrics;
use super::tickets::{ConnectionTickets, SharedKeys, TicketVersion};
use crate::api::MinVersion;
use crate::config::{self, ProxyConfig};
use crate::report::CertificateReport;
use crate::ring::{Scope, TicketPolicy};

/// Protocols that the HTTP side speaks, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What the proxy serves at one moment.
pub(crate) struct Snapshot {
    /// The configuration that it is made from.
    pub(crate) config: ProxyConfig,
    /// Fingerprint of that configuration's file.
    pub(crate) fingerprint: String,
    hosts: Vec<Arc<Host>>,
    by_name: HostTable<(Arc<Host>, usize)>,
}

/// One host with its TLS policy.
pub(crate) struct Host {
    /// Name within the farm.
    pub(crate) name: String,
    /// The names that it serves.
    pub(crate) hostnames: Vec<String>,
    /// Its certificates.
    pub(crate) certificates: Arc<HostCertificates>,
    scope: Scope,
    tls12_tickets: Option<TicketPolicy>,
    tls13_tickets: TicketPolicy,
    /// Everything but certificate and tickets, which each connection adds.
    base: ServerConfig,
}

impl Snapshot {
    /// Builds a snapshot. `certificates` holds those of each host, in the order of the configuration.
    pub(crate) fn new(
        config: ProxyConfig,
        fingerprint: String,
        certificates: Vec<Arc<HostCertificates>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let hosts = config
            .hosts
            .iter()
            .zip(certificates)
            .map(|(host, certificates)| Host::new(&config, host, certificates, provider).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let by_name = hosts
            .iter()
            .flat_map(|host| {
                let names = host.hostnames.iter().cloned().enumerate();
                names.map(|(n, name)| (name, (Arc::clone(host), n)))
            })
            .collect();
        Ok(Self {
            config,
            fingerprint,
            hosts,
            by_name,
        })
    }

    /// The host that a server name belongs to, and which of the host's names it is.
    pub(crate) fn find(&self, server_name: &str) -> Option<&(Arc<Host>, usize)> {
        self.by_name.find(server_name)
    }

    /// Whether at least one host can be served.
    pub(crate) fn any_servable(&self) -> bool {
        self.hosts.iter().any(|host| host.certificates.any_usable())
    }

    /// What is in use and what is wrong with it, for every certificate of every host.
    pub(crate) fn certificate_reports(&self, now: Timestamp) -> Vec<CertificateReport> {
        self.hosts
            .iter()
            .flat_map(|host| host.certificates.reports(&host.name, &host.hostnames, now))
            .collect()
    }

    /// Host, name and expiry of every certificate in use.
    pub(crate) fn certificates_in_use(&self) -> impl Iterator<Item = (&str, &str, Timestamp)> {
        self.hosts.iter().flat_map(|host| {
            host.certificates.0.iter().filter_map(|certificate| {
                let until = certificate.in_use.as_ref()?.not_after();
                Some((host.name.as_str(), certificate.name.as_str(), until))
            })
        })
    }
}

impl Host {
    fn new(
        config: &ProxyConfig,
        host: &config::Host,
        certificates: Arc<HostCertificates>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let versions: &[&SupportedProtocolVersion] = match host.min_version {
            MinVersion::TLS12 => &[&TLS13, &TLS12],
            MinVersion::TLS13 => &[&TLS13],
        };
        let mut base = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoCertificate));
        base.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        base.session_storage = Arc::new(NoServerSessionStorage {});
        // Two, because browsers open several connections at once (RFC 9846 appendix C.4). None go to clients without
        // psk_key_exchange_modes; rustls sees to that.
        base.send_tls13_tickets = 2;

        let tls13_tickets = TicketPolicy {
            lifetime: config.tickets.lifetime.as_signed(),
            max_age: config.tickets.max_age.as_signed(),
        };
        // A TLS 1.2 ticket carries the keys of its session, and so do all tickets of a chain of resumptions: the bound
        // must hold for the chain.
        let tls12_tickets = config.tickets.tls12_lifetime.map(|longest| TicketPolicy {
            lifetime: tls13_tickets.lifetime.min(longest.as_signed()),
            max_age: tls13_tickets.max_age.min(longest.as_signed()),
        });
        Ok(Self {
            name: host.name.clone(),
            hostnames: host.hostnames.clone(),
            certificates,
            scope: Scope::new(&config.farm, &host.name, host.min_version),
            tls12_tickets,
            tls13_tickets,
            base,
        })
    }

    /// The TLS configuration of one connection, and its tickets.
    pub(crate) fn connect(
        &self,
        hostname: usize,
        hello: &super::hello::Hello,
        keys: Arc<SharedKeys>,
        metrics: Metrics,
    ) -> (ServerConfig, Arc<ConnectionTickets>) {
        let (version, policy) = if hello.offers_tls13 {
            (TicketVersion::Tls13, Some(self.tls13_tickets))
        } else {
            // Without the extended master secret a session can be moved between connections (RFC 7627 section 1).
            let allowed = hello.extended_master_secret;
            (TicketVersion::Tls12, self.tls12_tickets.filter(|_| allowed))
        };
        let tickets = Arc::new(ConnectionTickets::new(keys, self.scope, policy, version, metrics));
        let mut config = self.base.clone();
        config.ticketer = Arc::clone(&tickets) as _;
        config.cert_resolver = Arc::new(CertificateChoice {
            certificates: Arc::clone(&self.certificates),
            hostname,
            tickets: Arc::clone(&tickets),
        });
        (config, tickets)
    }
}

/// Stands in [`Host::base`] for the choice that each connection brings.
#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
}
