//! What a cache counts about its peers.

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

/// Why somebody who connected as a peer was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PeerRefusal {
    /// This cache has no usable certificate yet.
    NotReady,
    /// Too many others were shaking hands.
    TooMany,
    /// It took too long.
    Timeout,
    /// It went away.
    Closed,
    /// It showed no certificate.
    NoCertificate,
    /// It showed one that the authority did not sign, or of another name, or an expired one.
    WrongCertificate,
    /// It sent an alert, as it does when it distrusts our certificate.
    Alert,
    /// It spoke something other than TLS 1.3.
    Incompatible,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabel {
    reason: &'static str,
}

impl PeerMetrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("peer");
        let m = Self {
            clients: ClientMetrics::register(registry),
            ..Self::default()
        };
        registry.register(
            "members",
            "Caches that share the entries, this one among them",
            m.members.clone(),
        );
        registry.register(
            "member_changes",
            "How often the caches that share the entries changed",
            m.changes.clone(),
        );
        registry.register(
            "connections_accepted",
            "Connections of peers that showed a good certificate",
            m.accepted.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections to the port for peers that were refused, by reason",
            m.refused.clone(),
        );
        registry.register(
            "certificate_reloads",
            "How often the certificate for peers was put to use",
            m.certificates_loaded.clone(),
        );
        registry.register(
            "certificate_reload_failures",
            "How often the certificate for peers or its authority was missing or unusable",
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
