//! Connections to backends: load balancing and connection pools.
//!
//! Every thread has its own pools and counts its own requests, so there are no locks.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::request_body::RequestBody;
use crate::proxy::metrics::http::HttpMetrics;

/// Idle timeout of a pooled connection. Shorter than that of most servers, so that they rarely close first.
const POOL_IDLE: Duration = Duration::from_secs(45);
/// Maximum number of idle connections per endpoint.
const POOL_SIZE: usize = 64;
/// How long an endpoint is avoided after a failed connection attempt, if there are others.
const AVOID: Duration = Duration::from_secs(3);
/// Maximum size of a response head, and of one read of a body, in bytes.
const READ_BUFFER: usize = 64 << 10;

/// All endpoints that this thread sends requests to.
#[derive(Default)]
pub(crate) struct Upstreams {
    endpoints: RefCell<HashMap<SocketAddr, Rc<Endpoint>>>,
    /// Until when any endpoint is avoided.
    avoiding: Cell<Option<Instant>>,
}

/// One address of a backend.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    in_flight: Cell<usize>,
    avoid_until: Cell<Option<Instant>>,
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

/// A connection used for one request. Dropping it closes the connection.
pub(crate) struct Lease {
    sender: Option<SendRequest<RequestBody>>,
    endpoint: Rc<Endpoint>,
    /// Whether it has been used for an earlier request.
    pub(crate) reused: bool,
}

impl Upstreams {
    /// Chooses an endpoint that is not in `tried`: of two random ones, the one with fewer requests. Endpoints that
    /// recently failed are used only if there are no others.
    pub(crate) fn choose(
        &self,
        addresses: &[SocketAddr],
        tried: &[SocketAddr],
        now: Instant,
    ) -> Option<Rc<Endpoint>> {
        if tried.is_empty() && self.avoiding.get().is_none_or(|until| until <= now) {
            return self.choose_of(addresses);
        }
        let untried: Vec<SocketAddr> = addresses
            .iter()
            .filter(|address| !tried.contains(address))
            .copied()
            .collect();
        let good: Vec<SocketAddr> = untried
            .iter()
            .filter(|address| !self.endpoint(**address).is_avoided(now))
            .copied()
            .collect();
        self.choose_of(if good.is_empty() { &untried } else { &good })
    }

    /// Records that connecting to an endpoint failed.
    pub(crate) fn failed(&self, endpoint: &Endpoint, now: Instant) {
        let until = now + AVOID;
        endpoint.avoid_until.set(Some(until));
        self.avoiding.set(Some(until));
    }

    /// Closes connections that exceed the idle timeout and removes endpoints without connections.
    pub(crate) fn sweep(&self, now: Instant) {
        self.endpoints.borrow_mut().retain(|_, endpoint| {
            endpoint
                .idle
                .borrow_mut()
                .retain(|idle| !idle.sender.is_closed() && now - idle.since < POOL_IDLE);
            endpoint.in_flight.get() > 0 || !endpoint.idle.borrow().is_empty() || endpoint.is_avoided(now)
        });
    }

    fn choose_of(&self, addresses: &[SocketAddr]) -> Option<Rc<Endpoint>> {
        let count = addresses.len();
        if count < 2 {
            return addresses.first().map(|address| self.endpoint(*address));
        }
        let first = rand::random_range(0..count);
        // Any of the others with equal chance.
        let second = (first + rand::random_range(1..count)) % count;
        let endpoint = self.endpoint(*addresses.get(first)?);
        let other = self.endpoint(*addresses.get(second)?);
        Some(if other.in_flight.get() < endpoint.in_flight.get() {
            other
        } else {
            endpoint
        })
    }

    fn endpoint(&self, address: SocketAddr) -> Rc<Endpoint> {
        let mut endpoints = self.endpoints.borrow_mut();
        let endpoint = endpoints.entry(address).or_insert_with(|| {
            Rc::new(Endpoint {
                address,
                in_flight: Cell::new(0),
                avoid_until: Cell::new(None),
                idle: RefCell::default(),
            })
        });
        Rc::clone(endpoint)
    }
}

impl Endpoint {
    /// Returns a connection for one request: an idle one, or a new one. Fails if connecting takes longer than `limit`.
    pub(crate) async fn connect(self: Rc<Self>, limit: Duration, metrics: &HttpMetrics) -> io::Result<Lease> {
        // The request counts from here on, so that an endpoint that is slow to connect to does not look idle.
        let mut lease = Lease {
            sender: None,
            reused: true,
            endpoint: self,
        };
        lease.endpoint.in_flight.set(lease.endpoint.in_flight.get() + 1);
        lease.sender = lease.endpoint.reuse(Instant::now());
        if lease.sender.is_none() {
            lease.reused = false;
            lease.sender = Some(open(lease.endpoint.address, limit, metrics).await?);
        }
        Ok(lease)
    }

    /// The most recently used connection that can take a request.
    fn reuse(&self, now: Instant) -> Option<SendRequest<RequestBody>> {
        let mut idle = self.idle.borrow_mut();
        for index in (0..idle.len()).rev() {
            let Some(connection) = idle.get(index) else {
                continue;
            };
            if connection.sender.is_closed() || now - connection.since >= POOL_IDLE {
                idle.remove(index);
            } else if connection.sender.is_ready() {
                return Some(idle.remove(index).sender);
            }
        }
        None
    }

    /// Returns a connection to the pool, unless it is closed or the pool is full.
    fn keep(&self, sender: SendRequest<RequestBody>, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if !sender.is_closed() && idle.len() < POOL_SIZE {
            idle.push(Idle { sender, since: now });
        }
    }

    fn is_avoided(&self, now: Instant) -> bool {
        self.avoid_until.get().is_some_and(|until| until > now)
    }
}

impl Lease {
    /// Sends the request. The error contains the request if nothing of it was sent.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let sender = self
            .sender
            .as_mut()
            .expect("a lease has a connection until it is released");
        sender.try_send_request(request).await
    }

    /// Returns the connection to the pool after a complete response, once hyper reports it ready, which it is not while
    /// the request is still being sent.
    pub(crate) fn release(mut self) {
        if let Some(sender) = self.sender.take() {
            self.endpoint.keep(sender, Instant::now());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
    }
}

/// Opens a connection and drives it in a task of its own.
async fn open(
    address: SocketAddr,
    limit: Duration,
    metrics: &HttpMetrics,
) -> io::Result<SendRequest<RequestBody>> {
    let stream = timeout(limit, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(READ_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let open = metrics.upstream_connected();
    tokio::task::spawn_local(async move {
        // The request that waits for a response gets the error.
        let _ = connection.with_upgrades().await;
        drop(open);
    });
    Ok(sender)
}

#[cfg(test)]
mod tests;
