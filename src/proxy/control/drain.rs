//! Graceful shutdown of a proxy.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::proxy::traffic::Traffic;

/// Maximum time for which new connections are still accepted while draining, until every node has removed the proxy
/// from the Service.
const LONGEST_GRACE: Duration = Duration::from_secs(5);

/// Drains the proxy: tells clients to reconnect, accepts new connections for a short time, and waits for open
/// connections to close until the drain period expires.
pub(crate) async fn drain(traffic: &Traffic) {
    let period = traffic.shared.snapshot.load().config.drain_period.as_std();
    let begin = Instant::now();
    let deadline = begin + period;
    info!(connections = traffic.connections.len(), ?period, "draining");

    traffic.shared.draining.cancel();
    traffic.shared.metrics.set_ready(false);
    sleep_until(begin + LONGEST_GRACE.min(period / 2)).await;
    traffic.stop_accepting.cancel();
    traffic.acceptors.close();
    traffic.acceptors.wait().await;
    traffic.connections.close();
    match timeout_at(deadline, traffic.connections.wait()).await {
        Ok(()) => info!("drained"),
        Err(_) => warn!(
            connections = traffic.connections.len(),
            "drain period expired: closing remaining connections"
        ),
    }
    traffic.end.cancel();
}
