//! Logs failures that clients and backends can cause any number of times, at most one line a minute for each kind.

use std::time::Instant;

use tracing::{info, warn};

use super::status::Shared;
use crate::proxy::http::HttpMetrics;
use crate::proxy::metrics::HandshakeFailure;
use crate::runtime::log_throttle::LogThrottle;

/// Maximum number of backends listed in a line.
const MOST_NAMED: usize = 8;

/// What has been logged of each kind of failure.
#[derive(Default)]
pub(crate) struct FailureLog {
    refused: LogThrottle,
    handshakes: LogThrottle,
    /// The counts by reason in the last line.
    handshakes_logged: Vec<(&'static str, u64)>,
    without_endpoint: LogThrottle,
}

impl FailureLog {
    /// Logs the failures that are due. A client that closes the connection before the handshake ends is not one.
    pub(crate) fn poll(&mut self, shared: &Shared, http: &HttpMetrics, now: Instant) {
        if let Some(count) = self.refused.due(shared.metrics.connections_refused(), now) {
            warn!(count, "refused client connections at the connection limit");
        }
        let mut failures = shared.metrics.handshake_failures();
        // Health checks of load balancers connect and close; they would cause this line for ever.
        failures.retain(|(reason, _)| *reason != HandshakeFailure::ClientClosed.label());
        let total = failures.iter().map(|(_, count)| count).sum();
        if let Some(count) = self.handshakes.due(total, now) {
            let reasons = since(&self.handshakes_logged, &failures);
            info!(count, reasons, "TLS handshakes failed");
            self.handshakes_logged = failures;
        }
        if let Some(count) = self.without_endpoint.due(http.without_endpoint(), now) {
            let backends = without_endpoint(shared);
            warn!(
                count,
                backends, "requests failed because a backend had no endpoints"
            );
        }
    }
}

/// The reasons whose count has grown, with the difference.
fn since(before: &[(&'static str, u64)], now: &[(&'static str, u64)]) -> String {
    let difference = |(reason, count): &(&'static str, u64)| {
        let known = before.iter().find(|(known, _)| known == reason);
        let fresh = count - known.map_or(0, |(_, count)| *count);
        (fresh > 0).then(|| format!("{reason}={fresh}"))
    };
    now.iter().filter_map(difference).collect::<Vec<_>>().join(" ")
}

/// The backends that have no endpoints at present; empty if they have recovered.
fn without_endpoint(shared: &Shared) -> String {
    let backends = shared.backend_reports();
    let named: Vec<String> = backends
        .into_iter()
        .filter(|backend| backend.endpoints == 0)
        .map(|backend| backend.backend)
        .take(MOST_NAMED)
        .collect();
    named.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reasons_with_new_failures_are_named() {
        let before = [("timeout", 3), ("client_closed", 5)];
        let now = [("timeout", 3), ("client_closed", 7), ("incompatible", 1)];
        assert_eq!(since(&before, &now), "client_closed=2 incompatible=1");
        assert_eq!(since(&[], &before), "timeout=3 client_closed=5");
    }
}
