//! Service discovery: the ready addresses of Service ports, from a watch on EndpointSlices.
//!
//! Traffic never waits for the API server: lookups read an immutable table that is replaced as a whole. While the API
//! server is unreachable, the last known table stays.

mod slices;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::config::ServicePort;
use slices::{SERVICE_LABEL, Slice, Table};

/// Maximum back-off between two attempts to reach the API server.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

/// The ready addresses of Services. Clones share one state.
#[derive(Clone)]
pub struct Endpoints(Arc<Inner>);

struct Inner {
    table: ArcSwap<Table>,
    synced: AtomicBool,
}

impl Endpoints {
    /// For a proxy outside a cluster: no Services, and synced at once.
    #[cfg(test)]
    pub(crate) fn fixed() -> Self {
        Self::new(true)
    }

    /// Empty and not synced until [`follow`] has listed all EndpointSlices once.
    pub fn watched() -> Self {
        Self::new(false)
    }

    /// Whether all EndpointSlices have been listed once.
    pub fn is_synced(&self) -> bool {
        self.0.synced.load(Ordering::Acquire)
    }

    /// Number of ready addresses of this port.
    pub fn count(&self, service: &ServicePort) -> usize {
        self.addresses(service).map_or(0, |addresses| addresses.len())
    }

    /// The ready addresses of this port; None if the Service or port does not exist.
    pub fn addresses(&self, service: &ServicePort) -> Option<Arc<[SocketAddr]>> {
        let port = service.port_name.as_deref()?;
        self.0.table.load().get(&service.name)?.get(port).cloned()
    }

    fn new(synced: bool) -> Self {
        Self(Arc::new(Inner {
            table: ArcSwap::default(),
            synced: AtomicBool::new(synced),
        }))
    }

    fn replace(&self, mirror: &Mirror) {
        let table = slices::table(mirror.slices.values());
        self.0.table.store(Arc::new(table));
        self.0.synced.store(true, Ordering::Release);
    }
}

/// Watches the EndpointSlices of a namespace, by default the one of this process, and updates `endpoints`. Never
/// returns. Requires the permission to list and watch EndpointSlices.
pub async fn follow(endpoints: Endpoints, namespace: Option<String>) {
    let mut back_off = Duration::from_secs(1);
    let client = loop {
        match Client::try_default().await {
            Ok(client) => break client,
            Err(error) => {
                warn!(%error, "failed to create a Kubernetes client, will retry; Services have no endpoints until then");
                sleep(back_off).await;
                back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            }
        }
    };
    let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    watch(endpoints, client, namespace).await;
}

async fn watch(endpoints: Endpoints, client: Client, namespace: String) {
    let api: Api<EndpointSlice> = Api::namespaced(client, &namespace);
    let events = watcher(api, watcher::Config::default().labels(SERVICE_LABEL)).default_backoff();
    pin_mut!(events);
    let mut mirror = Mirror::default();
    let mut reachable = true;
    // The stream of a watcher never ends.
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if !reachable {
                    info!(namespace, "EndpointSlice watch restored");
                }
                reachable = true;
                if mirror.apply(event) {
                    endpoints.replace(&mirror);
                }
            }
            Err(error) if reachable => {
                info!(namespace, %error, "EndpointSlice watch failed; keeping the last known endpoints");
                reachable = false;
            }
            Err(error) => debug!(namespace, %error, "EndpointSlice watch still failing"),
        }
    }
}

/// The EndpointSlices by name.
#[derive(Default)]
struct Mirror {
    slices: BTreeMap<String, Slice>,
    /// A new complete list while it arrives. The previous state stays in use until it is complete.
    listing: BTreeMap<String, Slice>,
}

impl Mirror {
    /// Applies an event; returns whether the state has changed.
    fn apply(&mut self, event: Event<EndpointSlice>) -> bool {
        match event {
            Event::Init => {
                self.listing.clear();
                return false;
            }
            Event::InitApply(slice) => {
                self.listing.insert(slice.name_any(), Slice::from(slice));
                return false;
            }
            Event::InitDone => self.slices = std::mem::take(&mut self.listing),
            Event::Apply(slice) => {
                self.slices.insert(slice.name_any(), Slice::from(slice));
            }
            Event::Delete(slice) => {
                self.slices.remove(&slice.name_any());
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, address: &str) -> EndpointSlice {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address]}],
            "ports": [{"name": "http", "port": 8080}],
        }))
        .expect("valid")
    }

    fn web() -> ServicePort {
        ServicePort {
            name: "web".into(),
            port: 80,
            port_name: Some("http".into()),
        }
    }

    #[test]
    fn a_relist_replaces_endpoints_only_when_complete() {
        let endpoints = Endpoints::watched();
        let mut mirror = Mirror::default();
        let mut feed = |event| {
            if mirror.apply(event) {
                endpoints.replace(&mirror);
            }
            (endpoints.is_synced(), endpoints.count(&web()))
        };
        assert_eq!(feed(Event::Init), (false, 0));
        assert_eq!(feed(Event::InitApply(slice("a", "10.0.0.1"))), (false, 0));
        assert_eq!(feed(Event::InitApply(slice("b", "10.0.0.2"))), (false, 0));
        assert_eq!(feed(Event::InitDone), (true, 2));
        assert_eq!(feed(Event::Apply(slice("c", "10.0.0.3"))), (true, 3));
        assert_eq!(feed(Event::Delete(slice("a", "10.0.0.1"))), (true, 2));
        // The watch restarts, as after an outage of the API server.
        assert_eq!(feed(Event::Init), (true, 2));
        assert_eq!(feed(Event::InitApply(slice("c", "10.0.0.3"))), (true, 2));
        assert_eq!(feed(Event::InitDone), (true, 1));
    }

    #[test]
    fn a_port_that_does_not_exist_has_no_endpoints() {
        let endpoints = Endpoints::fixed();
        assert!(endpoints.is_synced());
        let missing = ServicePort {
            port_name: None,
            ..web()
        };
        assert_eq!(endpoints.count(&missing), 0);
        assert_eq!(endpoints.count(&web()), 0);
    }
}
