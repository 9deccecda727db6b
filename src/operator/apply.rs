//! Bringing a farm's objects to what they should be: server-side apply, refusing what is not ours, removing orphans.
//!
//! At rest nothing is sent. An object is applied when what it should be has changed, or when the API server's record of
//! the fields that we own has: a field that somebody else sets to another value, or removes, leaves that record. So drift
//! is repaired, while defaults, normalisation and the fields of others never cause a write.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::info;

use super::build::{CONFIG_KEY, Desired, Object};
use super::error::ReconcileError;
use super::kind::Kind;
use super::metrics::Metrics;
use super::names::{FarmId, MANAGER, Ownership};
use super::validate::Refusal;
use crate::api::{FARM_LABEL, Reason};
use crate::runtime::cluster::describe;

/// What is remembered of the objects that were applied.
pub(super) type Applied = BTreeMap<(Kind, String), Record>;

/// One object right after it was applied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Record {
    uid: Option<String>,
    desired: Value,
    owned_fields: Option<Value>,
}

/// The farm's objects as they are.
pub(super) struct Inspection {
    live: BTreeMap<(Kind, String), DynamicObject>,
    orphans: Vec<(Kind, DynamicObject)>,
    /// An object that has one of the farm's names and is not the farm's.
    pub(super) conflict: Option<Refusal>,
}

/// What status is told of the farm's objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    pub(super) deployment: Option<Deployment>,
    pub(super) service: Option<Service>,
    /// Fingerprint of the configuration that proxies should run.
    pub(super) config: Option<String>,
}

/// Why objects were not applied.
pub(super) enum ApplyError {
    /// The API server says that the spec makes no valid object.
    Refused(Refusal),
    /// Anything else; it is tried again.
    Failed(ReconcileError),
}

/// Looks at everything that has the farm's label or one of the names that it wants.
pub(super) async fn inspect(
    client: &Client,
    id: &FarmId,
    desired: &Desired,
) -> Result<Inspection, ReconcileError> {
    let wanted = desired.objects().into_iter();
    let names: Vec<_> = wanted.map(|object| (object.kind, object.name)).collect();
    let labelled = ListParams::default().labels(&format!("{FARM_LABEL}={}", id.name()));
    let mut inspection = Inspection {
        live: BTreeMap::new(),
        orphans: Vec::new(),
        conflict: None,
    };
    for kind in Kind::ALL {
        let listed = api(client, id, kind).list(&labelled).await;
        for object in listed.map_err(ReconcileError::api("list", format!("{kind}s")))? {
            let key = (kind, object.name_any());
            if names.contains(&key) {
                inspection.live.insert(key, object);
            } else if id.ownership(&object.metadata) == Ownership::Ours {
                inspection.orphans.push((kind, object));
            }
        }
    }
    for (kind, name) in names {
        let key = (kind, name);
        if let Entry::Vacant(absent) = inspection.live.entry(key) {
            // Absent, or there without our label.
            let name = &absent.key().1;
            let found = api(client, id, kind).get_opt(name).await;
            if let Some(object) = found.map_err(ReconcileError::api("get", named(absent.key())))? {
                absent.insert(object);
            }
        }
    }
    inspection.conflict = inspection
        .live
        .iter()
        .find_map(|(key, object)| conflict(&named(key), id.ownership(&object.metadata)));
    Ok(inspection)
}

/// Tells that an object keeps the farm from being carried out.
pub(super) fn conflict(object: &str, ownership: Ownership) -> Option<Refusal> {
    let message = match ownership {
        Ownership::Ours => return None,
        Ownership::Leftover => {
            format!("{object} is left from a deleted farm of the same name and about to go")
        }
        Ownership::Foreign => format!(
            "{object} exists and is not this farm's, so it is left alone; rename the farm or remove the object"
        ),
    };
    Some(Refusal::new(Reason::NameConflict, message))
}

impl Inspection {
    /// What status is told while nothing is applied.
    pub(super) fn live(&self, id: &FarmId) -> Live {
        let name = id.proxy_name();
        Live {
            deployment: self.ours(id, Kind::Deployment, &name),
            service: self.ours(id, Kind::Service, &name),
            config: self
                .ours::<ConfigMap>(id, Kind::ConfigMap, &name)
                .and_then(|config_map| config_map.data?.remove(CONFIG_KEY))
                .map(|file| crate::config::fingerprint(file.as_bytes())),
        }
    }

    fn ours<K>(&self, id: &FarmId, kind: Kind, name: &str) -> Option<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        let object = self.live.get(&(kind, name.to_owned()))?;
        if id.ownership(&object.metadata) != Ownership::Ours {
            return None;
        }
        object.clone().try_parse().ok()
    }
}

/// Applies what differs and deletes orphans. Nothing may conflict.
pub(super) async fn apply(
    client: &Client,
    id: &FarmId,
    desired: &Desired,
    mut inspection: Inspection,
    applied: &mut Applied,
    metrics: &Metrics,
) -> Result<Live, ApplyError> {
    let objects = desired.objects();
    let due: Vec<&Object> = objects
        .iter()
        .filter(|object| {
            let key = (object.kind, object.name.clone());
            let as_it_should_be = match (inspection.live.get(&key), applied.get(&key)) {
                (Some(live), Some(record)) => *record == Record::of(live, object),
                _ => false,
            };
            !as_it_should_be
        })
        .collect();
    // A spec can make a Deployment or Service that the API server refuses; then nothing at all may change.
    for object in due
        .iter()
        .filter(|object| matches!(object.kind, Kind::Deployment | Kind::Service))
    {
        patch(client, id, object, PatchParams::apply(MANAGER).force().dry_run()).await?;
    }
    for object in due {
        let live = patch(client, id, object, PatchParams::apply(MANAGER).force()).await?;
        metrics.wrote(object.kind);
        let key = (object.kind, object.name.clone());
        applied.insert(key.clone(), Record::of(&live, object));
        inspection.live.insert(key, live);
    }
    for (kind, orphan) in &inspection.orphans {
        delete(client, id, *kind, orphan).await?;
        metrics.wrote(kind);
    }
    Ok(inspection.live(id))
}

async fn patch(
    client: &Client,
    id: &FarmId,
    object: &Object,
    how: PatchParams,
) -> Result<DynamicObject, ApplyError> {
    let api = api(client, id, object.kind);
    let answer = api.patch(&object.name, &how, &Patch::Apply(&object.body)).await;
    answer.map_err(|error| {
        let what = format!("{} {}", object.kind, object.name);
        match &error {
            // Bad request, too large, unprocessable.
            kube::Error::Api(status) if matches!(status.code, 400 | 413 | 422) => {
                let message = format!("the API server refuses {what}: {}", describe(&error));
                ApplyError::Refused(Refusal::new(Reason::Invalid, message))
            }
            _ => ApplyError::Failed(ReconcileError::api("apply", what)(error)),
        }
    })
}

async fn delete(client: &Client, id: &FarmId, kind: Kind, orphan: &DynamicObject) -> Result<(), ApplyError> {
    let this_one_only = DeleteParams {
        preconditions: Some(Preconditions {
            uid: orphan.uid(),
            ..Preconditions::default()
        }),
        ..DeleteParams::background()
    };
    let name = orphan.name_any();
    match api(client, id, kind).delete(&name, &this_one_only).await {
        Ok(_) => {
            info!(namespace = id.namespace(), %kind, name, "deleted an object that the farm no longer needs")
        }
        // It is gone, or another object has its name now.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
        Err(error) => {
            let failed = ReconcileError::api("delete", format!("{kind} {name}"))(error);
            return Err(ApplyError::Failed(failed));
        }
    }
    Ok(())
}

impl Record {
    fn of(live: &DynamicObject, object: &Object) -> Self {
        let owned = live.metadata.managed_fields.iter().flatten().find(|entry| {
            entry.manager.as_deref() == Some(MANAGER)
                && entry.operation.as_deref() == Some("Apply")
                && entry.subresource.as_deref().is_none_or(str::is_empty)
        });
        Self {
            uid: live.uid(),
            desired: object.body.clone(),
            owned_fields: owned
                .and_then(|entry| entry.fields_v1.clone())
                .map(|fields| fields.0),
        }
    }
}

fn named((kind, name): &(Kind, String)) -> String {
    format!("{kind} {name}")
}

fn api(client: &Client, id: &FarmId, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), id.namespace(), &kind.resource())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn live(fields: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "shop-proxy",
                "uid": "1",
                "managedFields": [
                    {"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}}},
                    {"manager": "tlsfarm", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields},
                ],
            },
            "spec": {"type": "ClusterIP"},
        }))
        .expect("an object")
    }

    fn wanted(body: Value) -> Object {
        Object {
            kind: Kind::Service,
            name: "shop-proxy".into(),
            body,
        }
    }

    #[test]
    fn only_a_change_of_our_fields_or_of_what_we_want_is_a_difference() {
        let ours = json!({"f:spec": {"f:type": {}}});
        let record = Record::of(&live(ours.clone()), &wanted(json!({"a": 1})));

        let mut touched_by_others = live(ours.clone());
        touched_by_others.data["status"] = json!({"loadBalancer": {}});
        touched_by_others.metadata.resource_version = Some("99".into());
        assert_eq!(record, Record::of(&touched_by_others, &wanted(json!({"a": 1}))));

        assert_ne!(
            record,
            Record::of(&live(json!({"f:spec": {}})), &wanted(json!({"a": 1}))),
            "a lost field"
        );
        assert_ne!(
            record,
            Record::of(&live(ours.clone()), &wanted(json!({"a": 2}))),
            "a new wish"
        );
        let mut recreated = live(ours);
        recreated.metadata.uid = Some("2".into());
        assert_ne!(
            record,
            Record::of(&recreated, &wanted(json!({"a": 1}))),
            "another object of the name"
        );
    }

    #[test]
    fn conflicts_name_the_object() {
        assert_eq!(conflict("ConfigMap shop-proxy", Ownership::Ours), None);
        let refusal = conflict("ConfigMap shop-proxy", Ownership::Foreign).expect("refused");
        assert_eq!(refusal.reason, Reason::NameConflict);
        assert!(refusal.message.contains("ConfigMap shop-proxy"));
    }
}
