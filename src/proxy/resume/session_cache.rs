//! Session cache access of one traffic thread: lookups before a handshake, and stores after it.
//!
//! A handshake waits for at most one lookup, and at most for `lookupTimeout`. Any error causes a full handshake and is
//! counted. Handshakes never wait for stores (E6 of the requirements).

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::task::yield_now;
use zeroize::Zeroizing;

use super::store_budget::PutBudget;
use crate::config;
use crate::proxy::tls::client_hello::SessionName;
use crate::resp::client::{CacheError, Client, ClientMetrics};
use crate::ring::{CacheKey, CacheKind, Scope};
use crate::runtime::metrics::NewMetric;

/// Maximum number of concurrent stores per thread. Beyond that, sessions are not stored.
const MOST_STORING: usize = 256;

/// A session cache lookup for a session that a client offers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Lookup {
    /// Session id or single-use ticket.
    pub(crate) kind: CacheKind,
    /// The session id or ticket that the client sent.
    pub(crate) name: SessionName,
    /// Scope of the client's host.
    pub(crate) scope: Scope,
}

/// The result of a [`Lookup`], still encrypted.
pub(crate) struct FoundSession {
    /// The session id or ticket that the client sent.
    pub(crate) name: SessionName,
    /// Key of the entry.
    pub(crate) key: CacheKey,
    /// The encrypted session.
    pub(crate) entry: Zeroizing<Vec<u8>>,
}

/// Session cache state of one connection.
#[derive(Default)]
pub(crate) struct Cached {
    /// The session found by the lookup.
    pub(crate) found: Option<FoundSession>,
    /// Whether sessions of the connection may be stored.
    pub(crate) room: StoreAllowance,
}

/// Whether sessions of a connection may be stored. If not, the client gets no session ids or single-use tickets,
/// because lookups would miss.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum StoreAllowance {
    /// Sessions may be stored.
    Free,
    /// There is no session cache, or it is unreachable.
    #[default]
    NoCache,
    /// The client exceeded its budget.
    OverBudget,
}

/// An encrypted session to store.
pub(crate) struct StoredSession {
    /// Key of the entry.
    pub(crate) key: CacheKey,
    /// The encrypted session.
    pub(crate) sealed: Vec<u8>,
    /// Lifetime of the entry.
    pub(crate) lifetime: Duration,
}

/// The session cache client of one thread.
pub(crate) struct SessionCache {
    client: RefCell<Option<(config::SessionCacheConfig, Client)>>,
    storing: Rc<Cell<usize>>,
    budget: RefCell<PutBudget>,
    metrics: SessionCacheMetrics,
}

/// Metrics of the session cache; clones share their values.
#[derive(Clone, Default)]
pub(crate) struct SessionCacheMetrics {
    requests: Family<RequestLabels, Counter>,
    client: ClientMetrics,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    operation: &'static str,
    outcome: &'static str,
}

impl SessionCacheMetrics {
    /// Creates and registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("session_cache");
        let metrics = Self {
            requests: registry.create("requests", "Session cache operations, by operation and outcome"),
            client: ClientMetrics::register(registry),
        };
        for (operation, outcomes) in [
            ("get", &["hit", "miss"][..]),
            ("take", &["hit", "miss"]),
            ("put", &["stored", "skipped", "over_budget"]),
        ] {
            for outcome in outcomes {
                drop(
                    metrics
                        .requests
                        .get_or_create(&RequestLabels { operation, outcome }),
                );
            }
        }
        metrics
    }

    /// Starts a client for the configured cache.
    pub(crate) fn start(&self, config: &config::SessionCacheConfig) -> Client {
        Client::start(
            &config.server,
            config.lookup_timeout.as_std(),
            self.client.clone(),
        )
    }

    fn count(&self, operation: &'static str, outcome: &'static str) {
        self.requests
            .get_or_create(&RequestLabels { operation, outcome })
            .inc();
    }
}

impl SessionCache {
    /// Does not connect until a configuration with a cache is set.
    pub(crate) fn new(metrics: SessionCacheMetrics) -> Self {
        Self {
            client: RefCell::default(),
            storing: Rc::default(),
            budget: RefCell::new(PutBudget::new(Instant::now())),
            metrics,
        }
    }

    /// Switches to the cache of this configuration. Called with the current configuration before each handshake;
    /// running handshakes use the new cache too.
    pub(crate) fn follow(&self, config: Option<&config::SessionCacheConfig>) {
        let mut current = self.client.borrow_mut();
        if current.as_ref().map(|(of, _)| of) != config {
            *current = config.map(|config| (config.clone(), self.metrics.start(config)));
        }
    }

    /// Whether sessions of this client may be stored.
    pub(crate) fn room(&self, client: IpAddr) -> StoreAllowance {
        if !self.client().is_some_and(|client| client.admits()) {
            StoreAllowance::NoCache
        } else if self.budget.borrow().has_room(client, Instant::now()) {
            StoreAllowance::Free
        } else {
            StoreAllowance::OverBudget
        }
    }

    /// Counts sessions that were not stored because the client exceeded its budget.
    pub(crate) fn count_over_budget(&self, sessions: usize) {
        (0..sessions).for_each(|_| self.metrics.count("put", "over_budget"));
    }

    /// Looks up a session. A single-use session is removed from the cache.
    pub(crate) async fn find(&self, lookup: Lookup) -> Option<FoundSession> {
        let client = self.client()?;
        let key = CacheKey::new(lookup.kind, &lookup.scope, &lookup.name);
        let (operation, answer) = match lookup.kind {
            CacheKind::SessionId => ("get", client.get(key.as_bytes()).await),
            CacheKind::SingleUse => ("take", client.take(key.as_bytes()).await),
        };
        let entry = match answer {
            Ok(Some(entry)) => {
                self.metrics.count(operation, "hit");
                entry
            }
            Ok(None) => {
                self.metrics.count(operation, "miss");
                return None;
            }
            Err(error) => {
                self.metrics.count(operation, error.kind());
                return None;
            }
        };
        Some(FoundSession {
            name: lookup.name,
            key,
            entry,
        })
    }

    /// Stores the sessions of a client. Returns when the requests are queued, without waiting for replies.
    pub(crate) async fn store(&self, of: IpAddr, entries: Vec<StoredSession>) {
        if entries.is_empty() {
            return;
        }
        let Some(client) = self.client() else { return };
        let metrics = self.metrics.clone();
        if self.storing.get() >= MOST_STORING {
            entries.iter().for_each(|_| metrics.count("put", "skipped"));
            return;
        }
        self.budget.borrow_mut().spend(of, entries.len(), Instant::now());
        let storing = Rc::clone(&self.storing);
        storing.set(storing.get() + 1);
        let mut puts = Box::pin(async move {
            let puts = entries.iter().map(|entry| async {
                let stored = client
                    .put(entry.key.as_bytes(), &entry.sealed, entry.lifetime)
                    .await;
                metrics.count(
                    "put",
                    stored.as_ref().map_or_else(CacheError::kind, |()| "stored"),
                );
            });
            futures::future::join_all(puts).await;
            storing.set(storing.get() - 1);
        });
        // Polling once queues the requests; yielding lets the connection write them.
        if puts.as_mut().now_or_never().is_none() {
            tokio::task::spawn_local(puts);
            yield_now().await;
        }
    }

    fn client(&self) -> Option<Client> {
        self.client.borrow().as_ref().map(|(_, client)| client.clone())
    }
}

#[cfg(test)]
pub(crate) mod tests;
