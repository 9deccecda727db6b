//! The end of a proxy in good order.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::proxy::traffic::Traffic;

/// Longest time for which new connections are still taken. It passes before every node has heard that the proxy left
/// the Service; whoever is sent here meanwhile must be served.
const LONGEST_GRACE: Duration = Duration::from_secs(5);

/// Ends the traffic: clients are told at once to go elsewhere, new ones are taken for a little while longer, and open
/// connections get the rest of the drain period to come to an end.
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
