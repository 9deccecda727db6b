//! The operator: reconciles every `TLSFarm` into a Deployment of proxies and related objects, and rotates the farm's
//! ticket keys once all proxies have acknowledged the current ring.
//!
//! One reconciliation runs validate → build → apply → observe → rotate → status. `decide` and `build` are pure. Traffic
//! does not depend on the operator: while it is down, proxies keep serving with the files that they have loaded.

mod build;
mod cluster;
mod context;
mod controller;
mod decide;
mod error;
mod fleet;
mod metrics;
mod names;
mod reconcile;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{join_all, select_all};
use http::StatusCode;
use kube::Client;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::build::LogSettings;
use self::build::PodDefaults;
use self::cluster::events::Events;
use self::context::Context;
use self::controller::Watching;
use self::fleet::memory::Farms;
use self::metrics::OperatorMetrics;
use crate::runtime::admin::{AdminPages, text_page};
use crate::runtime::kubernetes::{self, NoCluster};
use crate::runtime::signal::Terminated;

/// Time limit for connecting to the API server.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Time limit for running reconciliations to finish after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Command-line options of the operator.
#[derive(Clone, Debug)]
pub struct OperatorOptions {
    /// Namespaces to watch; all namespaces if empty.
    pub namespaces: Vec<String>,
    /// Proxy image for farms that do not set one: the operator's own image.
    pub proxy_image: String,
    /// `imagePullPolicy` of the proxies: `Always`, `IfNotPresent` (the default) or `Never`.
    pub image_pull_policy: Option<String>,
    /// Log settings of proxies and caches for farms that do not set theirs.
    pub proxy_log: LogSettings,
    /// Listen address for `/healthz`, `/readyz` and `/metrics`.
    pub admin: SocketAddr,
}

/// Why the operator failed to start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No kubeconfig and no in-cluster configuration was found.
    #[error(transparent)]
    NoCluster(#[from] NoCluster),
    /// The Kubernetes client configuration is invalid.
    #[error("invalid Kubernetes client configuration: {0}")]
    Client(#[source] Box<kube::Error>),
    /// Binding the admin address failed.
    #[error("failed to listen on {address}: {source}")]
    Admin {
        /// The configured address.
        address: SocketAddr,
        /// The I/O error.
        source: io::Error,
    },
    /// Installing the signal handlers failed.
    #[error("failed to install signal handlers: {0}")]
    Signal(#[source] io::Error),
    /// A controller stopped without a signal, which is a bug.
    #[error("a controller stopped unexpectedly; this is a bug in the operator, please report it")]
    Ended,
}

/// Runs the operator until SIGTERM or SIGINT, then waits for running reconciliations to finish.
///
/// # Errors
///
/// Fails if the operator cannot start, or if a controller stops by itself. An unreachable API server is not an error:
/// the operator retries.
pub async fn run(options: OperatorOptions) -> Result<(), OperatorError> {
    let mut terminated = Terminated::new().map_err(OperatorError::Signal)?;
    let client = client().await?;
    let listener = TcpListener::bind(options.admin)
        .await
        .map_err(|source| OperatorError::Admin {
            address: options.admin,
            source,
        })?;

    let (metrics, registry) = OperatorMetrics::new();
    let (metrics, farms) = (Arc::new(metrics), Arc::new(Farms::default()));
    let events = Arc::new(Events::new(client.clone()));
    let pod_defaults = PodDefaults {
        image: options.proxy_image,
        pull_policy: options.image_pull_policy.unwrap_or_else(|| "IfNotPresent".into()),
        log: options.proxy_log,
    };
    let stop = CancellationToken::new();
    let mut scopes: Vec<Option<String>> = options.namespaces.into_iter().map(Some).collect();
    scopes.sort();
    scopes.dedup();
    let watched: Vec<&str> = scopes.iter().flatten().map(String::as_str).collect();
    info!(namespaces = watched.join(","), "watching TLSFarm objects");
    if scopes.is_empty() {
        scopes.push(None);
    }

    let mut listings = Vec::new();
    let mut controllers: Vec<JoinHandle<()>> = Vec::new();
    // Whether each controller has listed its farms: no controller begins a pass before that.
    let mut seen: Vec<Arc<AtomicBool>> = Vec::new();
    for namespace in scopes {
        let watching = Watching::new(&client, namespace, &farms, &stop);
        let (listed, saw) = (watching.listed(&client), Arc::new(AtomicBool::new(false)));
        seen.push(Arc::clone(&saw));
        listings.push(async move {
            listed.await;
            saw.store(true, Ordering::Relaxed);
        });
        let context = Context {
            client: client.clone(),
            store: watching.store(),
            pod_defaults: pod_defaults.clone(),
            farms: Arc::clone(&farms),
            metrics: Arc::clone(&metrics),
            events: Arc::clone(&events),
        };
        controllers.push(tokio::spawn(watching.run(context)));
    }

    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    let pages = AdminPages::default()
        .page("/healthz", || text_page(StatusCode::OK, "ok"))
        .page("/readyz", move || {
            if is_ready.load(Ordering::Relaxed) {
                text_page(StatusCode::OK, "ok")
            } else {
                text_page(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the TLSFarm objects have not been listed yet",
                )
            }
        })
        .metrics(registry);
    let admin = tokio::spawn(pages.serve(listener, stop.clone().cancelled_owned()));
    let synced = tokio::spawn(async move {
        join_all(listings).await;
        ready.store(true, Ordering::Relaxed);
        info!("ready: listed all TLSFarm objects");
    });

    let outcome = tokio::select! {
        () = terminated.recv() => Ok(()),
        _ = select_all(&mut controllers) => Err(OperatorError::Ended),
    };
    info!("stopping");
    stop.cancel();
    synced.abort();
    let unfinished = controllers
        .into_iter()
        .zip(&seen)
        .filter(|(controller, seen)| seen.load(Ordering::Relaxed) && !controller.is_finished())
        .map(|(controller, _)| controller);
    if tokio::time::timeout(STOP_LIMIT, join_all(unfinished))
        .await
        .is_err()
    {
        warn!(
            "stopped before running reconciliations finished; the next operator will reconcile these farms"
        );
    }
    if admin.await.is_err() {
        warn!("admin server task failed");
    }
    outcome
}

async fn client() -> Result<Client, OperatorError> {
    let mut config = kubernetes::find(None).await?;
    config.connect_timeout = Some(CONNECT_LIMIT);
    // A retry within the client would hide for minutes that a write may have happened; a pass must know at once.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| OperatorError::Client(Box::new(error)))
}
