//! Traffic threads: one per core, each with its own listeners. A connection stays on its thread.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::control::status::Shared;
use super::http::{self, Client, ClientTls, Forwarder, HttpMetrics};
use super::listen::sockets::{Listeners, waiting};
use super::metrics::Port;
use super::resume::session_cache::{SessionCache, SessionCacheMetrics};
use super::tls::handshake;

/// Pause after an error of `accept`, such as too many open files.
const BACK_OFF: Duration = Duration::from_millis(100);

/// State shared by all traffic threads.
#[derive(Clone)]
pub(crate) struct Traffic {
    /// State of the process.
    pub(crate) shared: Arc<Shared>,
    /// Metrics of the HTTP side.
    pub(crate) http_metrics: HttpMetrics,
    /// Metrics of the session cache.
    pub(crate) cache_metrics: SessionCacheMetrics,
    /// Connection limit.
    pub(crate) room: Arc<Semaphore>,
    /// Running accept loops.
    pub(crate) acceptors: TaskTracker,
    /// Open connections.
    pub(crate) connections: TaskTracker,
    /// Cancelled to stop accepting connections.
    pub(crate) stop_accepting: CancellationToken,
    /// Cancelled to stop the threads.
    pub(crate) end: CancellationToken,
}

/// Starts one traffic thread. `alive` is dropped when the thread exits, including by panic.
pub(crate) fn start(
    number: usize,
    runtime: Runtime,
    listeners: Listeners,
    traffic: Traffic,
    alive: tokio_util::sync::DropGuard,
) -> io::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new()
        .name(format!("traffic-{number}"))
        .spawn(move || {
            let _alive = alive;
            LocalSet::new().block_on(&runtime, run(listeners, traffic))
        })
}

async fn run(listeners: Listeners, traffic: Traffic) -> io::Result<()> {
    let shared = &traffic.shared;
    let forwarder = Forwarder::new(
        Arc::clone(&shared.snapshot),
        shared.endpoints.clone(),
        traffic.http_metrics.clone(),
    );
    let (end, acceptors) = (traffic.end.clone(), traffic.acceptors.clone());
    let session_cache = SessionCache::new(traffic.cache_metrics.clone());
    // Connect to the cache before the first client arrives.
    session_cache.follow(shared.snapshot.load().config.session_cache.as_ref());
    let worker = Rc::new(Worker {
        traffic,
        forwarder,
        session_cache,
    });
    let https = TcpListener::from_std(listeners.https)?;
    acceptors.spawn_local(Rc::clone(&worker).accept(https, Port::Https));
    if let Some(http) = listeners.http {
        acceptors.spawn_local(worker.accept(TcpListener::from_std(http)?, Port::Http));
    }
    end.cancelled().await;
    Ok(())
}

/// One traffic thread at work.
struct Worker {
    traffic: Traffic,
    forwarder: Rc<Forwarder>,
    session_cache: SessionCache,
}

impl Worker {
    async fn accept(self: Rc<Self>, listener: TcpListener, port: Port) {
        let stop = &self.traffic.stop_accepting;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.take(stream, peer, port),
                // The client closed the connection while it was in the backlog.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.traffic.shared.metrics.accept_failed();
                    debug!(%error, "failed to accept a connection");
                    sleep(BACK_OFF).await;
                }
            }
        }
        // Closing the listener resets the connections in its backlog, so accept them first.
        for (stream, peer) in waiting(listener) {
            self.take(stream, peer, port);
        }
    }

    fn take(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, port: Port) {
        let metrics = &self.traffic.shared.metrics;
        let Ok(room) = Arc::clone(&self.traffic.room).try_acquire_owned() else {
            metrics.connection_refused(port);
            // A reset leaves no state on either side.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            return;
        };
        let open = metrics.connection_opened(port);
        let worker = Rc::clone(self);
        self.traffic.connections.spawn_local(async move {
            worker.serve(stream, peer, port).await;
            drop((room, open));
        });
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, port: Port) {
        let shared = &self.traffic.shared;
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let snapshot = shared.snapshot.load_full();
        let draining = shared.draining.clone();
        match port {
            Port::Http => {
                drop(snapshot);
                let client = Client { peer, tls: None };
                http::serve(stream, client, Rc::clone(&self.forwarder), draining).await;
            }
            Port::Https => {
                self.session_cache.follow(snapshot.config.session_cache.as_ref());
                // Boxed, so that its memory is freed after the handshake.
                let handshake = handshake::accept(
                    stream,
                    peer.ip(),
                    &snapshot,
                    &shared.keys,
                    &self.session_cache,
                    &shared.metrics,
                );
                let Some((stream, host)) = Box::pin(handshake).await else {
                    return;
                };
                drop(snapshot);
                let tls = Some(ClientTls::of(stream.connection(), host));
                let client = Client { peer, tls };
                http::serve(stream, client, Rc::clone(&self.forwarder), draining).await;
            }
        }
    }
}
