//! Metrics of the peer group.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::resp::client::ClientMetrics;

/// The metrics of one process; clones share their values.
#[derive(Clone, Default)]
pub struct PeerMetrics {
    clients: ClientMetrics,
    members: Gauge,
    changes: Counter,
    accepted: Counter,
    refused: Family<ReasonLabel, Counter>,
    certificates_loaded: Counter,
    certificates_failed: Counter,
}

/// Why a peer connection was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PeerRefusal {
    /// This cache has no usable certificate yet.
    NotReady,
    /// Too many handshakes were in progress.
    TooMany,
    /// The handshake timed out.
    Timeout,
    /// The peer closed the connection.
    Closed,
    /// The peer sent no certificate.
    NoCertificate,
    /// The peer's certificate is not signed by the CA, has the wrong name, or has expired.
    WrongCertificate,
    /// The peer sent a TLS alert, for example because it rejects this cache's certificate.
    Alert,
    /// The peer does not speak TLS 1.3.
    Incompatible,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabel {
    reason: &'static str,
}

impl PeerMetrics {
    /// Creates and registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("peer");
        let m = Self {
            clients: ClientMetrics::register(registry),
            ..Self::default()
        };
        registry.register(
            "members",
            "Caches in the peer group, including this one",
            m.members.clone(),
        );
        registry.register(
            "member_changes",
            "Membership changes of the peer group",
            m.changes.clone(),
        );
        registry.register(
            "connections_accepted",
            "Peer connections accepted with a valid certificate",
            m.accepted.clone(),
        );
        registry.register(
            "connections_refused",
            "Peer connections refused, by reason",
            m.refused.clone(),
        );
        registry.register(
            "certificate_reloads",
            "Successful loads of the peer certificate",
            m.certificates_loaded.clone(),
        );
        registry.register(
            "certificate_reload_failures",
            "Failed loads of the peer certificate or its CA certificate",
            m.certificates_failed.clone(),
        );
        m
    }

    pub(crate) fn clients(&self) -> ClientMetrics {
        self.clients.clone()
    }

    pub(crate) fn members_are(&self, count: usize) {
        self.members.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.changes.inc();
    }

    pub(crate) fn accepted(&self) {
        self.accepted.inc();
    }

    pub(crate) fn refused(&self, refusal: PeerRefusal) {
        let reason = match refusal {
            PeerRefusal::NotReady => "not_ready",
            PeerRefusal::TooMany => "too_many",
            PeerRefusal::Timeout => "timeout",
            PeerRefusal::Closed => "closed",
            PeerRefusal::NoCertificate => "no_certificate",
            PeerRefusal::WrongCertificate => "wrong_certificate",
            PeerRefusal::Alert => "alert",
            PeerRefusal::Incompatible => "incompatible",
        };
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn certificate_loaded(&self) {
        self.certificates_loaded.inc();
    }

    pub(crate) fn certificate_failed(&self) {
        self.certificates_failed.inc();
    }
}
