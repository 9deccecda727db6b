//! Metrics of a proxy. Label values are constants or names from the configuration, never client input, so that the
//! number of series is bounded.

pub(crate) mod http;

use std::ops::Range;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls::{HandshakeKind, ProtocolVersion};

use crate::api::{Duration, KeyRole};
use crate::ring::{OpenError, Ring, SealError};
use crate::runtime::metrics::{NewMetric, ReasonLabel};

/// The metrics of one process; clones share their values.
#[derive(Clone, Default)]
pub(crate) struct ProxyMetrics {
    handshakes: Family<HandshakeLabels, Counter>,
    handshake_failures: Family<ReasonLabel, Counter>,
    tickets_offered: Family<OutcomeLabel, Counter>,
    tickets_issued: Family<OutcomeLabel, Counter>,
    session_ids_offered: Family<OutcomeLabel, Counter>,
    connections: Family<PortLabel, Gauge>,
    accepted: Family<PortLabel, Counter>,
    refused: Family<PortLabel, Counter>,
    accept_errors: Counter,
    ring_generation: Gauge,
    ring_changed: Gauge,
    ring_rotated: Gauge,
    rotation_interval: Gauge,
    ring_can_seal: Gauge,
    tickets_disabled: Gauge,
    reloads: Family<FileLabel, Counter>,
    reload_failures: Family<FileLabel, Counter>,
    file_faults: Family<FileLabel, Gauge>,
    certificate_not_before: Family<CertificateLabels, Gauge>,
    certificate_not_after: Family<CertificateLabels, Gauge>,
    ready: Gauge,
}

/// Which listener a connection came in on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Port {
    /// TLS.
    Https,
    /// Plain HTTP.
    Http,
}

/// A kind of file that is reloaded when it changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FileKind {
    /// The compiled configuration.
    Config,
    /// The ring document.
    Ring,
    /// A certificate chain with its key.
    Certificate,
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HandshakeFailure {
    /// The ClientHello has no server name.
    NoServerName,
    /// No host has this server name.
    UnknownServerName,
    /// The host has no usable certificate that the client can verify.
    NoCertificate,
    /// The input is not a valid ClientHello.
    UnreadableClientHello,
    /// The handshake timed out.
    Timeout,
    /// The client closed the connection.
    ClientClosed,
    /// The client sent a fatal alert, for example because it rejects the certificate.
    ClientAlert,
    /// No TLS version, cipher suite or ALPN protocol in common.
    Incompatible,
    /// The client violated the protocol.
    ClientMisbehaved,
    /// An internal error.
    Internal,
}

/// Outcome of an offered ticket or session id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TicketOutcome {
    /// The session was resumed; the role of the key shows the ticket's age.
    Resumed(KeyRole),
    /// The ticket failed to decrypt.
    Refused(OpenError),
    /// The ticket was decrypted, but rustls did not resume: a different server name or cipher suite.
    Declined,
    /// Tickets are not allowed on the connection: TLS 1.2 tickets are disabled or the client has no extended master
    /// secret, or it offered too many tickets.
    NotAllowed,
    /// No ring is loaded.
    NoRing,
    /// The session is not in the cache, or the lookup failed.
    NotFound,
}

/// Outcome of issuing a ticket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TicketIssue {
    /// The ticket was issued.
    Sealed,
    /// Encrypting the ticket failed.
    Refused(SealError),
    /// No ring is loaded.
    NoRing,
    /// A single-use ticket was not issued, because the cache is unavailable.
    NoCache,
    /// A single-use ticket was not issued, because the client exceeded its session budget.
    OverBudget,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct HandshakeLabels {
    version: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PortLabel {
    port: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FileLabel {
    file: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CertificateLabels {
    host: String,
    certificate: String,
}

impl ProxyMetrics {
    /// Creates and registers the metrics.
    #[rustfmt::skip] // Each metric on one line.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let m = Self {
            handshakes: registry.create("handshakes", "Successful TLS handshakes, by version and kind"),
            handshake_failures: registry.create("handshake_failures", "Failed TLS handshakes, by reason"),
            tickets_offered: registry.create("tickets_offered", "Session tickets that clients offered, by outcome"),
            tickets_issued: registry.create("tickets_issued", "Attempts to issue a session ticket, by outcome"),
            session_ids_offered: registry.create("session_ids_offered", "Session ids known to the cache, by outcome"),
            connections: registry.create("connections", "Open client connections, by port"),
            accepted: registry.create("connections_accepted", "Client connections accepted, by port"),
            refused: registry.create("connections_refused", "Client connections refused at the limit, by port"),
            accept_errors: registry.create("accept_errors", "Errors while accepting connections"),
            ring_generation: registry.create("ring_generation", "Generation of the loaded ring, 0 if none is loaded"),
            ring_changed: registry.create("ring_changed_timestamp_seconds", "Unix time when the ring was written"),
            ring_rotated: registry.create("ring_rotated_timestamp_seconds", "Unix time of the last rotation"),
            rotation_interval: registry.create("ring_rotation_interval_seconds", "Interval of rotations, 0 if unknown"),
            ring_can_seal: registry.create("ring_can_seal", "Whether the primary key may encrypt tickets"),
            tickets_disabled: registry.create("tickets_disabled", "1 if no key may encrypt tickets, else 0"),
            reloads: registry.create("reloads", "Changed files loaded, by kind of file"),
            reload_failures: registry.create("reload_failures", "Changed files rejected, by kind of file"),
            file_faults: registry.create("file_faults", "Files missing or unusable at present, by kind of file"),
            certificate_not_before: registry.create("certificate_not_before_timestamp_seconds", "Unix time of not before"),
            certificate_not_after: registry.create("certificate_not_after_timestamp_seconds", "Unix time of not after"),
            ready: registry.create("ready", "Whether the proxy accepts new clients"),
        };
        m.start_at_zero();
        m
    }

    /// Counts a successful handshake.
    pub(crate) fn handshake(&self, version: Option<ProtocolVersion>, kind: Option<HandshakeKind>) {
        self.handshakes
            .get_or_create(&handshake_labels(version, kind))
            .inc();
    }

    /// Counts a failed handshake.
    pub(crate) fn handshake_failed(&self, reason: HandshakeFailure) {
        let label = ReasonLabel {
            reason: reason.label(),
        };
        self.handshake_failures.get_or_create(&label).inc();
    }

    /// Number of failed handshakes since the start, by reason; reasons without failures are left out.
    pub(crate) fn handshake_failures(&self) -> Vec<(&'static str, u64)> {
        let failed = HandshakeFailure::ALL.iter().filter_map(|failure| {
            let reason = failure.label();
            let counter = self.handshake_failures.get(&ReasonLabel { reason })?;
            Some((reason, counter.get()))
        });
        failed.collect()
    }

    /// Number of client connections refused since the start.
    pub(crate) fn connections_refused(&self) -> u64 {
        let counters = [Port::Https, Port::Http].map(|port| PortLabel { port: port.label() });
        let counts = counters
            .iter()
            .filter_map(|label| Some(self.refused.get(label)?.get()));
        counts.sum()
    }

    /// Counts an offered ticket by its outcome.
    pub(crate) fn ticket_offered(&self, outcome: TicketOutcome) {
        let label = OutcomeLabel {
            outcome: outcome.label(),
        };
        self.tickets_offered.get_or_create(&label).inc();
    }

    /// Counts an offered session id by its outcome.
    pub(crate) fn session_id_offered(&self, outcome: TicketOutcome) {
        let label = OutcomeLabel {
            outcome: outcome.label(),
        };
        self.session_ids_offered.get_or_create(&label).inc();
    }

    /// Counts an attempt to issue a ticket.
    pub(crate) fn ticket_issued(&self, issue: TicketIssue) {
        let label = OutcomeLabel {
            outcome: issue.label(),
        };
        self.tickets_issued.get_or_create(&label).inc();
    }

    /// Counts an accepted connection. It counts as open until the returned guard is dropped.
    pub(crate) fn connection_opened(&self, port: Port) -> OpenClientConnection {
        let label = PortLabel { port: port.label() };
        self.accepted.get_or_create(&label).inc();
        let open = self.connections.get_or_create_owned(&label);
        open.inc();
        OpenClientConnection(open)
    }

    /// Counts a connection closed on accept because of the connection limit.
    pub(crate) fn connection_refused(&self, port: Port) {
        self.refused
            .get_or_create(&PortLabel { port: port.label() })
            .inc();
    }

    /// Counts an error of `accept`.
    pub(crate) fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    /// Counts a successful reload.
    pub(crate) fn reloaded(&self, file: FileKind) {
        self.reloads
            .get_or_create(&FileLabel { file: file.label() })
            .inc();
    }

    /// Counts a failed reload.
    pub(crate) fn reload_failed(&self, file: FileKind) {
        self.reload_failures
            .get_or_create(&FileLabel { file: file.label() })
            .inc();
    }

    /// Sets the number of files of a kind that are missing or unusable.
    pub(crate) fn set_file_faults(&self, file: FileKind, count: usize) {
        self.file_faults
            .get_or_create(&FileLabel { file: file.label() })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets the gauges of the loaded ring.
    pub(crate) fn set_ring(&self, ring: &Ring) {
        self.ring_generation
            .set(i64::try_from(ring.generation).unwrap_or(i64::MAX));
        self.ring_changed.set(ring.changed_at.as_second());
        self.ring_rotated.set(ring.rotated_at.as_second());
    }

    /// Sets the interval at which the ring is rotated; None if it is unknown.
    pub(crate) fn set_rotation_interval(&self, interval: Option<Duration>) {
        let seconds = interval.map_or(0, Duration::as_secs);
        self.rotation_interval
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Sets whether tickets can be issued.
    pub(crate) fn set_can_seal(&self, can_seal: bool) {
        self.ring_can_seal.set(i64::from(can_seal));
        self.tickets_disabled.set(i64::from(!can_seal));
    }

    /// Sets whether the proxy is ready for new clients.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// Replaces the validity periods of all certificates: host, name and period of each.
    pub(crate) fn set_certificates<'a>(
        &self,
        certificates: impl Iterator<Item = (&'a str, &'a str, Range<Timestamp>)>,
    ) {
        self.certificate_not_before.clear();
        self.certificate_not_after.clear();
        for (host, certificate, validity) in certificates {
            let labels = CertificateLabels {
                host: host.into(),
                certificate: certificate.into(),
            };
            self.certificate_not_before
                .get_or_create(&labels)
                .set(validity.start.as_second());
            self.certificate_not_after
                .get_or_create(&labels)
                .set(validity.end.as_second());
        }
    }

    /// Creates the series that dashboards and alerts use with the value 0.
    fn start_at_zero(&self) {
        for version in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3] {
            for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let labels = handshake_labels(Some(version), Some(kind));
                drop(self.handshakes.get_or_create(&labels));
            }
        }
        for file in [FileKind::Config, FileKind::Ring, FileKind::Certificate] {
            let label = FileLabel { file: file.label() };
            drop(self.reloads.get_or_create(&label));
            drop(self.reload_failures.get_or_create(&label));
            drop(self.file_faults.get_or_create(&label));
        }
        for port in [Port::Https, Port::Http] {
            let label = PortLabel { port: port.label() };
            drop(self.connections.get_or_create(&label));
            drop(self.refused.get_or_create(&label));
        }
        self.set_can_seal(false);
    }
}

/// Guard of an open client connection: decrements the gauge on drop.
pub(crate) struct OpenClientConnection(Gauge);

impl Drop for OpenClientConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn handshake_labels(version: Option<ProtocolVersion>, kind: Option<HandshakeKind>) -> HandshakeLabels {
    HandshakeLabels {
        version: match version {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            _ => "1.2",
        },
        kind: match kind {
            Some(HandshakeKind::Resumed) => "resumed",
            _ => "full",
        },
    }
}

impl Port {
    fn label(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

impl FileKind {
    fn label(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Ring => "ring",
            Self::Certificate => "certificate",
        }
    }
}

impl HandshakeFailure {
    /// Every variant, as a test verifies.
    const ALL: [Self; 10] = [
        Self::NoServerName,
        Self::UnknownServerName,
        Self::NoCertificate,
        Self::UnreadableClientHello,
        Self::Timeout,
        Self::ClientClosed,
        Self::ClientAlert,
        Self::Incompatible,
        Self::ClientMisbehaved,
        Self::Internal,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::NoServerName => "no_server_name",
            Self::UnknownServerName => "unknown_server_name",
            Self::NoCertificate => "no_certificate",
            Self::UnreadableClientHello => "unreadable_hello",
            Self::Timeout => "timeout",
            Self::ClientClosed => "client_closed",
            Self::ClientAlert => "client_alert",
            Self::Incompatible => "incompatible",
            Self::ClientMisbehaved => "client_misbehaved",
            Self::Internal => "internal",
        }
    }
}

impl TicketOutcome {
    fn label(self) -> &'static str {
        match self {
            Self::Resumed(KeyRole::Primary) => "ok",
            Self::Resumed(KeyRole::Previous) => "ok_previous",
            Self::Resumed(KeyRole::Next) => "ok_next",
            Self::Refused(OpenError::Malformed) => "malformed",
            Self::Refused(OpenError::UnknownKey) => "unknown_key",
            Self::Refused(OpenError::NotAuthentic) => "not_authentic",
            Self::Refused(OpenError::Expired) => "expired",
            Self::Declined => "declined",
            Self::NotAllowed => "not_allowed",
            Self::NoRing => "no_ring",
            Self::NotFound => "not_found",
        }
    }
}

impl TicketIssue {
    fn label(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Refused(SealError::KeyExpired) => "key_expired",
            Self::Refused(SealError::SessionExpired) => "session_expired",
            Self::Refused(SealError::TooLarge) => "too_large",
            Self::Refused(SealError::Cipher) => "cipher",
            Self::NoRing => "no_ring",
            Self::NoCache => "no_cache",
            Self::OverBudget => "over_budget",
        }
    }
}

#[cfg(test)]
impl ProxyMetrics {
    /// Number of offered tickets with this outcome.
    pub(crate) fn offered(&self, outcome: TicketOutcome) -> u64 {
        let label = OutcomeLabel {
            outcome: outcome.label(),
        };
        self.tickets_offered.get_or_create(&label).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next variant in the order of their declaration. A new one fails to compile here until it is listed.
    fn next(failure: HandshakeFailure) -> Option<HandshakeFailure> {
        use HandshakeFailure::*;
        match failure {
            NoServerName => Some(UnknownServerName),
            UnknownServerName => Some(NoCertificate),
            NoCertificate => Some(UnreadableClientHello),
            UnreadableClientHello => Some(Timeout),
            Timeout => Some(ClientClosed),
            ClientClosed => Some(ClientAlert),
            ClientAlert => Some(Incompatible),
            Incompatible => Some(ClientMisbehaved),
            ClientMisbehaved => Some(Internal),
            Internal => None,
        }
    }

    #[test]
    fn every_reason_of_a_failed_handshake_is_counted() {
        let all: Vec<_> =
            std::iter::successors(Some(HandshakeFailure::NoServerName), |one| next(*one)).collect();
        assert_eq!(all, HandshakeFailure::ALL);
        let metrics = ProxyMetrics::default();
        all.iter().for_each(|failure| metrics.handshake_failed(*failure));
        let counts: Vec<_> = metrics.handshake_failures();
        assert_eq!(counts.len(), all.len());
        assert!(counts.iter().all(|(_, count)| *count == 1), "{counts:?}");
    }
}
