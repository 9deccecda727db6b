//! Farms that cannot be read, such as those that an older or newer release wrote: the status says so, nothing else is
//! touched, and all other farms go on.

use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube::core::error_boundary::InvalidObject;
use serde_json::Value;

use super::error::ReconcileError;
use super::names::{FarmId, MANAGER};
use super::publish::applied;
use super::reconcile::Context;
use crate::api::{
    Condition, ConditionStatus, ConditionType, Reason, RingStatus, TLSFarm, TLSFarmStatus, merge_conditions,
};

/// Only a change of the farm can help.
const NEXT_LOOK: Duration = Duration::from_secs(300);

const TYPES: [ConditionType; 6] = [
    ConditionType::Accepted,
    ConditionType::CertificatesReady,
    ConditionType::BackendsReady,
    ConditionType::Available,
    ConditionType::KeysSynced,
    ConditionType::Ready,
];

/// Says in the farm's status that it cannot be read.
pub(super) async fn report(
    invalid: &InvalidObject,
    id: &FarmId,
    context: &Context,
) -> Result<Duration, ReconcileError> {
    let resource = ApiResource::erase::<TLSFarm>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), id.namespace(), &resource);
    let found = api
        .get_opt(id.name())
        .await
        .map_err(ReconcileError::api("get", "the farm"))?;
    let Some(farm) = found else {
        return Ok(NEXT_LOOK);
    };
    let nothing = Value::Null;
    let before = farm.data.get("status").unwrap_or(&nothing);
    let status = status(invalid, before, Timestamp::now());
    let body = applied(id, &status);
    if body.get("status") == Some(before) {
        return Ok(NEXT_LOOK);
    }
    let params = PatchParams::apply(MANAGER).force();
    let answer = api.patch_status(id.name(), &params, &Patch::Apply(body)).await;
    answer.map_err(ReconcileError::api("update", "the status"))?;
    context.metrics.wrote("TLSFarm");
    Ok(NEXT_LOOK)
}

/// The status keeps what it says of the ring: its generation must never be forgotten.
fn status(invalid: &InvalidObject, before: &Value, now: Timestamp) -> TLSFarmStatus {
    let generation = invalid.metadata.generation;
    let whole: Option<TLSFarmStatus> = serde_json::from_value(before.clone()).ok();
    let ring: Option<RingStatus> = serde_json::from_value(before["ring"].clone()).ok();
    let condition = |type_| {
        let (status, reason, message) = match type_ {
            ConditionType::Accepted | ConditionType::Ready => (
                ConditionStatus::False,
                Reason::Invalid,
                format!("the object cannot be read: {}", invalid.error),
            ),
            _ => (ConditionStatus::Unknown, Reason::Pending, String::new()),
        };
        Condition {
            type_,
            status,
            reason,
            message,
            observed_generation: generation.unwrap_or_default(),
            last_transition_time: Timestamp::from_second(now.as_second()).unwrap_or(now),
        }
    };
    let old = whole
        .as_ref()
        .map(|status| status.conditions.clone())
        .unwrap_or_default();
    TLSFarmStatus {
        observed_generation: generation,
        ring,
        conditions: merge_conditions(&old, TYPES.map(condition).into()),
        ..whole.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unreadable_farm_says_so_and_keeps_its_ring_generation() {
        let invalid = InvalidObject {
            error: "missing field `hosts`".into(),
            metadata: Default::default(),
        };
        let before = json!({
            "conditions": "nonsense",
            "ring": {
                "generation": 7, "primary": "x", "keys": [], "acknowledged": 1, "acked": "1/1",
                "lastRotation": "2026-01-01T00:00:00Z", "nextRotation": "2026-01-01T01:00:00Z",
            },
        });
        let first = status(&invalid, &before, Timestamp::UNIX_EPOCH);
        assert_eq!(first.ring.as_ref().map(|ring| ring.generation), Some(7));
        assert_eq!(first.conditions[0].reason, Reason::Invalid);
        assert!(first.conditions[0].message.contains("hosts"));
        let written = serde_json::to_value(&first).expect("serializes");
        let later = Timestamp::from_second(1000).expect("in range");
        assert_eq!(status(&invalid, &written, later), first, "it is written once");
    }
}
