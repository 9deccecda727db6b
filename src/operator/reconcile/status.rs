//! Writes a farm's status and publishes Events for its changes.

use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Resource};
use serde_json::{Value, json};
use tracing::info;

use crate::api::{Condition, ConditionStatus, TLSFarm, TLSFarmStatus};
use crate::operator::cluster::events::{changed, transitions};
use crate::operator::context::Context;
use crate::operator::error::ReconcileError;
use crate::operator::fleet::memory::FarmMemory;
use crate::operator::names::{FarmId, MANAGER};

/// Writes `status` if it differs from the current one.
pub(crate) async fn publish(
    farm: &TLSFarm,
    id: &FarmId,
    context: &Context,
    memory: &mut FarmMemory,
    status: TLSFarmStatus,
) -> Result<(), ReconcileError> {
    let before = memory.status(farm);
    if before == Some(&status) {
        return Ok(());
    }
    let old_conditions = before
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let told = transitions(old_conditions, &status.conditions);
    let api: Api<TLSFarm> = Api::namespaced(context.client.clone(), id.namespace());
    let patch = Patch::Apply(applied(id, &status));
    let answer = api
        .patch_status(id.name(), &PatchParams::apply(MANAGER).force(), &patch)
        .await;
    let written = answer.map_err(ReconcileError::api("update", "the status"))?;
    context.metrics.wrote("TLSFarm");
    // Of a new farm only what is wrong: the rest has not happened yet.
    let is_news =
        |condition: &&Condition| !old_conditions.is_empty() || condition.status == ConditionStatus::False;
    for condition in changed(old_conditions, &status.conditions).filter(is_news) {
        info!(
            namespace = id.namespace(),
            farm = id.name(),
            condition = %condition.type_,
            status = %condition.status,
            reason = %condition.reason,
            message = condition.message,
            "condition changed"
        );
    }
    memory.wrote_status(&written);
    context
        .events
        .publish(&farm.object_ref(&()), told, &context.metrics)
        .await;
    Ok(())
}

/// The body of a server-side apply of the status. The UID prevents writing to a new farm of the same name.
pub(crate) fn applied(id: &FarmId, status: &TLSFarmStatus) -> Value {
    let resource = ApiResource::erase::<TLSFarm>(&());
    json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": id.name(), "namespace": id.namespace(), "uid": id.uid},
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::names::id;

    #[test]
    fn a_status_patch_names_the_uid_and_sets_only_the_status() {
        let status = TLSFarmStatus {
            proxies: "3/3".into(),
            ..TLSFarmStatus::default()
        };
        let body = applied(&id("shop"), &status);
        let metadata = json!({"name": "shop", "namespace": "web", "uid": "uid-of-shop"});
        assert_eq!(
            (&body["apiVersion"], &body["kind"], &body["metadata"]),
            (&json!("tlsfarm.dev/v1alpha1"), &json!("TLSFarm"), &metadata)
        );
        assert_eq!(body["status"]["proxies"], "3/3");
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(4));
    }
}
