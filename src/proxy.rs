//! The proxy: terminates TLS for the hosts of its configuration and forwards requests to their backends.
//!
//! ```text
//! traffic ─► ClientHello ─► snapshot: which host? ─► handshake by rustls ─► http ─► upstream
//!                              ▲                        │ tickets
//!        control: configuration, certificates       ring keys ◄─ control: ring
//! ```
//!
//! One thread per core handles traffic; the control thread watches files and endpoints, serves the admin port and
//! handles signals. They share immutable snapshots that the control thread swaps.

pub mod control;
mod host;
pub mod http;
mod listen;
mod metrics;
mod resume;
pub mod tls;
mod traffic;
mod upstream;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{JoinHandle, available_parallelism};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::control::drain::drain;
use self::control::failure_log::FailureLog;
pub use self::control::reload::ConfigFileError;
use self::control::reload::Reloader;
use self::control::status::{Shared, uses_services};
use self::http::HttpMetrics;
use self::metrics::ProxyMetrics;
use self::resume::session_cache::SessionCacheMetrics;
use self::traffic::Traffic;
use crate::discovery::{self, Endpoints};
use crate::runtime::files::POLL_INTERVAL;
use crate::runtime::limits::{self, ConnectionCost};
use crate::runtime::signal::Terminated;

/// One descriptor for the client, one for the backend; buffers in between.
const CONNECTION_COST: ConnectionCost = ConnectionCost {
    files: 2,
    bytes: 64 * 1024,
    reserved: 0,
};

/// How often failures are checked for a line that is due.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why a proxy failed to start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The configuration file is invalid at the start.
    #[error("configuration file {}: {error}", file.display())]
    Config {
        /// Path of the file.
        file: PathBuf,
        /// The error.
        error: ConfigFileError,
    },
    /// Binding an address of `listen` failed.
    #[error("failed to listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The I/O error.
        error: io::Error,
    },
    /// Starting threads or the runtime failed.
    #[error("failed to start: {0}")]
    Start(io::Error),
    /// A traffic thread exited unexpectedly.
    #[error("a traffic thread exited unexpectedly")]
    TrafficThread,
}

/// Runs a proxy until SIGTERM or SIGINT, then drains it. A second signal stops it immediately.
///
/// The calling thread becomes the control thread. Initialize logging before.
///
/// # Errors
///
/// Fails if the configuration is invalid at the start, if binding an address fails, or if threads cannot be started.
/// After the start only a signal or a crashed traffic thread stops a proxy.
pub fn run(config_file: &Path) -> Result<(), ProxyError> {
    let control = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProxyError::Start)?;
    control.block_on(control_thread(config_file))
}

/// Loads a configuration file and the files that it names, without opening a port; returns every problem.
///
/// # Errors
///
/// Fails if the configuration file itself is invalid.
pub fn check(config_file: &Path) -> Result<Vec<String>, ProxyError> {
    let runtime = runtime::Builder::new_current_thread()
        .build()
        .map_err(ProxyError::Start)?;
    runtime
        .block_on(control::check::check_files(config_file, Timestamp::now()))
        .map_err(|error| invalid(config_file, error))
}

async fn control_thread(config_file: &Path) -> Result<(), ProxyError> {
    let mut terminated = Terminated::new().map_err(ProxyError::Start)?;
    let mut registry = Registry::with_prefix("tlsfarm_proxy");
    let metrics = ProxyMetrics::register(&mut registry);
    let http_metrics = HttpMetrics::register(&mut registry);
    let cache_metrics = SessionCacheMetrics::register(&mut registry);
    let (reloader, shared) = Reloader::start(
        config_file,
        Arc::new(default_provider()),
        Endpoints::watched(),
        metrics,
        Timestamp::now(),
    )
    .map_err(|error| invalid(config_file, error))?;
    let config = shared.snapshot.load().config.clone();

    let admin = TcpListener::bind(config.listen.admin)
        .await
        .map_err(|error| ProxyError::Listen {
            address: config.listen.admin,
            error,
        })?;
    let traffic = Traffic {
        shared: Arc::clone(&shared),
        http_metrics: http_metrics.clone(),
        cache_metrics: cache_metrics.clone(),
        room: Arc::new(Semaphore::new(limits::most_connections(CONNECTION_COST))),
        acceptors: TaskTracker::new(),
        connections: TaskTracker::new(),
        stop_accepting: CancellationToken::new(),
        end: CancellationToken::new(),
    };
    let thread_ended = CancellationToken::new();
    let threads = start_traffic(&config, &traffic, &thread_ended)?;
    info!(
        https = %config.listen.https,
        http = config.listen.http.map(tracing::field::display),
        admin = %config.listen.admin,
        threads = threads.len(),
        most_connections = traffic.room.available_permits(),
        "proxy started"
    );

    tokio::spawn(control::status::pages(&shared, registry).serve(admin, std::future::pending()));
    tokio::spawn(follow_files(reloader));
    tokio::spawn(log_failures(Arc::clone(&shared), http_metrics));
    tokio::spawn(follow_endpoints(Arc::clone(&shared)));
    tokio::spawn(follow_session_cache(Arc::clone(&shared), cache_metrics));

    tokio::select! {
        () = terminated.recv() => {}
        () = thread_ended.cancelled() => return Err(ProxyError::TrafficThread),
    }
    tokio::select! {
        () = drain(&traffic) => {}
        () = terminated.recv() => {
            warn!(connections = traffic.connections.len(), "second termination signal: closing remaining connections");
            return Ok(());
        }
    }
    for thread in threads {
        thread
            .join()
            .map_err(|_| ProxyError::TrafficThread)?
            .map_err(ProxyError::Start)?;
    }
    Ok(())
}

fn invalid(config_file: &Path, error: ConfigFileError) -> ProxyError {
    ProxyError::Config {
        file: config_file.to_owned(),
        error,
    }
}

type TrafficThread = JoinHandle<io::Result<()>>;

fn start_traffic(
    config: &crate::config::ProxyConfig,
    traffic: &Traffic,
    thread_ended: &CancellationToken,
) -> Result<Vec<TrafficThread>, ProxyError> {
    // Honours the CPU quota of the container.
    let count = available_parallelism().map_or(1, usize::from);
    listen::sockets::listen(config.listen.https, config.listen.http, count)
        .map_err(|(address, error)| ProxyError::Listen { address, error })?
        .into_iter()
        .enumerate()
        .map(|(number, listeners)| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let alive = thread_ended.clone().drop_guard();
            traffic::start(number, runtime, listeners, traffic.clone(), alive)
        })
        .collect::<io::Result<_>>()
        .map_err(ProxyError::Start)
}

async fn follow_files(mut reloader: Reloader) {
    let mut tick = interval(POLL_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        reloader.poll(Timestamp::now());
    }
}

async fn log_failures(shared: Arc<Shared>, http_metrics: HttpMetrics) {
    let mut log = FailureLog::default();
    let mut tick = interval(FAILURE_LOG_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        log.poll(&shared, &http_metrics, now.into_std());
    }
}

/// Watches the endpoints of Services once a configuration names any.
async fn follow_endpoints(shared: Arc<Shared>) {
    while !uses_services(&shared.snapshot.load().config) {
        sleep(POLL_INTERVAL).await;
    }
    let farm = shared.snapshot.load().config.farm.clone();
    let namespace = farm.split_once('/').map(|(namespace, _)| namespace.to_owned());
    discovery::follow(shared.endpoints.clone(), namespace).await;
}

/// Keeps a separate connection to the session cache, so that its reachability is known even without client traffic.
async fn follow_session_cache(shared: Arc<Shared>, metrics: SessionCacheMetrics) {
    let mut current = None;
    loop {
        let wanted = shared.snapshot.load().config.session_cache.clone();
        if wanted != current {
            let client = wanted.as_ref().map(|cache| Arc::new(metrics.start(cache)));
            shared.session_cache.store(client);
            current = wanted;
        }
        sleep(POLL_INTERVAL).await;
    }
}
