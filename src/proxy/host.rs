//! One host of a farm: its immutable settings for TLS and HTTP.
//!
//! A connection keeps the host that its handshake selected, and its TLS policy. Requests use the current snapshot; if
//! its host has changed, [`Host::accepts`] checks whether the connection may still be used.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};
use rustls::{ProtocolVersion, ServerConfig, SupportedProtocolVersion};

use super::http::route::Routes;
use super::metrics::ProxyMetrics;
use super::resume::session_cache::{Cached, Lookup};
use super::resume::tickets::{ConnectionTickets, ResumptionRules, SharedKeys, TicketVersion};
use super::tls::certificates::{CertificateChoice, HostCertificates};
use super::tls::client_hello::{ClientHello, TicketOffer};
use crate::api::{Duration, MinVersion, TicketKind};
use crate::config::{self, ProxyConfig};
use crate::ring::{CacheKind, Scope, TicketPolicy};

/// ALPN protocols in order of preference.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// One host.
pub struct Host {
    /// Name within the farm.
    pub(crate) name: String,
    /// Host names.
    pub(crate) hostnames: Vec<String>,
    /// Its certificates.
    pub(crate) certificates: Arc<HostCertificates>,
    /// Routes to backends.
    pub(crate) routes: Routes,
    min_version: MinVersion,
    scope: Scope,
    tls12_tickets: Option<TicketPolicy>,
    tls13_tickets: TicketPolicy,
    ticket_kind: TicketKind,
    session_ids: Option<TicketPolicy>,
    /// TLS configuration without certificate resolver and tickets, which are set per connection.
    base: ServerConfig,
}

/// TLS state of one connection.
pub(crate) struct ConnectionTls {
    pub(crate) config: ServerConfig,
    pub(crate) tickets: Arc<ConnectionTickets>,
}

impl Host {
    /// Builds a host from its configuration and certificates.
    pub(crate) fn new(
        config: &ProxyConfig,
        host: &config::HostConfig,
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
        // In TLS 1.2 all resumptions share the keys of the session, so the bound must hold for the whole chain.
        let bounded = |longest: Duration| TicketPolicy {
            lifetime: tls13_tickets.lifetime.min(longest.as_signed()),
            max_age: tls13_tickets.max_age.min(longest.as_signed()),
        };
        let single_use = host.ticket_kind == TicketKind::SingleUse;
        // TLS 1.2 tickets cannot be single-use, so single-use hosts issue none.
        let tls12_tickets = config.tickets.tls12_lifetime.filter(|_| !single_use).map(bounded);
        let scope = Scope::new(&config.farm, &host.name, host.min_version);
        Ok(Self {
            name: host.name.clone(),
            hostnames: host.hostnames.clone(),
            certificates,
            routes: Routes::new(&host.routes, &config.timeouts),
            min_version: host.min_version,
            scope: if single_use { scope.single_use() } else { scope },
            tls12_tickets,
            tls13_tickets,
            ticket_kind: host.ticket_kind,
            session_ids: config
                .session_cache
                .as_ref()
                // TLS 1.3 has no session ids to resume by.
                .filter(|_| host.min_version == MinVersion::TLS12)
                .map(|cache| bounded(cache.session_id_lifetime)),
            base,
        })
    }

    /// Whether connections with this TLS version may send requests.
    pub(crate) fn accepts(&self, version: ProtocolVersion) -> bool {
        self.min_version == MinVersion::TLS12 || version == ProtocolVersion::TLSv1_3
    }

    /// The session cache lookup to make before the handshake; None if no lookup is needed.
    pub(crate) fn lookup(&self, hello: &ClientHello) -> Option<Lookup> {
        let scope = self.scope;
        if hello.offers_tls13 {
            let kind = CacheKind::SingleUse;
            let name = hello
                .single_use
                .filter(|_| self.ticket_kind == TicketKind::SingleUse)?;
            return Some(Lookup { kind, name, scope });
        }
        // A client that offers a ticket resumes with it or not at all (RFC 5077 section 3.4).
        let by_id = hello.ticket != Some(TicketOffer::Ticket) && self.session_ids(hello).is_some();
        let kind = CacheKind::SessionId;
        let name = hello.session_id.filter(|_| by_id)?;
        Some(Lookup { kind, name, scope })
    }

    /// Lifetimes of session ids for this client, if allowed.
    fn session_ids(&self, hello: &ClientHello) -> Option<TicketPolicy> {
        self.session_ids
            .filter(|_| !hello.offers_tls13 && hello.extended_master_secret)
    }

    /// Resumption policy of the connection.
    fn rules(&self, hello: &ClientHello) -> ResumptionRules {
        let (version, tickets) = if hello.offers_tls13 {
            (TicketVersion::Tls13, Some(self.tls13_tickets))
        } else {
            // Without the extended master secret a session can be moved between connections (RFC 7627 section 1).
            let allowed = hello.extended_master_secret;
            (TicketVersion::Tls12, self.tls12_tickets.filter(|_| allowed))
        };
        // Clients that get a ticket get no session id, so that they do not fill the cache.
        let gets_ticket = tickets.is_some() && hello.ticket.is_some();
        ResumptionRules {
            scope: self.scope,
            version,
            tickets,
            kind: self.ticket_kind,
            session_ids: self.session_ids(hello),
            gets_session_id: !gets_ticket,
        }
    }

    /// Creates the TLS configuration and the tickets of one connection. `cached` is the result of the session cache
    /// lookup.
    pub(crate) fn connect(
        &self,
        hostname: usize,
        hello: &ClientHello,
        cached: Cached,
        keys: Arc<SharedKeys>,
        metrics: ProxyMetrics,
    ) -> ConnectionTls {
        let rules = self.rules(hello);
        let tickets = Arc::new(ConnectionTickets::new(keys, rules, cached, metrics));
        // Three seams of rustls, one object behind them: the ticketer, the session storage and the certificate resolver. The
        // resolver tells the tickets when the chosen certificate expires, without which they seal nothing; ticketer and
        // storage must agree on which of them a client gets. With two objects, or one of them shared between connections,
        // a session could outlive its certificate or be resumed under another host's policy.
        let mut config = self.base.clone();
        config.ticketer = Arc::clone(&tickets) as _;
        config.session_storage = Arc::clone(&tickets) as _;
        config.cert_resolver = Arc::new(CertificateChoice {
            certificates: Arc::clone(&self.certificates),
            hostname,
            tickets: Arc::clone(&tickets),
        });
        ConnectionTls { config, tickets }
    }
}

/// Placeholder in [`Host::base`] for the certificate resolver of each connection.
#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests;
