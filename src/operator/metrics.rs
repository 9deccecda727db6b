//! The operator's metrics. Label values are names of farms and constants, never client input.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::error::ReconcileError;
use super::names::FarmKey;
use crate::runtime::metrics::{NewMetric, ReasonLabel};

/// Bucket bounds in seconds: a reconciliation takes milliseconds, or as long as the slowest proxy.
const PASS_SECONDS: [f64; 8] = [0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Bucket bounds in seconds: a kubelet needs about a second after a refresh, or up to two minutes without one.
const ACK_SECONDS: [f64; 9] = [0.5, 1.0, 1.5, 2.0, 5.0, 15.0, 60.0, 120.0, 600.0];

/// The operator's metrics.
pub(super) struct OperatorMetrics {
    reconciles: Counter,
    duration: Histogram,
    failures: Family<ReasonLabel, Counter>,
    writes: Family<Write, Counter>,
    ring_generation: Family<FarmLabels, Gauge>,
    rotations: Counter,
    acknowledge: Histogram,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Write {
    kind: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FarmLabels {
    namespace: String,
    farm: String,
}

impl OperatorMetrics {
    /// Creates the metrics and their registry.
    #[rustfmt::skip] // Each metric on one line.
    pub(super) fn new() -> (Self, Arc<Registry>) {
        let mut registry = Registry::with_prefix("tlsfarm_operator");
        let metrics = Self {
            reconciles: registry.create("reconciles", "Reconciliations of TLSFarm objects"),
            duration: registry.histogram("reconcile_duration_seconds", "Duration of a reconciliation", PASS_SECONDS),
            failures: registry.create("reconcile_failures", "Reconciliations that failed and are retried, by reason"),
            writes: registry.create("api_writes", "Write requests to the API server, by kind of object"),
            ring_generation: registry.create("ring_generation", "Generation of a farm's ring"),
            rotations: registry.create("rotations", "Rotations of ticket keys"),
            acknowledge: registry.histogram("acknowledge_seconds", "Time until a ring is acknowledged", ACK_SECONDS),
        };
        (metrics, Arc::new(registry))
    }

    pub(super) fn reconciled(&self, took: Duration, failure: Option<&ReconcileError>) {
        self.reconciles.inc();
        self.duration.observe(took.as_secs_f64());
        if let Some(error) = failure {
            let reason = error.reason();
            self.failures.get_or_create(&ReasonLabel { reason }).inc();
        }
    }

    pub(super) fn wrote(&self, kind: impl ToString) {
        self.writes
            .get_or_create(&Write {
                kind: kind.to_string(),
            })
            .inc();
    }

    pub(super) fn rotated(&self) {
        self.rotations.inc();
    }

    pub(super) fn ring(&self, farm: &FarmKey, generation: u64) {
        let value = i64::try_from(generation).unwrap_or(i64::MAX);
        self.ring_generation.get_or_create(&labels(farm)).set(value);
    }

    pub(super) fn acknowledged(&self, after: Duration) {
        self.acknowledge.observe(after.as_secs_f64());
    }

    pub(super) fn forget(&self, farm: &FarmKey) {
        self.ring_generation.remove(&labels(farm));
    }
}

fn labels(farm: &FarmKey) -> FarmLabels {
    FarmLabels {
        namespace: farm.namespace.clone(),
        farm: farm.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented() {
        let page = include_str!("../../docs/metrics.md");
        let (metrics, registry) = OperatorMetrics::new();
        let farm = FarmKey {
            namespace: "web".into(),
            name: "shop".into(),
        };
        metrics.reconciled(
            Duration::from_secs(1),
            Some(&ReconcileError::Timeout(Duration::ZERO)),
        );
        metrics.wrote("Secret");
        metrics.ring(&farm, 7);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names: Vec<String> = types
            .map(|line| match line.split_once(' ') {
                Some((name, "counter")) => format!("{name}_total"),
                Some((name, _)) => name.to_owned(),
                None => line.to_owned(),
            })
            .collect();
        assert_eq!(names.len(), 7, "{names:?}");
        for name in names {
            assert!(
                page.contains(&format!("| `{name}` |")),
                "docs/metrics.md does not explain {name}"
            );
        }
    }

    #[test]
    fn operations_and_failures_are_counted() {
        let (metrics, registry) = OperatorMetrics::new();
        let farm = FarmKey {
            namespace: "web".into(),
            name: "shop".into(),
        };
        metrics.reconciled(Duration::from_secs(2), None);
        metrics.reconciled(
            Duration::from_secs(1),
            Some(&ReconcileError::Timeout(Duration::ZERO)),
        );
        metrics.wrote("Secret");
        metrics.wrote("Secret");
        metrics.rotated();
        metrics.ring(&farm, 6);
        metrics.ring(&farm, 7);
        metrics.acknowledged(Duration::from_secs(3));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        for line in [
            "reconciles_total 2",
            "reconcile_duration_seconds_sum 3.0",
            "reconcile_failures_total{reason=\"Timeout\"} 1",
            "api_writes_total{kind=\"Secret\"} 2",
            "rotations_total 1",
            "ring_generation{namespace=\"web\",farm=\"shop\"} 7",
            "acknowledge_seconds_sum 3.0",
        ] {
            let line = format!("tlsfarm_operator_{line}");
            assert!(text.lines().any(|other| other == line), "no {line} in {text}");
        }
        metrics.forget(&farm);
        text.clear();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        assert!(!text.contains("shop"), "{text}");
    }
}
