//! Applies a farm's objects: server-side apply, conflict detection for objects of other owners, deletion of orphans.
//!
//! In a steady state nothing is written. An object is applied when its desired state has changed, or when the set of
//! fields that the operator owns (`managedFields`) has changed: a field that another client changes or removes leaves
//! that set. So drift is repaired, while defaulting, normalization and the fields of other managers never cause a
//! write.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::info;

use super::kind::Kind;
use crate::api::{FARM_LABEL, Reason};
use crate::compile::mounts::CONFIG_KEY;
use crate::operator::build::{Desired, Object};
use crate::operator::decide::validate::FarmRefusal;
use crate::operator::error::ReconcileError;
use crate::operator::metrics::OperatorMetrics;
use crate::operator::names::{FarmId, MANAGER, Ownership};
use crate::runtime::kubernetes::describe;

/// Records of the objects that were applied.
pub(crate) type Applied = BTreeMap<Key, Record>;

/// Kind and name of an object in the farm's namespace.
type Key = (Kind, String);

/// State of an object right after it was applied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    uid: Option<String>,
    desired: Value,
    owned_fields: Option<Value>,
}

/// The existing objects of a farm.
pub(crate) struct Inspection {
    live: BTreeMap<Key, DynamicObject>,
    orphans: Vec<(Kind, DynamicObject)>,
    /// An object with one of the farm's names that is not owned by the farm.
    pub(crate) conflict: Option<FarmRefusal>,
}

/// State of the farm's objects, for the status.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    pub(crate) deployment: Option<Deployment>,
    pub(crate) service: Option<Service>,
    /// Fingerprint of the configuration that proxies should load.
    pub(crate) config: Option<String>,
}

/// Why applying the objects failed.
pub(crate) enum ApplyError {
    /// The API server rejected an object as invalid because of the spec.
    Refused(FarmRefusal),
    /// Any other error; it is retried.
    Failed(ReconcileError),
}

/// Reads all objects that have the farm's label or one of the names of its desired objects.
pub(crate) async fn inspect(
    client: &Client,
    id: &FarmId,
    desired: &Desired,
) -> Result<Inspection, ReconcileError> {
    let objects = desired.objects().into_iter();
    let wanted: Vec<Key> = objects.map(|object| (object.kind, object.name)).collect();
    let labelled = ListParams::default().labels(&format!("{FARM_LABEL}={}", id.name()));
    let mut found = Vec::new();
    for kind in Kind::ALL {
        let listed = api(client, id, kind).list(&labelled).await;
        let listed = listed.map_err(ReconcileError::api("list", format!("{kind}s")))?;
        found.extend(listed.items.into_iter().map(|object| (kind, object)));
    }
    for key in not_listed(&wanted, &found) {
        let (kind, name) = key;
        let object = api(client, id, *kind).get_opt(name).await;
        let object = object.map_err(ReconcileError::api("get", named(key)))?;
        found.extend(object.map(|object| (*kind, object)));
    }
    Ok(Inspection::of(id, &wanted, found))
}

/// The desired objects that do not exist or lack the farm's label.
fn not_listed<'a>(wanted: &'a [Key], listed: &[(Kind, DynamicObject)]) -> Vec<&'a Key> {
    let listed: Vec<Key> = listed
        .iter()
        .map(|(kind, object)| (*kind, object.name_any()))
        .collect();
    wanted.iter().filter(|key| !listed.contains(key)).collect()
}

/// Returns the refusal for an object that is not owned by the farm; None if it is.
pub(crate) fn conflict(object: &str, ownership: Ownership) -> Option<FarmRefusal> {
    let message = match ownership {
        Ownership::Ours => return None,
        Ownership::Leftover => {
            format!(
                "{object} belongs to a deleted farm of the same name and has not been garbage-collected yet"
            )
        }
        Ownership::Foreign => format!(
            "{object} already exists and is not owned by this farm; rename the farm or delete the object"
        ),
    };
    Some(FarmRefusal::new(Reason::NameConflict, message))
}

impl Inspection {
    /// Classifies the objects by desired names and by owner.
    ///
    /// Anyone can set labels, so an object with the farm's label that is not owned by the farm is not an orphan.
    fn of(id: &FarmId, wanted: &[Key], found: Vec<(Kind, DynamicObject)>) -> Self {
        let (mut live, mut orphans) = (BTreeMap::new(), Vec::new());
        for (kind, object) in found {
            let key = (kind, object.name_any());
            if wanted.contains(&key) {
                live.insert(key, object);
            } else if id.ownership(&object.metadata) == Ownership::Ours {
                orphans.push((kind, object));
            }
        }
        let conflict = live
            .iter()
            .find_map(|(key, object)| conflict(&named(key), id.ownership(&object.metadata)));
        Self {
            live,
            orphans,
            conflict,
        }
    }

    /// State for the status if nothing is applied.
    pub(crate) fn live(&self, id: &FarmId) -> Live {
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

/// One request to the API server.
#[derive(Debug, PartialEq)]
enum Request<'a> {
    /// Check by dry run whether the API server accepts the object.
    DryRun(&'a Object),
    Apply(&'a Object),
    Delete(Kind, &'a DynamicObject),
}

/// Applies the objects that differ and deletes orphans. There must be no conflict.
pub(crate) async fn apply(
    client: &Client,
    id: &FarmId,
    desired: &Desired,
    mut inspection: Inspection,
    applied: &mut Applied,
    metrics: &OperatorMetrics,
) -> Result<Live, ApplyError> {
    let objects = desired.objects();
    let orphans = std::mem::take(&mut inspection.orphans);
    for request in requests(&objects, &inspection.live, &orphans, applied) {
        match request {
            Request::DryRun(object) => {
                patch(client, id, object, PatchParams::apply(MANAGER).force().dry_run()).await?;
            }
            Request::Apply(object) => {
                let live = patch(client, id, object, PatchParams::apply(MANAGER).force()).await?;
                metrics.wrote(object.kind);
                let key = (object.kind, object.name.clone());
                applied.insert(key.clone(), Record::of(&live, object));
                inspection.live.insert(key, live);
            }
            Request::Delete(kind, orphan) => {
                delete(client, id, kind, orphan).await?;
                metrics.wrote(kind);
            }
        }
    }
    Ok(inspection.live(id))
}

/// Returns the requests that bring `live` to the desired state, in order.
///
/// If the API server rejects the Deployment or a Service of a spec, no object may be changed. So all of them are
/// checked by dry run before the first write.
fn requests<'a>(
    objects: &'a [Object],
    live: &BTreeMap<Key, DynamicObject>,
    orphans: &'a [(Kind, DynamicObject)],
    applied: &Applied,
) -> Vec<Request<'a>> {
    let is_due = |object: &&Object| {
        let key = (object.kind, object.name.clone());
        match (live.get(&key), applied.get(&key)) {
            (Some(live), Some(record)) => *record != Record::of(live, object),
            _ => true,
        }
    };
    let due: Vec<&Object> = objects.iter().filter(is_due).collect();
    let may_be_refused = due
        .iter()
        .filter(|object| matches!(object.kind, Kind::Deployment | Kind::Service));
    let dry_runs = may_be_refused.map(|object| Request::DryRun(object));
    let applies = due.iter().map(|object| Request::Apply(object));
    let deletions = orphans
        .iter()
        .map(|(kind, orphan)| Request::Delete(*kind, orphan));
    dry_runs.chain(applies).chain(deletions).collect()
}

async fn patch(
    client: &Client,
    id: &FarmId,
    object: &Object,
    how: PatchParams,
) -> Result<DynamicObject, ApplyError> {
    let api = api(client, id, object.kind);
    let answer = api.patch(&object.name, &how, &Patch::Apply(&object.body)).await;
    answer.map_err(|error| not_applied(object, error))
}

/// Distinguishes an invalid object, caused by the spec, from an error to retry.
fn not_applied(object: &Object, error: kube::Error) -> ApplyError {
    let what = format!("{} {}", object.kind, object.name);
    match &error {
        // Bad request, too large, unprocessable.
        kube::Error::Api(status) if matches!(status.code, 400 | 413 | 422) => {
            let message = format!("the API server rejected {what}: {}", describe(&error));
            ApplyError::Refused(FarmRefusal::new(Reason::Invalid, message))
        }
        _ => ApplyError::Failed(ReconcileError::api("apply", what)(error)),
    }
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
        Err(error) if is_gone(&error) => {}
        Err(error) => {
            let failed = ReconcileError::api("delete", format!("{kind} {name}"))(error);
            return Err(ApplyError::Failed(failed));
        }
    }
    Ok(())
}

/// Whether an orphan no longer exists, or was replaced by an object of the same name.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
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

fn named((kind, name): &Key) -> String {
    format!("{kind} {name}")
}

fn api(client: &Client, id: &FarmId, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), id.namespace(), &kind.resource())
}

#[cfg(test)]
pub(crate) mod tests;
