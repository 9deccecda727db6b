//! Controllers: map watch events to reconciliations of farms.
//!
//! Only TLSFarm objects are cached. All other watches are metadata-only, which is enough to find the farm; the
//! reconciliation then reads what it needs.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::ListParams;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::controller::{Config, Error};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::context::Context;
use super::fleet::memory::Farms;
use super::names::{FarmKey, farm_of};
use super::reconcile::{after_failure, forget, reconcile};
use crate::api::{FARM_LABEL, TLSFarm};
use crate::runtime::error_chain::with_causes;
use crate::runtime::kubernetes::describe;

/// Maximum number of concurrent reconciliations.
const CONCURRENCY: u16 = 16;

/// Interval between attempts to list the farms at the start.
const LISTING_INTERVAL: Duration = Duration::from_secs(1);

const WATCH_PAUSE: Duration = Duration::from_millis(600);

type Farm = DeserializeGuard<TLSFarm>;

/// A controller that is configured but not running yet.
pub(super) struct Watching {
    controller: Controller<Farm>,
    namespace: Option<String>,
}

impl Watching {
    /// Configures a controller for one namespace, or for all.
    pub(super) fn new(
        client: &Client,
        namespace: Option<String>,
        farms: &Arc<Farms>,
        stop: &CancellationToken,
    ) -> Self {
        let watching = namespace.as_deref();
        let all = watcher::Config::default();
        let controller = Controller::new(api::<Farm>(client, watching), all.clone())
            .with_config(Config::default().concurrency(CONCURRENCY))
            .trigger_backoff(Pause)
            .graceful_shutdown_on(stop.clone().cancelled_owned());
        let controller = owned::<Deployment>(controller, client, watching, farms);
        let controller = owned::<ConfigMap>(controller, client, watching, farms);
        let controller = owned::<ServiceAccount>(controller, client, watching, farms);
        let controller = owned::<Role>(controller, client, watching, farms);
        let controller = owned::<RoleBinding>(controller, client, watching, farms);
        let controller = owned::<PodDisruptionBudget>(controller, client, watching, farms);
        let index = Arc::clone(farms);
        let controller = controller
            .watches(metadata::<Service>(client, watching), all, move |service| {
                let mut meant: Vec<FarmKey> = farm_of(&service.metadata).into_iter().collect();
                if let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) {
                    meant.extend(index.routing_to(namespace, name));
                }
                meant.iter().for_each(|farm| index.touch(farm));
                meant.into_iter().map(reference).collect::<Vec<_>>()
            })
            // A pass always lists the pods, so they need not be remembered as changed.
            .watches(metadata::<Pod>(client, watching), labelled(), |pod| {
                farm_of(&pod.metadata).map(reference)
            });
        Self {
            controller,
            namespace,
        }
    }

    /// Cache of the watched farms.
    pub(super) fn store(&self) -> Store<Farm> {
        self.controller.store()
    }

    /// Completes when the farms have been listed and are in the store.
    pub(super) fn listed(&self, client: &Client) -> impl Future<Output = ()> + Send + use<> {
        let api = metadata::<TLSFarm>(client, self.namespace.as_deref());
        let store = self.store();
        // The store's wait wakes one waiter, and the controller needs it; poll for readiness instead.
        async move {
            let mut tries = tokio::time::interval(LISTING_INTERVAL);
            loop {
                tries.tick().await;
                match api.list(&ListParams::default().limit(1)).await {
                    Ok(farms) if farms.items.is_empty() || !store.is_empty() => return,
                    Ok(_) => {}
                    Err(error) => debug!(
                        error = describe(&error),
                        "failed to list TLSFarm objects, will retry"
                    ),
                }
            }
        }
    }

    /// Runs until `stop` is cancelled and all running reconciliations have finished.
    pub(super) async fn run(self, context: Context) {
        let namespace = self.namespace.unwrap_or_else(|| "all".into());
        let context = Arc::new(context);
        let results = self
            .controller
            .run(reconcile, after_failure, Arc::clone(&context));
        results
            .for_each(|result| {
                match result {
                    // Failed passes log their own errors.
                    Ok(_) | Err(Error::ReconcilerFailed(..)) => {}
                    Err(Error::ObjectNotFound(farm)) => {
                        if let Some(namespace) = farm.namespace {
                            let key = FarmKey {
                                namespace,
                                name: farm.name,
                            };
                            debug!(
                                namespace = key.namespace,
                                farm = key.name,
                                "TLSFarm object no longer exists"
                            );
                            forget(&key, &context.farms, &context.metrics);
                        }
                    }
                    Err(error) => {
                        warn!(
                            namespace,
                            error = with_causes(&error),
                            "watch interrupted, will retry"
                        );
                    }
                }
                std::future::ready(())
            })
            .await;
    }
}

/// Fixed back-off after the failure of a watch.
///
/// All watches of a controller share it, and all of them fail when the API server is unreachable: exponential back-off
/// would add up to minutes after the server is back.
struct Pause;

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(WATCH_PAUSE.mul_f64(0.5 + rand::random::<f64>()))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {}
}

/// Watches the farms' objects of one kind.
fn owned<K>(
    controller: Controller<Farm>,
    client: &Client,
    namespace: Option<&str>,
    farms: &Arc<Farms>,
) -> Controller<Farm>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let farms = Arc::clone(farms);
    controller.watches(metadata::<K>(client, namespace), labelled(), move |object| {
        let farm = farm_of(&object.metadata)?;
        farms.touch(&farm);
        Some(reference(farm))
    })
}

fn labelled() -> watcher::Config {
    watcher::Config::default().labels(FARM_LABEL)
}

fn reference(farm: FarmKey) -> ObjectRef<Farm> {
    ObjectRef::new(&farm.name).within(&farm.namespace)
}

fn metadata<K>(client: &Client, namespace: Option<&str>) -> Api<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    api(client, namespace)
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}
