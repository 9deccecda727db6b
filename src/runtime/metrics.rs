//! Creates and registers metrics in one step, so that a metric's field, name and help stand on one line.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// Creates metrics that a [`Registry`] knows.
pub(crate) trait NewMetric {
    /// Creates a counter, a gauge or a family and registers it. `help` is a sentence without its full stop, which the
    /// registry adds. Neither is `_total` part of a counter's name.
    fn create<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M;

    /// Creates a histogram with these upper bounds and registers it.
    fn histogram(&mut self, name: &str, help: &str, bounds: impl IntoIterator<Item = f64>) -> Histogram;
}

/// Label of events that are counted by their cause.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct ReasonLabel {
    /// The cause, a constant.
    pub(crate) reason: &'static str,
}

impl NewMetric for Registry {
    fn create<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        registered(self, name, help, M::default())
    }

    fn histogram(&mut self, name: &str, help: &str, bounds: impl IntoIterator<Item = f64>) -> Histogram {
        registered(self, name, help, Histogram::new(bounds))
    }
}

fn registered<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn created_metrics_appear_in_the_registry() {
        let mut registry = Registry::default();
        let starts: Counter = registry.create("starts", "Starts of the process");
        let seconds = registry.histogram("start_seconds", "Time that a start takes", [1.0]);
        starts.inc();
        seconds.observe(0.5);
        let mut text = String::new();
        encode(&mut text, &registry).expect("encodes");
        for line in [
            "# HELP starts Starts of the process.",
            "starts_total 1",
            "# HELP start_seconds Time that a start takes.",
            "start_seconds_bucket{le=\"1.0\"} 1",
        ] {
            assert!(text.lines().any(|printed| printed == line), "no {line} in {text}");
        }
    }
}
