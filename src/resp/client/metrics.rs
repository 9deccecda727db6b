//! Metrics of cache clients, shared by all clients of a process.

use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::error::CacheError;
use crate::resp::Reply;
use crate::resp::breaker::BreakerState;
use crate::runtime::metrics::{NewMetric, ReasonLabel};

/// The metrics of the clients of one process; clones share their values.
#[derive(Clone)]
pub struct ClientMetrics {
    answered: Counter,
    failures: Family<ReasonLabel, Counter>,
    seconds: Histogram,
    late: Counter,
    connected: Counter,
    disconnected: Counter,
    reachable: Gauge,
    breakers: Family<StateLabel, Gauge>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabel {
    state: &'static str,
}

impl Default for ClientMetrics {
    /// Metrics that no page shows.
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

/// Bucket bounds in seconds, from the latency of a Unix socket to the maximum lookup time limit.
const BUCKETS: [f64; 10] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
];

impl ClientMetrics {
    /// Creates and registers the metrics.
    #[rustfmt::skip] // Each metric on one line.
    pub fn register(registry: &mut Registry) -> Self {
        Self {
            answered: registry.create("requests_answered", "Cache requests answered in time"),
            failures: registry.create("requests_failed", "Cache requests not answered in time, by reason"),
            seconds: registry.histogram("request_seconds", "Time from a cache request to its reply", BUCKETS),
            late: registry.create("answers_late", "Cache replies that came after the time limit"),
            connected: registry.create("connects", "Connections to caches established"),
            disconnected: registry.create("disconnects", "Connections to caches lost, and failed attempts"),
            reachable: registry.create("reachable", "Cache connections that are up and answer"),
            breakers: registry.create("breakers", "Circuit breakers of connections to caches, by state"),
        }
    }

    pub(super) fn count(&self, outcome: &Result<Reply, CacheError>, asked: Instant) {
        match outcome {
            Ok(_) => {
                self.answered.inc();
                self.seconds.observe(asked.elapsed().as_secs_f64());
            }
            Err(error) => {
                let label = ReasonLabel { reason: error.kind() };
                self.failures.get_or_create(&label).inc();
            }
        }
    }

    pub(super) fn answered_late(&self) {
        self.late.inc();
    }

    pub(super) fn connected(&self) {
        self.connected.inc();
    }

    pub(super) fn disconnected(&self) {
        self.disconnected.inc();
    }

    pub(super) fn reachable(&self, reachable: bool) {
        match reachable {
            true => self.reachable.inc(),
            false => self.reachable.dec(),
        };
    }

    pub(super) fn breaker_was(&self, before: Option<BreakerState>, after: Option<BreakerState>) {
        let gauge = |state: BreakerState| {
            self.breakers.get_or_create_owned(&StateLabel {
                state: state.as_str(),
            })
        };
        if let Some(state) = before {
            gauge(state).dec();
        }
        if let Some(state) = after {
            gauge(state).inc();
        }
    }
}
