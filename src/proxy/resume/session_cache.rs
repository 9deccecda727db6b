//! The way of one traffic thread to the session cache: looking sessions up before a handshake, and storing what it made.
//!
//! A handshake waits for one lookup at most, and for no longer than `lookupTimeout`; whatever goes wrong is a full
//! handshake and a counter. Nobody waits for what is stored (E6 of the requirements).

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

/// Most handshakes of one thread whose sessions are being stored. Beyond that sessions are not stored.
const MOST_STORING: usize = 256;

/// The session that a client may be about to resume.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Lookup {
    /// What it is found by.
    pub(crate) kind: CacheKind,
    /// The name that the client gave.
    pub(crate) name: SessionName,
    /// The scope of the host that the client asked for.
    pub(crate) scope: Scope,
}

/// What the cache had for a [`Lookup`], still sealed.
pub(crate) struct FoundSession {
    /// The name that the client gave.
    pub(crate) name: SessionName,
    /// Key of the entry.
    pub(crate) key: CacheKey,
    /// The sealed session.
    pub(crate) entry: Zeroizing<Vec<u8>>,
}

/// What the cache does for one connection.
#[derive(Default)]
pub(crate) struct Cached {
    /// What it had.
    pub(crate) found: Option<FoundSession>,
    /// Whether it takes what the connection makes.
    pub(crate) room: StoreAllowance,
}

/// Whether the cache takes the sessions of a connection, as far as is known. Where it does not, the client gets no names
/// of sessions that would be nowhere.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum StoreAllowance {
    /// It does.
    Free,
    /// There is none, or it cannot be reached.
    #[default]
    NoCache,
    /// The client has had too many stored.
    OverBudget,
}

/// A session to be stored, sealed.
pub(crate) struct StoredSession {
    /// Key of the entry.
    pub(crate) key: CacheKey,
    /// The sealed session.
    pub(crate) sealed: Vec<u8>,
    /// How long it may be used.
    pub(crate) lifetime: Duration,
}

/// One thread's client of the cache that the configuration names.
pub(crate) struct SessionCache {
    client: RefCell<Option<(config::SessionCacheConfig, Client)>>,
    storing: Rc<Cell<usize>>,
    budget: RefCell<PutBudget>,
    metrics: SessionCacheMetrics,
}

/// What a proxy counts of its session cache; clones share their values.
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
    /// Makes the metrics and registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("session_cache");
        let metrics = Self {
            requests: Family::default(),
            client: ClientMetrics::register(registry),
        };
        registry.register(
            "requests",
            "Session cache operations (lookup, take, store), by outcome",
            metrics.requests.clone(),
        );
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

    /// A client for the cache of the configuration.
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
    /// No connection is made before a configuration names a cache.
    pub(crate) fn new(metrics: SessionCacheMetrics) -> Self {
        Self {
            client: RefCell::default(),
            storing: Rc::default(),
            budget: RefCell::new(PutBudget::new(Instant::now())),
            metrics,
        }
    }

    /// Uses the cache of this configuration from now on. It is told the newest one before each handshake; handshakes
    /// that began under an older one go on with the cache of the newer.
    pub(crate) fn follow(&self, config: Option<&config::SessionCacheConfig>) {
        let mut current = self.client.borrow_mut();
        if current.as_ref().map(|(of, _)| of) != config {
            *current = config.map(|config| (config.clone(), self.metrics.start(config)));
        }
    }

    /// Whether it makes sense to store anything for this client.
    pub(crate) fn room(&self, client: IpAddr) -> StoreAllowance {
        if !self.client().is_some_and(|client| client.admits()) {
            StoreAllowance::NoCache
        } else if self.budget.borrow().has_room(client, Instant::now()) {
            StoreAllowance::Free
        } else {
            StoreAllowance::OverBudget
        }
    }

    /// Counts sessions that were not made because there was no [`StoreAllowance`] for them.
    pub(crate) fn count_over_budget(&self, sessions: usize) {
        (0..sessions).for_each(|_| self.metrics.count("put", "over_budget"));
    }

    /// Looks a session up. A single-use session is taken out of the cache by that.
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

    /// Stores the sessions of a client. It returns when they are on their way, and waits for no answer.
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
        // Handed to the connection now, which writes them at its next turn.
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
