//! Shared state of all reconciliations of a controller.

use std::sync::Arc;

use kube::Client;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;

use super::build::PodDefaults;
use super::cluster::events::Events;
use super::fleet::memory::Farms;
use super::metrics::OperatorMetrics;
use crate::api::TLSFarm;

/// Shared state of all reconciliations of a controller.
pub(crate) struct Context {
    pub(crate) client: Client,
    /// The farms that the same controller watches.
    pub(crate) store: Store<DeserializeGuard<TLSFarm>>,
    pub(crate) pod_defaults: PodDefaults,
    pub(crate) farms: Arc<Farms>,
    pub(crate) metrics: Arc<OperatorMetrics>,
    pub(crate) events: Arc<Events>,
}
