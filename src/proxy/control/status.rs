//! State of the process, shared by all threads, and the admin pages.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::StatusCode;
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::snapshot::Snapshot;
use crate::config::{Backend, ProxyConfig};
use crate::discovery::Endpoints;
use crate::proxy::metrics::{FileKind, ProxyMetrics};
use crate::proxy::resume::tickets::SharedKeys;
use crate::report::{BackendReport, ConfigReport, ProxyReport, RingReport, SessionCacheReport};
use crate::resp::client::Client;
use crate::runtime::admin::{AdminPages, json_page, text_page};

/// State that traffic threads read and the control thread updates.
pub(crate) struct Shared {
    /// Hosts, certificates, routes and limits.
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    /// Ticket keys.
    pub(crate) keys: Arc<SharedKeys>,
    /// Addresses of the Services' endpoints.
    pub(crate) endpoints: Endpoints,
    /// Metrics of the proxy.
    pub(crate) metrics: ProxyMetrics,
    /// Cancelled on SIGTERM.
    pub(crate) draining: CancellationToken,
    /// The control thread's client of the session cache, if one is configured.
    pub(crate) session_cache: ArcSwapOption<Client>,
    problems: Mutex<Problems>,
}

/// Errors of mounted files that could not be loaded.
#[derive(Clone, Debug, Default)]
struct Problems {
    config: Option<String>,
    ring: Option<String>,
}

impl Shared {
    /// Creates the state with `snapshot` and without a ring.
    pub(crate) fn new(snapshot: Snapshot, endpoints: Endpoints, metrics: ProxyMetrics) -> Self {
        Self {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            keys: Arc::default(),
            endpoints,
            metrics,
            draining: CancellationToken::new(),
            session_cache: ArcSwapOption::empty(),
            problems: Mutex::default(),
        }
    }

    /// Sets or clears the error of the configuration file.
    pub(crate) fn set_config_problem(&self, problem: Option<String>) {
        self.metrics
            .set_file_faults(FileKind::Config, usize::from(problem.is_some()));
        self.problems().config = problem;
    }

    /// Sets or clears the error of the ring file.
    pub(crate) fn set_ring_problem(&self, problem: Option<String>) {
        self.metrics
            .set_file_faults(FileKind::Ring, usize::from(problem.is_some()));
        self.problems().ring = problem;
    }

    /// Reasons why the proxy is not ready; empty if it is ready.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let snapshot = self.snapshot.load();
        let needs_endpoints = uses_services(&snapshot.config);
        let checks = [
            (!self.draining.is_cancelled(), "the proxy is shutting down"),
            (self.keys.read(|_| ()).is_some(), "no ring is loaded"),
            (snapshot.any_servable(), "no host has a usable certificate"),
            (
                !needs_endpoints || self.endpoints.is_synced(),
                "the backend endpoints have not been listed yet",
            ),
        ];
        let failed = checks.into_iter().filter(|(holds, _)| !holds);
        failed.map(|(_, what)| what).collect()
    }

    /// Builds the report for the operator (`GET /status`).
    pub(crate) fn report(&self, now: Timestamp) -> ProxyReport {
        let snapshot = self.snapshot.load();
        let problems = self.problems().clone();
        let ring = self.keys.read(|keys| RingReport {
            generation: Some(keys.generation()),
            primary: keys.can_seal(now).then(|| keys.primary().to_string()),
            opens: Some(keys.open_ids(now).iter().map(ToString::to_string).collect()),
            problem: None,
        });
        ProxyReport {
            ready: self.missing().is_empty(),
            draining: self.draining.is_cancelled(),
            ring: RingReport {
                problem: problems.ring,
                ..ring.unwrap_or_default()
            },
            config: ConfigReport {
                fingerprint: snapshot.fingerprint.clone(),
                problem: problems.config,
            },
            certificates: snapshot.certificate_reports(now),
            backends: self.backend_reports(),
            session_cache: self
                .session_cache
                .load()
                .as_deref()
                .map(|client| SessionCacheReport {
                    reachable: client.reachable(),
                    problem: client.problem(),
                }),
        }
    }

    /// Reports the number of endpoints of each backend.
    pub(crate) fn backend_reports(&self) -> Vec<BackendReport> {
        let snapshot = self.snapshot.load();
        let backends = backends(&snapshot.config).into_iter();
        backends.map(|backend| self.backend_report(backend)).collect()
    }

    fn backend_report(&self, backend: &Backend) -> BackendReport {
        match backend {
            Backend::Addresses(addresses) => BackendReport {
                backend: addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(","),
                endpoints: addresses.len(),
            },
            Backend::Service(service) => BackendReport {
                backend: format!("{}:{}", service.name, service.port),
                endpoints: self.endpoints.count(service),
            },
        }
    }

    fn problems(&self) -> MutexGuard<'_, Problems> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether any route leads to a Service.
pub(crate) fn uses_services(config: &ProxyConfig) -> bool {
    backends(config)
        .into_iter()
        .any(|backend| matches!(backend, Backend::Service(_)))
}

fn backends(config: &ProxyConfig) -> BTreeSet<&Backend> {
    let routes = config.hosts.iter().flat_map(|host| &host.routes);
    routes.map(|route| &route.backend).collect()
}

/// The pages of the admin port.
pub(crate) fn pages(shared: &Arc<Shared>, registry: Registry) -> AdminPages {
    let (ready, status) = (Arc::clone(shared), Arc::clone(shared));
    AdminPages::default()
        // Any answer shows that the control thread runs.
        .page("/healthz", || text_page(StatusCode::OK, "ok"))
        .page("/readyz", move || {
            let missing = ready.missing();
            if missing.is_empty() {
                return text_page(StatusCode::OK, "ok");
            }
            let mut text = String::from("not ready");
            for what in missing {
                // Writing to a string cannot fail.
                let _ = write!(text, "\n{what}");
            }
            text_page(StatusCode::SERVICE_UNAVAILABLE, &text)
        })
        .page("/status", move || json_page(&status.report(Timestamp::now())))
        .metrics(Arc::new(registry))
}
