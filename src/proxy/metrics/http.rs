//! HTTP metrics. Label values are constants, never client input.

use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::runtime::metrics::NewMetric;

/// Bucket bounds in seconds, from 0.5 ms to 60 s.
const BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];

/// The HTTP metrics of a process, shared by all of its threads.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histogram,
    upstream_errors: Family<UpstreamErrorLabels, Counter>,
    upstream_connections: Gauge,
    upstream_retries: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    protocol: &'static str,
    code: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct UpstreamErrorLabels {
    kind: &'static str,
}

/// Why an exchange with a backend failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum UpstreamError {
    /// The backend has no ready endpoint.
    NoEndpoints,
    /// Connecting to an endpoint failed.
    Connect,
    /// The connection was closed, or the response was malformed.
    Response,
    /// The response timed out.
    Timeout,
    /// The response body was incomplete or timed out.
    Body,
}

impl HttpMetrics {
    /// Registers the metrics in a registry that adds the prefix `tlsfarm_proxy`.
    #[rustfmt::skip] // Each metric on one line.
    pub fn register(registry: &mut Registry) -> Self {
        Self {
            requests: registry.create("http_requests", "HTTP requests answered, by protocol and status code"),
            duration: registry.histogram("http_request_duration_seconds", "Time to answer an HTTP request", BUCKETS),
            upstream_errors: registry.create("upstream_errors", "Failed exchanges with backends, by kind"),
            upstream_connections: registry.create("upstream_connections", "Open connections to backends"),
            upstream_retries: registry.create("upstream_retries", "Requests retried on a backend"),
        }
    }

    pub(crate) fn request_answered(&self, http2: bool, status: StatusCode) {
        let labels = RequestLabels {
            protocol: if http2 { "h2" } else { "http/1.1" },
            code: status.as_u16(),
        };
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn request_ended(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }

    pub(crate) fn upstream_error(&self, kind: UpstreamError) {
        self.upstream_errors
            .get_or_create(&UpstreamErrorLabels { kind: kind.label() })
            .inc();
    }

    /// Number of requests since the start whose backend had no endpoint.
    pub(crate) fn without_endpoint(&self) -> u64 {
        let kind = UpstreamError::NoEndpoints.label();
        let counter = self.upstream_errors.get(&UpstreamErrorLabels { kind });
        counter.map_or(0, |counter| counter.get())
    }

    pub(crate) fn upstream_retried(&self) {
        self.upstream_retries.inc();
    }

    pub(crate) fn upstream_connected(&self) -> OpenUpstreamConnection {
        self.upstream_connections.inc();
        OpenUpstreamConnection(self.upstream_connections.clone())
    }
}

impl UpstreamError {
    fn label(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::Connect => "connect",
            Self::Response => "response",
            Self::Timeout => "timeout",
            Self::Body => "body",
        }
    }
}

/// Guard of an open connection to a backend: decrements the gauge on drop.
pub(crate) struct OpenUpstreamConnection(Gauge);

impl Drop for OpenUpstreamConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
