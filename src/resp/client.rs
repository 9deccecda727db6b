//! Client of a cache: a `tlsfarm cache`, or a Redis or Valkey server.
//!
//! All clones of a [`Client`] share one connection. Queued requests are pipelined in one write, and replies arrive in
//! order. Requests are never retried, and never wait longer than the time limit: while there is no connection, or the
//! breaker is open, a request fails immediately.

mod error;
mod health;
mod link;
mod metrics;
mod outstanding;
mod task;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;
use zeroize::Zeroizing;

pub use self::error::CacheError;
pub(crate) use self::error::OWNER_IS_SILENT;
use self::health::Health;
pub use self::metrics::ClientMetrics;
use self::outstanding::{Expects, PendingRequest};
pub use self::transport::PeerConfigs;
use self::transport::Transport;
use super::breaker::BreakerState;
use super::{Reply, encoded_request};
use crate::config::CacheServer;
use crate::runtime::error_chain::with_causes;

/// Maximum number of queued requests. Beyond that, requests fail immediately.
const MOST_WAITING: usize = 1024;

/// The client of one cache. It disconnects when its last clone is dropped.
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

struct ClientInner {
    queue: mpsc::Sender<PendingRequest>,
    health: Arc<Health>,
    metrics: ClientMetrics,
    timeout: Duration,
}

impl Client {
    /// Starts a client. It spawns a task in the current runtime that connects and reconnects. `timeout` is the time
    /// limit of every request.
    pub fn start(server: &CacheServer, timeout: Duration, metrics: ClientMetrics) -> Self {
        let transport = match server {
            CacheServer::Unix(socket) => Transport::Unix(socket.clone()),
            CacheServer::Redis(server) => Transport::Redis(server.clone()),
        };
        Self::start_with(transport, timeout, metrics)
    }

    /// Starts a client for a peer.
    pub(crate) fn start_peer(
        address: SocketAddr,
        configs: PeerConfigs,
        timeout: Duration,
        metrics: ClientMetrics,
    ) -> Self {
        Self::start_with(Transport::Peer(address, configs), timeout, metrics)
    }

    /// Reads the files that connecting to `server` needs, such as certificates and passwords; returns the problems.
    pub(crate) async fn check_files(server: &CacheServer) -> Vec<String> {
        let errors = match server {
            CacheServer::Unix(_) => Vec::new(),
            CacheServer::Redis(server) => transport::check_files(server).await,
        };
        errors.iter().map(|error| with_causes(error)).collect()
    }

    /// Returns the value of a key; None if it does not exist. Fails if the cache is unavailable or the request times
    /// out.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, CacheError> {
        self.request(&[b"GET", key], Expects::Value).await.map(value)
    }

    /// Removes a key and returns its value (`GETDEL`). Of concurrent callers only one gets it.
    pub async fn take(&self, key: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, CacheError> {
        self.request(&[b"GETDEL", key], Expects::Value).await.map(value)
    }

    /// Stores a value with a lifetime.
    pub async fn put(&self, key: &[u8], value: &[u8], lifetime: Duration) -> Result<(), CacheError> {
        let millis = lifetime.as_millis().max(1).to_string();
        self.request(
            &[b"SET", key, value, b"PX", millis.as_bytes()],
            Expects::Word("OK"),
        )
        .await
        .map(drop)
    }

    /// Sends `PING`.
    pub async fn ping(&self) -> Result<(), CacheError> {
        self.request(&[b"PING"], Expects::Word("PONG")).await.map(drop)
    }

    /// Forwards a request unchanged and returns the reply, which may be an error reply.
    pub async fn call(&self, request: &[&[u8]]) -> Result<Reply, CacheError> {
        self.request(request, Expects::Anything).await
    }

    /// State of the circuit breaker.
    pub fn breaker(&self) -> BreakerState {
        self.0.health.breaker()
    }

    /// Whether a request would be sent now instead of failing immediately. Before the first connection attempt has
    /// finished, requests wait.
    pub fn admits(&self) -> bool {
        self.0.health.admits()
    }

    /// Whether there is a connection and the breaker is closed. An idle connection is probed once a second, so this is
    /// up to date without requests.
    pub fn reachable(&self) -> bool {
        self.0.health.reachable()
    }

    /// Why [`Self::reachable`] is false, as a message. It never contains a secret.
    pub fn problem(&self) -> Option<String> {
        self.0.health.problem()
    }

    fn start_with(transport: Transport, timeout: Duration, metrics: ClientMetrics) -> Self {
        let (queue, requests) = mpsc::channel(MOST_WAITING);
        let health = Arc::new(Health::default());
        let keeper = health::HealthRecorder::new(Arc::clone(&health), metrics.clone(), Instant::now());
        tokio::spawn(task::run(transport, timeout, requests, keeper));
        Self(Arc::new(ClientInner {
            queue,
            health,
            metrics,
            timeout,
        }))
    }

    async fn request(&self, arguments: &[&[u8]], expects: Expects) -> Result<Reply, CacheError> {
        let asked = Instant::now();
        let outcome = self.answer(arguments, expects, asked).await;
        self.0.metrics.count(&outcome, asked);
        outcome
    }

    async fn answer(
        &self,
        arguments: &[&[u8]],
        expects: Expects,
        asked: Instant,
    ) -> Result<Reply, CacheError> {
        if !self.admits() {
            return Err(CacheError::Unavailable);
        }
        let (answer, answered) = oneshot::channel();
        let request = PendingRequest {
            bytes: encoded_request(arguments),
            expects,
            asked,
            deadline: asked + self.0.timeout,
            answer,
        };
        self.0
            .queue
            .try_send(request)
            .map_err(|_| CacheError::Unavailable)?;
        // The connection enforces time limits, except before the first one exists: enforce the limit here until then.
        let answered = match self.0.health.is_starting() {
            false => answered.await,
            true => timeout_at((asked + self.0.timeout).into(), answered)
                .await
                .map_err(|_| CacheError::Timeout)?,
        };
        // The reply channel closes only if the task has failed; otherwise the task outlives its clients.
        answered.unwrap_or(Err(CacheError::Lost))
    }
}

fn value(reply: Reply) -> Option<Zeroizing<Vec<u8>>> {
    match reply {
        Reply::Bulk(value) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
