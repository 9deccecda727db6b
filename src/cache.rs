//! The session cache: sidecars that speak the Redis protocol and distribute the entries among each other.
//!
//! ```text
//! proxy ──unix──► connection ─► router ─► shard (own keys)
//!                                  └────► client ──TLS──► connection of the owner ─► its shard
//! ```
//!
//! Each entry has one owner, determined by rendezvous hashing over the ready caches, and is stored only in the owner's
//! shard. When a cache is added or removed, the owner of some entries changes. Looking up such an entry is a miss: a
//! full handshake, not an error.
//!
//! The process is single-threaded, as Redis is: an operation takes less time than waking another thread.

mod client_socket;
mod command;
mod connection;
mod info;
mod metrics;
mod node;
mod password;
mod peers;
mod server;
pub mod shard;

use std::cell::Cell;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::connection::Common;
use self::metrics::CacheMetrics;
use self::node::Node;
use self::password::Password;
use self::peers::members::own_address;
use self::peers::metrics::PeerMetrics;
use self::peers::router::Router;
use self::peers::tls::PeerTls;
use self::server::{Server, UnixSocket};
use self::shard::{NoRandomness, Shard};
use crate::config::{Backend, CacheConfig, ConfigError};
use crate::runtime::admin::{AdminPages, text_page};
use crate::runtime::files::read_regular;
use crate::runtime::limits::{self, ConnectionCost};
use crate::runtime::log_throttle::LogThrottle;
use crate::runtime::signal::Terminated;

/// Interval of the sweep for expired entries and of the check for refused connections.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// Number of entries that a sweep checks per bucket.
const SWEPT: usize = 1000;

/// Limit on the memory of pending requests and replies of all connections together, in bytes.
const MOST_HELD: usize = 16 << 20;

/// Estimated memory of an idle connection, including kernel memory, in bytes.
const CONNECTION_BYTES: u64 = 8 * 1024;

/// Maximum number of connections from peers. Each peer has one, or two during a reconnect.
const MOST_PEERS: usize = 1024;

/// Time limit for open connections to finish at shutdown.
const LONGEST_END: Duration = Duration::from_secs(1);

/// Why a cache failed to start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file could not be read.
    #[error("failed to read {}: {error}", file.display())]
    Unreadable {
        /// Path of the file.
        file: PathBuf,
        /// The I/O error.
        error: io::Error,
    },
    /// The configuration file is invalid.
    #[error("configuration file {}: {error}", file.display())]
    Config {
        /// Path of the file.
        file: PathBuf,
        /// The parse or validation error.
        error: ConfigError,
    },
    /// The password file is empty.
    #[error("password file {} is empty", .0.display())]
    NoPassword(PathBuf),
    /// Peers are discovered through a Service, but the pod IP is not set.
    #[error("discovering peers through a Service requires this pod's IP address: set --pod-ip or POD_IP")]
    NoPodIp,
    /// Binding an address of `listen` failed.
    #[error("failed to listen on {address}: {error}")]
    Listen {
        /// The TCP address or the path of the Unix socket.
        address: String,
        /// The I/O error.
        error: io::Error,
    },
    /// Generating the encryption keys failed.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// Setting up the runtime or the signal handlers failed.
    #[error("failed to start: {0}")]
    System(io::Error),
}

/// Runs a cache until SIGTERM or SIGINT. `pod_ip` identifies this cache among its peers; it is required if they are
/// discovered through a Service.
///
/// # Errors
///
/// Fails if the configuration or a file that it refers to is invalid, or if binding an address fails.
pub fn run(config_file: &Path, pod_ip: Option<IpAddr>) -> Result<(), StartError> {
    let config = load(config_file)?;
    let needs_pod_ip = config.peers.as_ref().is_some_and(|peers| {
        matches!(peers.members, Backend::Service(_)) && peers.listen.ip().is_unspecified()
    });
    if needs_pod_ip && pod_ip.is_none() {
        return Err(StartError::NoPodIp);
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::System)?;
    LocalSet::new().block_on(&runtime, work(&config, pod_ip))
}

/// Loads a configuration file and the files that it names, without opening a port; returns every problem.
///
/// # Errors
///
/// Fails if the configuration file itself is invalid.
pub fn check(config_file: &Path) -> Result<Vec<String>, StartError> {
    let config = load(config_file)?;
    let password = config.password.as_deref().map(read_password);
    let password = password.and_then(Result::err).map(|error| error.to_string());
    let peers = config.peers.as_ref().map(peers::tls::check_files);
    Ok(password.into_iter().chain(peers.into_iter().flatten()).collect())
}

async fn work(config: &CacheConfig, pod_ip: Option<IpAddr>) -> Result<(), StartError> {
    let mut terminated = Terminated::new().map_err(StartError::System)?;
    let started = Instant::now();
    let limit = usize::try_from(config.size_mib)
        .unwrap_or(usize::MAX)
        .saturating_mul(1 << 20);
    let shard = Arc::new(Shard::new(limit, config.encrypt_values, started)?);
    let mut registry = Registry::with_prefix("tlsfarm_cache");
    let metrics = CacheMetrics::register(&mut registry, &shard);
    let peers = config.peers.as_ref().map(|peers| {
        let metrics = PeerMetrics::register(&mut registry);
        let tls = PeerTls::follow(peers, metrics.clone());
        (peers, tls, metrics)
    });
    let router = peers
        .as_ref()
        .map_or_else(Router::alone, |(peers, tls, metrics)| {
            let own = own_address(peers, pod_ip);
            Router::start(peers, own, Arc::clone(tls), metrics.clone())
        });
    let node = Rc::new(Node {
        shard: Arc::clone(&shard),
        router,
        metrics,
        password: config.password.as_deref().map(read_password).transpose()?,
        default_lifetime: config.default_lifetime.as_std(),
        started,
        connections: Cell::new(0),
    });
    let stop = CancellationToken::new();
    let most_connections = limits::most_connections(ConnectionCost {
        files: 1,
        bytes: CONNECTION_BYTES,
        reserved: (limit + MOST_HELD) as u64,
    });
    let server = Server {
        common: Rc::new(Common::new(Rc::clone(&node), stop.clone(), MOST_HELD)),
        room: Arc::new(Semaphore::new(most_connections)),
        peer_room: Arc::new(Semaphore::new(MOST_PEERS)),
        tasks: TaskTracker::new(),
    };

    let admin = listen(config.listen.admin).await?;
    if let Some(address) = config.listen.tcp {
        server.listen_tcp(listen(address).await?);
    }
    if let Some((peers, tls, metrics)) = peers {
        server.listen_peers(listen(peers.listen).await?, tls, metrics);
    }
    if let Some(path) = &config.listen.unix {
        let socket = UnixSocket::bind(path).map_err(|error| StartError::Listen {
            address: path.display().to_string(),
            error,
        })?;
        server.listen_unix(socket);
    }
    tokio::spawn(pages(registry, stop.clone()).serve(admin, std::future::pending()));
    tokio::task::spawn_local(sweep(shard));
    tokio::task::spawn_local(log_refusals(node));
    info!(
        unix = ?config.listen.unix,
        tcp = ?config.listen.tcp,
        admin = %config.listen.admin,
        size_mib = config.size_mib,
        most_connections,
        "cache started"
    );

    terminated.recv().await;
    stop.cancel();
    server.tasks.close();
    if timeout(LONGEST_END, server.tasks.wait()).await.is_err() {
        warn!(
            connections = server.tasks.len(),
            "shutdown time limit reached: closing remaining connections"
        );
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::Listen {
            address: address.to_string(),
            error,
        })
}

fn pages(registry: Registry, stop: CancellationToken) -> AdminPages {
    AdminPages::default()
        // That it is answered at all shows that the process works.
        .page("/healthz", || text_page(StatusCode::OK, "ok"))
        .page("/readyz", move || match stop.is_cancelled() {
            false => text_page(StatusCode::OK, "ok"),
            true => text_page(StatusCode::SERVICE_UNAVAILABLE, "the cache is shutting down"),
        })
        .metrics(Arc::new(registry))
}

/// Removes expired entries periodically, even if no entry is stored.
async fn sweep(shard: Arc<Shard>) {
    let mut tick = interval(MAINTENANCE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        shard.sweep(SWEPT, now.into_std());
    }
}

/// Logs how many connections were refused.
async fn log_refusals(node: Rc<Node>) {
    let mut refused = LogThrottle::default();
    let mut tick = interval(MAINTENANCE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        if let Some(count) = refused.due(node.metrics.connections_refused(), now.into_std()) {
            warn!(count, "refused connections at the connection limit");
        }
    }
}

fn load(config_file: &Path) -> Result<CacheConfig, StartError> {
    let text = read(config_file)?;
    CacheConfig::parse(&String::from_utf8_lossy(&text)).map_err(|error| StartError::Config {
        file: config_file.to_owned(),
        error,
    })
}

fn read_password(file: &Path) -> Result<Password, StartError> {
    let content = read_regular(file).map_err(|error| unreadable(file, error))?;
    let content = zeroize::Zeroizing::new(content);
    Password::from_file(&content).ok_or_else(|| StartError::NoPassword(file.to_owned()))
}

fn read(file: &Path) -> Result<Vec<u8>, StartError> {
    fs::read(file).map_err(|error| unreadable(file, error))
}

fn unreadable(file: &Path, error: io::Error) -> StartError {
    StartError::Unreadable {
        file: file.to_owned(),
        error,
    }
}
