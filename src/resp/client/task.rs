//! The task of a client: connect, serve requests, reconnect with back-off.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, info};

use super::error::CacheError;
use super::health::HealthRecorder;
use super::link::{Link, LinkEnd};
use super::outstanding::PendingRequest;
use super::transport::Transport;
use crate::runtime::error_chain::with_causes;

/// Time limit for a connection attempt, up to the server's first reply.
const CONNECT_TIME: Duration = Duration::from_secs(1);

const SHORTEST_BACK_OFF: Duration = Duration::from_millis(50);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);

/// Runs until the last client is dropped.
pub(super) async fn run(
    transport: Transport,
    timeout: Duration,
    mut requests: mpsc::Receiver<PendingRequest>,
    mut keeper: HealthRecorder,
) {
    let mut back_off = SHORTEST_BACK_OFF;
    loop {
        let began = Instant::now();
        let is_trial = keeper.begin_trial(began);
        let connect = tokio::time::timeout(CONNECT_TIME, transport.connect());
        let connected = match keeper.is_starting() {
            // The first requests wait in the queue.
            true => connect.await,
            false => tokio::select! {
                connected = connect => connected,
                () = turn_away(&mut requests) => return,
            },
        };
        let problem = match connected {
            Ok(Ok((stream, decoder))) => {
                keeper.end_trial(is_trial, Instant::now());
                keeper.link_up();
                info!(cache = %transport, "connected to a session cache");
                let link = Link::new(stream, decoder, timeout, &mut keeper, &mut requests);
                match link.run().await {
                    LinkEnd::Unused => return,
                    LinkEnd::Broken(why) => format!("connection to {transport} lost: {why}"),
                }
            }
            Ok(Err(error)) => format!("failed to connect to {transport}: {}", with_causes(&error)),
            Err(_) => format!("failed to connect to {transport}: timed out"),
        };
        let now = Instant::now();
        match keeper.is_down() {
            true => debug!(problem, "session cache still unreachable"),
            false => info!(problem, "session cache unreachable"),
        }
        keeper.link_down(problem, now);
        // A server that accepts connections and then drops them gets the same back-off as an unreachable one.
        if now.duration_since(began) > LONGEST_BACK_OFF * 2 {
            back_off = SHORTEST_BACK_OFF;
        }
        let jittered = back_off.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        tokio::select! {
            () = sleep(jittered) => {}
            () = turn_away(&mut requests) => return,
        }
        back_off = (back_off * 2).min(LONGEST_BACK_OFF);
    }
}

/// Fails queued requests while there is no connection. Returns when all clients were dropped.
async fn turn_away(requests: &mut mpsc::Receiver<PendingRequest>) {
    while let Some(request) = requests.recv().await {
        let _ = request.answer.send(Err(CacheError::Unavailable));
    }
}
