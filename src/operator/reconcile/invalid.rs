//! TLSFarm objects that fail to parse, for example those of an older or newer release: the error is written to the
//! status, nothing else is changed, and all other farms are reconciled.

use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube::core::error_boundary::InvalidObject;
use serde_json::Value;

use super::status::applied;
use crate::api::{
    Condition, ConditionStatus, ConditionType, KeyRole, KeyStatus, Reason, RingStatus, TLSFarm,
    TLSFarmStatus, merge_conditions,
};
use crate::operator::context::Context;
use crate::operator::error::ReconcileError;
use crate::operator::names::{FarmId, MANAGER};

/// Requeue interval: only a change of the farm can fix it.
const NEXT_LOOK: Duration = Duration::from_secs(300);

const TYPES: [ConditionType; 8] = [
    ConditionType::Accepted,
    ConditionType::CertificatesReady,
    ConditionType::BackendsReady,
    ConditionType::Available,
    ConditionType::KeysSynced,
    ConditionType::SessionCacheReady,
    ConditionType::TrustedProxiesSafe,
    ConditionType::Ready,
];

/// Writes the parse error to the farm's status.
pub(crate) async fn report(
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
    let generation = status.ring.as_ref().map(|ring| ring.generation);
    context.metrics.ring(&id.key, generation.unwrap_or_default());
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

/// A valid status with the parse error, whatever `before` was.
fn status(invalid: &InvalidObject, before: &Value, now: Timestamp) -> TLSFarmStatus {
    let generation = invalid.metadata.generation;
    let whole: Option<TLSFarmStatus> = serde_json::from_value(before.clone()).ok();
    let condition = |type_| {
        let (status, reason, message) = match type_ {
            ConditionType::Accepted | ConditionType::Ready => (
                ConditionStatus::False,
                Reason::Invalid,
                format!("failed to parse the object: {}", invalid.error),
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
        ring: before.get("ring").and_then(ring),
        conditions: merge_conditions(&old, TYPES.map(condition).into()),
        ..whole.unwrap_or_default()
    }
}

/// The ring in the status, or at least its generation, which must be preserved.
fn ring(before: &Value) -> Option<RingStatus> {
    let whole: Option<RingStatus> = serde_json::from_value(before.clone()).ok();
    whole.or_else(|| {
        let listed = before.get("keys").and_then(Value::as_array).into_iter().flatten();
        let mut keys: Vec<KeyStatus> = listed
            .filter_map(|key| serde_json::from_value(key.clone()).ok())
            .collect();
        if keys.is_empty() {
            // Applying an empty list would remove the field, which the schema requires.
            keys.push(KeyStatus {
                id: "unreadable".into(),
                role: KeyRole::Primary,
                created_at: Timestamp::UNIX_EPOCH,
                open_until: Timestamp::UNIX_EPOCH,
            });
        }
        Some(RingStatus {
            generation: before.get("generation")?.as_u64()?,
            primary: String::new(),
            keys,
            acknowledged: 0,
            acked: String::new(),
            last_rotation: Timestamp::UNIX_EPOCH,
            next_rotation: Timestamp::UNIX_EPOCH,
        })
    })
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
            "ring": {"generation": 7, "lastRotation": "9999-12-31T23:59:59-23:00"},
        });
        let first = status(&invalid, &before, Timestamp::UNIX_EPOCH);
        assert_eq!(first.ring.as_ref().map(|ring| ring.generation), Some(7));
        assert_eq!(first.conditions[0].reason, Reason::Invalid);
        assert!(first.conditions[0].message.contains("hosts"));
        let written = serde_json::to_value(&first).expect("serializes");
        let later = Timestamp::from_second(1000).expect("in range");
        assert_eq!(
            status(&invalid, &written, later),
            first,
            "a later pass changes nothing"
        );
    }

    fn unreadable() -> InvalidObject {
        let metadata = kube::api::ObjectMeta {
            generation: Some(4),
            ..Default::default()
        };
        let error = "missing field `hosts`".into();
        InvalidObject { error, metadata }
    }

    #[test]
    fn an_unreadable_farm_reports_only_what_is_known() {
        let status = status(&unreadable(), &Value::Null, Timestamp::UNIX_EPOCH);
        assert_eq!(status.observed_generation, Some(4));
        assert_eq!(status.ring, None);
        for condition in status.conditions {
            let expected = match condition.type_ {
                ConditionType::Accepted | ConditionType::Ready => (ConditionStatus::False, Reason::Invalid),
                _ => (ConditionStatus::Unknown, Reason::Pending),
            };
            assert_eq!(
                (condition.status, condition.reason),
                expected,
                "{}",
                condition.type_
            );
            assert_eq!(condition.observed_generation, 4);
        }
    }

    #[test]
    fn keys_of_a_ring_that_can_be_read_stay_in_the_status() {
        let key = json!({
            "id": "0a", "role": "primary",
            "createdAt": "2026-01-01T00:00:00Z", "openUntil": "2026-01-02T00:00:00Z",
        });
        let ids = |keys: Value| {
            let before = json!({"ring": {"generation": 7, "keys": keys}});
            let ring = status(&unreadable(), &before, Timestamp::UNIX_EPOCH)
                .ring
                .expect("kept");
            ring.keys.into_iter().map(|key| key.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(json!([key, "nonsense"])), ["0a"]);
        assert_eq!(ids(json!([])), ["unreadable"], "the schema requires one");
        let nothing = json!({"ring": {"keys": [key]}});
        assert_eq!(status(&unreadable(), &nothing, Timestamp::UNIX_EPOCH).ring, None);
        let whole = json!({"ring": {
            "generation": 7, "primary": "0a", "keys": [key], "acknowledged": 2, "acked": "2/3",
            "lastRotation": "2026-01-01T00:00:00Z", "nextRotation": "2026-01-01T01:00:00Z",
        }});
        let ring = status(&unreadable(), &whole, Timestamp::UNIX_EPOCH)
            .ring
            .expect("kept");
        assert_eq!((ring.acked.as_str(), ring.primary.as_str()), ("2/3", "0a"));
    }
}
