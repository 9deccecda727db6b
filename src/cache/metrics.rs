//! Metrics of a cache. Label values are constants of this file, never client input.

use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::command::Verb;
use super::shard::Shard;
use crate::runtime::metrics::NewMetric;

/// Bucket bounds in seconds, from 10 µs to 1 s.
const DURATION_BUCKETS: [f64; 12] = [
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 1.0,
];

/// Which listener a connection came in on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    /// A proxy or another server. Its keys may be owned by any cache.
    Client,
    /// Another cache, which requests keys that this cache owns.
    Peer,
}

/// Outcome of a request: value of the metric label `outcome`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CommandOutcome {
    /// The entry was found.
    Hit,
    /// The entry was not found.
    Miss,
    /// The value was stored.
    Stored,
    /// The value was not stored, because the key exists (`NX`).
    Exists,
    /// A command that accesses no entry succeeded.
    Done,
    /// The reply was an error.
    Refused,
    /// The cache that owns the key did not reply.
    Unavailable,
}

/// The metrics of one process. Not thread-safe: the cache is single-threaded.
pub(crate) struct CacheMetrics {
    requests: Family<RequestLabels, Counter>,
    /// The counters of `requests`, cached to avoid the lock of the family.
    counters: [[OnceCell<Counter>; OUTCOMES.len()]; VERBS.len()],
    duration: Histogram,
    connections: Family<OriginLabel, Gauge>,
    accepted: Family<OriginLabel, Counter>,
    refused: Family<OriginLabel, Counter>,
    accept_errors: Counter,
    protocol_errors: Counter,
    crowded: Counter,
    authentication_failures: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    command: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OriginLabel {
    from: &'static str,
}

/// Metrics read from the shard at each scrape.
struct ShardFigures(Arc<Shard>);

const VERBS: [(Verb, &str); 8] = [
    (Verb::Get, "get"),
    (Verb::Take, "getdel"),
    (Verb::Set, "set"),
    (Verb::Delete, "del"),
    (Verb::Exists, "exists"),
    (Verb::Expire, "expire"),
    (Verb::TimeLeft, "ttl"),
    (Verb::Other, "other"),
];

const OUTCOMES: [(CommandOutcome, &str); 7] = [
    (CommandOutcome::Hit, "hit"),
    (CommandOutcome::Miss, "miss"),
    (CommandOutcome::Stored, "stored"),
    (CommandOutcome::Exists, "exists"),
    (CommandOutcome::Done, "done"),
    (CommandOutcome::Refused, "refused"),
    (CommandOutcome::Unavailable, "unavailable"),
];

impl CacheMetrics {
    /// Creates and registers the metrics, including those of `shard`.
    #[rustfmt::skip] // Each metric on one line.
    pub(crate) fn register(registry: &mut Registry, shard: &Arc<Shard>) -> Self {
        let m = Self {
            requests: registry.create("requests", "Requests answered, by command and outcome"),
            counters: Default::default(),
            duration: registry.histogram("request_duration_seconds", "Time from request to reply", DURATION_BUCKETS),
            connections: registry.create("connections", "Open connections, by origin"),
            accepted: registry.create("connections_accepted", "Connections accepted, by origin"),
            refused: registry.create("connections_refused", "Connections refused at the limit, by origin"),
            accept_errors: registry.create("accept_errors", "Errors while accepting connections"),
            protocol_errors: registry.create("protocol_errors", "Connections closed after a protocol error"),
            crowded: registry.create("connections_crowded_out", "Connections closed at the memory limit for buffers"),
            authentication_failures: registry.create("authentication_failures", "Attempts with a wrong password"),
        };
        registry.register_collector(Box::new(ShardFigures(Arc::clone(shard))));
        m.start_at_zero();
        m
    }

    /// Counts an answered request.
    pub(crate) fn answered(&self, verb: Verb, outcome: CommandOutcome) {
        let counter = || {
            let labels = RequestLabels {
                command: VERBS.get(verb as usize)?.1,
                outcome: OUTCOMES.get(outcome as usize)?.1,
            };
            let cell = self.counters.get(verb as usize)?.get(outcome as usize)?;
            Some(cell.get_or_init(|| self.requests.get_or_create_owned(&labels)))
        };
        if let Some(counter) = counter() {
            counter.inc();
        }
    }

    /// Records the duration of a request.
    pub(crate) fn took(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }

    /// Counts an accepted connection. It counts as open until the returned guard is dropped.
    pub(crate) fn connection_opened(&self, from: Origin) -> OpenCacheConnection {
        let label = from.label();
        self.accepted.get_or_create(&label).inc();
        let open = self.connections.get_or_create_owned(&label);
        open.inc();
        OpenCacheConnection(open)
    }

    /// Number of connections refused since the start.
    pub(crate) fn connections_refused(&self) -> u64 {
        let labels = [Origin::Client, Origin::Peer].map(Origin::label);
        let counts = labels
            .iter()
            .filter_map(|label| Some(self.refused.get(label)?.get()));
        counts.sum()
    }

    /// Counts a connection closed on accept because of the connection limit.
    pub(crate) fn connection_refused(&self, from: Origin) {
        self.refused.get_or_create(&from.label()).inc();
    }

    /// Counts an error of `accept`.
    pub(crate) fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    /// Counts a connection closed because of a protocol error.
    pub(crate) fn protocol_broken(&self) {
        self.protocol_errors.inc();
    }

    /// Counts a connection closed because the memory limit for buffers was reached.
    pub(crate) fn crowded_out(&self) {
        self.crowded.inc();
    }

    /// Counts a failed authentication.
    pub(crate) fn authentication_failed(&self) {
        self.authentication_failures.inc();
    }

    /// Total number of hits and misses over all commands.
    pub(crate) fn hits_and_misses(&self) -> (u64, u64) {
        let sum = |outcome: CommandOutcome| {
            let cells = self
                .counters
                .iter()
                .filter_map(|row| row.get(outcome as usize)?.get());
            cells.map(Counter::get).sum()
        };
        (sum(CommandOutcome::Hit), sum(CommandOutcome::Miss))
    }

    /// Creates the series that dashboards and alerts use with the value 0.
    fn start_at_zero(&self) {
        for outcome in ["hit", "miss"] {
            for command in ["get", "getdel"] {
                let labels = RequestLabels { command, outcome };
                drop(self.requests.get_or_create(&labels));
            }
        }
        for from in [Origin::Client, Origin::Peer] {
            drop(self.connections.get_or_create(&from.label()));
            drop(self.refused.get_or_create(&from.label()));
        }
    }
}

/// Guard of an open connection: decrements the gauge on drop.
pub(crate) struct OpenCacheConnection(Gauge);

impl Drop for OpenCacheConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Origin {
    fn label(self) -> OriginLabel {
        let from = match self {
            Self::Client => "client",
            Self::Peer => "peer",
        };
        OriginLabel { from }
    }
}

impl fmt::Debug for ShardFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.figures().fmt(f)
    }
}

impl Collector for ShardFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = self.0.figures();
        // The registry does not append a full stop to a collector's help texts.
        let gauges = [
            ("entries", "Entries in the cache.", figures.entries),
            ("bytes", "Memory that the entries use.", figures.bytes),
            ("limit_bytes", "Memory limit for the entries.", self.0.limit()),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            (
                "evictions",
                "Entries evicted at the memory limit.",
                figures.evicted,
            ),
            ("expirations", "Entries that expired.", figures.expired),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_their_place() {
        let verbs = VERBS
            .iter()
            .enumerate()
            .all(|(at, (verb, _))| *verb as usize == at);
        let outcomes = OUTCOMES
            .iter()
            .enumerate()
            .all(|(at, (outcome, _))| *outcome as usize == at);
        assert!(verbs && outcomes);
    }
}
