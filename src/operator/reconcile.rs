//! Runs reconciliations: time limit, errors and back-off. The steps are in `pass`.

mod backends;
mod invalid;
mod pass;
mod ring;
mod session_cache;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Resource;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use tracing::{debug, warn};

use self::pass::pass;
use super::cluster::events::NewEvent;
use super::context::Context;
use super::decide::schedule::retry_after;
use super::error::ReconcileError;
use super::fleet::memory::Farms;
use super::metrics::OperatorMetrics;
use super::names::{FarmId, FarmKey};
use crate::api::TLSFarm;

/// Time limit of a reconciliation; only reached if the API server hangs.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Requeue interval of a farm that is being deleted.
const DELETION_INTERVAL: Duration = Duration::from_secs(5);

/// Number of consecutive failures after which an Event is published.
const FAILURES_TO_TELL: u32 = 3;

/// Reconciles a farm once. Fails if a step fails or the time limit is exceeded.
pub(super) async fn reconcile(
    farm: Arc<DeserializeGuard<TLSFarm>>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let Some(id) = FarmId::of(farm.meta()) else {
        return Ok(Action::await_change());
    };
    if farm.meta().deletion_timestamp.is_some() {
        // The garbage collector deletes the objects; applying them again would only delay it. A later pass finds the
        // farm deleted and drops its memory.
        return Ok(Action::requeue(DELETION_INTERVAL));
    }
    let started = Instant::now();
    let pass = async {
        match &farm.0 {
            Ok(farm) => pass(farm, &id, &context).await,
            Err(invalid) => invalid::report(invalid, &id, &context).await,
        }
    };
    let limited = tokio::time::timeout(TIME_LIMIT, pass).await;
    let result = limited.unwrap_or(Err(ReconcileError::Timeout(TIME_LIMIT)));
    context
        .metrics
        .reconciled(started.elapsed(), result.as_ref().err());
    match &result {
        Ok(next) => {
            debug!(namespace = id.namespace(), farm = id.name(), took = ?started.elapsed(), ?next, "reconciled");
            context.farms.succeeded(&id.key);
        }
        Err(error) => fail(&farm, &id, &context, error).await,
    }
    result.map(Action::requeue)
}

/// Logs and counts a failed reconciliation.
async fn fail(farm: &DeserializeGuard<TLSFarm>, id: &FarmId, context: &Context, error: &ReconcileError) {
    // Changes seen in this pass may not have been applied: inspect again.
    context.farms.touch(&id.key);
    let failures = context.farms.failed(&id.key);
    if let ReconcileError::NamespaceTerminating { .. } = error {
        debug!(namespace = id.namespace(), farm = id.name(), %error, "namespace is terminating, not reconciling the TLSFarm");
        return;
    }
    warn!(namespace = id.namespace(), farm = id.name(), %error, "reconciliation failed, will retry");
    if failures == FAILURES_TO_TELL {
        let told = NewEvent::warning(
            format!("{}Failed", error.reason()),
            "Reconcile",
            error.to_string(),
        );
        context
            .events
            .publish(&farm.object_ref(&()), [told], &context.metrics)
            .await;
    }
}

/// Requeues a failed reconciliation with back-off.
pub(super) fn after_failure(
    farm: Arc<DeserializeGuard<TLSFarm>>,
    _error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    let failures = FarmId::of(farm.meta()).map_or(1, |id| context.farms.failures(&id.key));
    Action::requeue(retry_after(failures, rand::random()))
}

/// Removes the state and metrics of a deleted farm.
pub(super) fn forget(farm: &FarmKey, farms: &Farms, metrics: &OperatorMetrics) {
    farms.forget(farm);
    metrics.forget(farm);
}
