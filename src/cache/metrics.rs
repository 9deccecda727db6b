//! What a cache counts. Labels are words of this file, never anything that a client sent.

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

/// From ten microseconds to a second, in seconds.
const DURATION_BUCKETS: [f64; 12] = [
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 1.0,
];

/// Who may connect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    /// A proxy or another server; its keys may belong to any cache.
    Client,
    /// Another cache, which asks for keys that it holds to be ours.
    Peer,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CommandOutcome {
    /// There was an entry.
    Hit,
    /// There was none.
    Miss,
    /// A value was stored.
    Stored,
    /// A value was not stored, because there was one.
    Exists,
    /// It was answered, and concerned no entry.
    Done,
    /// It was answered with an error.
    Refused,
    /// The cache that owns the key did not answer.
    Unavailable,
}

/// The metrics of one process, for its one thread.
pub(crate) struct CacheMetrics {
    requests: Family<RequestLabels, Counter>,
    /// The same counters where they are found without a lock.
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

/// What is asked of the shard when somebody looks.
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
    /// Makes the metrics and registers them, those of the shard among them.
    pub(crate) fn register(registry: &mut Registry, shard: &Arc<Shard>) -> Self {
        let m = Self {
            requests: Family::default(),
            counters: Default::default(),
            duration: Histogram::new(DURATION_BUCKETS),
            connections: Family::default(),
            accepted: Family::default(),
            refused: Family::default(),
            accept_errors: Counter::default(),
            protocol_errors: Counter::default(),
            crowded: Counter::default(),
            authentication_failures: Counter::default(),
        };
        registry.register(
            "requests",
            "Requests answered, by command and by what became of them",
            m.requests.clone(),
        );
        registry.register(
            "request_duration_seconds",
            "From reading a request to having its reply",
            m.duration.clone(),
        );
        registry.register("connections", "Open connections", m.connections.clone());
        registry.register(
            "connections_accepted",
            "Connections that were accepted",
            m.accepted.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections that were closed at once because the most allowed were open",
            m.refused.clone(),
        );
        registry.register(
            "accept_errors",
            "Errors while accepting connections, such as too many open files",
            m.accept_errors.clone(),
        );
        registry.register(
            "protocol_errors",
            "Connections that were closed because what they sent was not Redis's protocol",
            m.protocol_errors.clone(),
        );
        registry.register(
            "connections_crowded_out",
            "Connections that were closed because unfinished requests and replies took too much memory",
            m.crowded.clone(),
        );
        registry.register(
            "authentication_failures",
            "Wrong passwords",
            m.authentication_failures.clone(),
        );
        registry.register_collector(Box::new(ShardFigures(Arc::clone(shard))));
        m.start_at_zero();
        m
    }

    /// A request was answered.
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

    /// How long that took.
    pub(crate) fn took(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }

    /// A connection was accepted; it counts as open until the result is dropped.
    pub(crate) fn connection_opened(&self, from: Origin) -> OpenCacheConnection {
        let label = from.label();
        self.accepted.get_or_create(&label).inc();
        let open = self.connections.get_or_create_owned(&label);
        open.inc();
        OpenCacheConnection(open)
    }

    /// A connection was closed at once because of the cap.
    pub(crate) fn connection_refused(&self, from: Origin) {
        self.refused.get_or_create(&from.label()).inc();
    }

    /// Accepting failed.
    pub(crate) fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    /// A connection broke the protocol.
    pub(crate) fn protocol_broken(&self) {
        self.protocol_errors.inc();
    }

    /// A connection was closed for want of memory for buffers.
    pub(crate) fn crowded_out(&self) {
        self.crowded.inc();
    }

    /// A password was wrong.
    pub(crate) fn authentication_failed(&self) {
        self.authentication_failures.inc();
    }

    /// How many requests of all kinds found what they looked for, and how many did not.
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

    /// Makes the series that dashboards and alerts look at exist before anything has happened.
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

/// An open connection.
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
        let gauges = [
            ("entries", "Entries that are kept", figures.entries),
            (
                "bytes",
                "Memory that they take, with everything around them",
                figures.bytes,
            ),
            ("limit_bytes", "Memory that they may take", self.0.limit()),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            (
                "evictions",
                "Entries that went because there was no room",
                figures.evicted,
            ),
            (
                "expirations",
                "Entries that went because their time was over",
                figures.expired,
            ),
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
