//! The client of a cache: a `tlsfarm cache`, or a Redis or Valkey server.
//!
//! All clones of a [`Client`] share one connection. Requests that wait at the same time leave in one write, and replies
//! come back in order. Nothing is ever tried again and nobody waits for longer than the time limit: while there is no
//! connection, or the breaker is open, a request fails at once.

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

/// Most requests that wait to be written. Beyond that they fail at once.
const MOST_WAITING: usize = 1024;

/// The client of one cache. It lives on until its last clone is dropped.
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

struct ClientInner {
    queue: mpsc::Sender<PendingRequest>,
    health: Arc<Health>,
    metrics: ClientMetrics,
    timeout: Duration,
}

impl Client {
    /// Starts a client; a task of its own, in the runtime that this is called in, connects and stays connected.
    /// `timeout` bounds every request from the moment it is made.
    pub fn start(server: &CacheServer, timeout: Duration, metrics: ClientMetrics) -> Self {
        let transport = match server {
            CacheServer::Unix(socket) => Transport::Unix(socket.clone()),
            CacheServer::Redis(server) => Transport::Redis(server.clone()),
        };
        Self::start_with(transport, timeout, metrics)
    }

    /// The same for another cache of the farm.
    pub(crate) fn start_peer(
        address: SocketAddr,
        configs: PeerConfigs,
        timeout: Duration,
        metrics: ClientMetrics,
    ) -> Self {
        Self::start_with(Transport::Peer(address, configs), timeout, metrics)
    }

    /// The value of a key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, CacheError> {
        self.request(&[b"GET", key], Expects::Value).await.map(value)
    }

    /// The value of a key, which is gone afterwards: of all that take it at the same time, one gets it.
    pub async fn take(&self, key: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, CacheError> {
        self.request(&[b"GETDEL", key], Expects::Value).await.map(value)
    }

    /// Stores a value for as long as `lifetime`.
    pub async fn put(&self, key: &[u8], value: &[u8], lifetime: Duration) -> Result<(), CacheError> {
        let millis = lifetime.as_millis().max(1).to_string();
        self.request(
            &[b"SET", key, value, b"PX", millis.as_bytes()],
            Expects::Word("OK"),
        )
        .await
        .map(drop)
    }

    /// Asks for nothing but an answer.
    pub async fn ping(&self) -> Result<(), CacheError> {
        self.request(&[b"PING"], Expects::Word("PONG")).await.map(drop)
    }

    /// Passes on a request as it is, and the reply, which may be an error.
    pub async fn call(&self, request: &[&[u8]]) -> Result<Reply, CacheError> {
        self.request(request, Expects::Anything).await
    }

    /// Whether requests are made at all.
    pub fn breaker(&self) -> BreakerState {
        self.0.health.breaker()
    }

    /// Whether a request made now would be sent, rather than fail at once. The first requests wait for the connection.
    pub fn admits(&self) -> bool {
        self.0.health.admits()
    }

    /// Whether requests would be made now: there is a connection and the breaker is closed. A connection without
    /// requests is looked after once a second, so this is true of a server that nobody asks anything, too.
    pub fn reachable(&self) -> bool {
        self.0.health.reachable()
    }

    /// What is wrong when [`Self::reachable`] says no, for people. It never contains a secret.
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
        // Time limits are the connection's business; the first one must be made before there is anybody to mind them.
        let answered = match self.0.health.is_starting() {
            false => answered.await,
            true => timeout_at((asked + self.0.timeout).into(), answered)
                .await
                .map_err(|_| CacheError::Timeout)?,
        };
        // The task ends before its clients only when it fails, and takes the answer with it.
        answered.unwrap_or(Err(CacheError::Lost))
    }
}

fn value(reply: Reply) -> Option<Zeroizing<Vec<u8>>> {
    match reply {
        Reply::Bulk(value) => Some(value),
        _ => None,
    }
}
