//! Metrics of the peer group.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::resp::client::ClientMetrics;
use crate::runtime::metrics::{NewMetric, ReasonLabel};

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

impl PeerMetrics {
    /// Creates and registers the metrics.
    #[rustfmt::skip] // Each metric on one line.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("peer");
        Self {
            clients: ClientMetrics::register(registry),
            members: registry.create("members", "Caches that share the entries, including this one"),
            changes: registry.create("member_changes", "Changes of the number of members"),
            accepted: registry.create("connections_accepted", "Peer connections accepted with a valid certificate"),
            refused: registry.create("connections_refused", "Peer connections refused, by reason"),
            certificates_loaded: registry.create("certificate_reloads", "Loads of the certificate for peers"),
            certificates_failed: registry.create("certificate_reload_failures", "Failed loads of the peer certificate or its CA"),
        }
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
