use serde_json::json;

use super::*;
use crate::api::SessionCacheMode;
use crate::operator::build::tests::{desired, spec};
use crate::operator::names::id;

/// Who controls an object of the world below.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Shop,
    /// A deleted farm of the same name.
    FormerShop,
    OtherFarm,
    Nobody,
}

/// An object that bears the label of the farm `shop`, as anybody may set it.
fn found(kind: Kind, name: &str, owner: Owner) -> (Kind, DynamicObject) {
    let (owner_name, owner_uid) = match owner {
        Owner::Shop => ("shop", "uid-of-shop"),
        Owner::FormerShop => ("shop", "uid-of-former-shop"),
        Owner::OtherFarm | Owner::Nobody => ("other", "uid-of-other"),
    };
    let owners = json!([{
        "apiVersion": "tlsfarm.dev/v1alpha1",
        "kind": "TLSFarm",
        "name": owner_name,
        "uid": owner_uid,
        "controller": true,
    }]);
    let object = json!({
        "apiVersion": kind.resource().api_version,
        "kind": kind.to_string(),
        "metadata": {
            "name": name,
            "namespace": "web",
            "uid": format!("uid-of-{name}"),
            "labels": {FARM_LABEL: "shop"},
            "ownerReferences": if owner == Owner::Nobody { json!([]) } else { owners },
        },
    });
    (kind, serde_json::from_value(object).expect("an object"))
}

fn inspected(found: Vec<(Kind, DynamicObject)>) -> Inspection {
    let objects = desired(spec()).objects().into_iter();
    let wanted: Vec<Key> = objects.map(|object| (object.kind, object.name)).collect();
    Inspection::of(&id("shop"), &wanted, found)
}

/// An inspection of a farm that has nothing yet.
pub(in crate::operator) fn inspection(conflict: Option<FarmRefusal>) -> Inspection {
    Inspection {
        conflict,
        ..inspected(Vec::new())
    }
}

fn orphans(inspection: &Inspection) -> Vec<String> {
    let orphans = inspection.orphans.iter();
    orphans
        .map(|(kind, object)| named(&(*kind, object.name_any())))
        .collect()
}

#[test]
fn only_unwanted_objects_controlled_by_the_farm_are_deleted() {
    let inspection = inspected(vec![
        found(Kind::Service, "shop-proxy", Owner::Shop),
        found(Kind::Service, "shop-old", Owner::Shop),
        found(Kind::ConfigMap, "of-a-former-farm", Owner::FormerShop),
        found(Kind::ConfigMap, "of-another-farm", Owner::OtherFarm),
        found(Kind::Deployment, "of-a-user-who-copied-our-labels", Owner::Nobody),
        // The name is wanted, but of another kind.
        found(Kind::ServiceAccount, "shop-proxy-metrics", Owner::Shop),
    ]);
    assert_eq!(
        orphans(&inspection),
        ["Service shop-old", "ServiceAccount shop-proxy-metrics"]
    );
    assert_eq!(inspection.conflict, None, "nobody else has a name that is wanted");
    assert_eq!(inspection.live.len(), 1);
}

#[test]
fn a_foreign_object_with_a_wanted_name_is_a_conflict_and_not_an_orphan() {
    let whose = [
        (Owner::FormerShop, "deleted farm"),
        (Owner::OtherFarm, "not owned by this farm"),
        (Owner::Nobody, "not owned by this farm"),
    ];
    for (owner, words) in whose {
        let inspection = inspected(vec![
            found(Kind::ServiceAccount, "shop-proxy", Owner::Shop),
            found(Kind::ConfigMap, "shop-proxy", owner),
        ]);
        let refusal = inspection.conflict.as_ref().expect("refused");
        assert_eq!(refusal.reason, Reason::NameConflict);
        for word in ["ConfigMap shop-proxy", words] {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
        assert_eq!(orphans(&inspection), Vec::<String>::new());
    }
    let ours = inspected(vec![found(Kind::ConfigMap, "shop-proxy", Owner::Shop)]);
    assert_eq!(ours.conflict, None);
}

#[test]
fn status_is_computed_only_from_the_farms_own_objects() {
    let with_file = |owner| {
        let mut config_map = found(Kind::ConfigMap, "shop-proxy", owner);
        config_map.1.data["data"] = json!({CONFIG_KEY: "the file"});
        inspected(vec![
            config_map,
            found(Kind::Service, "shop-proxy", owner),
            found(Kind::Deployment, "shop-proxy", owner),
        ])
        .live(&id("shop"))
    };
    let ours = with_file(Owner::Shop);
    assert!(ours.service.is_some() && ours.deployment.is_some());
    assert_eq!(ours.config, Some(crate::config::fingerprint(b"the file")));
    let of_others = with_file(Owner::Nobody);
    assert!(of_others.service.is_none() && of_others.deployment.is_none());
    assert_eq!(of_others.config, None);
}

#[test]
fn wanted_names_without_a_labelled_object_are_looked_up_one_by_one() {
    let wanted =
        [Kind::Service, Kind::ConfigMap, Kind::Deployment].map(|kind| (kind, "shop-proxy".to_owned()));
    let listed = [
        found(Kind::ConfigMap, "shop-proxy", Owner::Shop),
        found(Kind::Service, "shop-old", Owner::Shop),
    ];
    assert_eq!(not_listed(&wanted, &listed), [&wanted[0], &wanted[2]]);
}

#[test]
fn deleting_an_orphan_tolerates_that_it_is_gone_or_replaced() {
    let refused = |code| kube::Error::Api(kube::core::Status::failure("no", "No").with_code(code).boxed());
    assert!(is_gone(&refused(404)) && is_gone(&refused(409)));
    assert!(!is_gone(&refused(403)) && !is_gone(&refused(500)));
    assert!(!is_gone(&kube::Error::TlsRequired));
}

/// The cluster as the last apply of `objects` left it.
fn after_apply(objects: &[Object]) -> (BTreeMap<Key, DynamicObject>, Applied) {
    let (mut live, mut applied) = (BTreeMap::new(), Applied::new());
    for object in objects {
        let key = (object.kind, object.name.clone());
        let (_, stored) = found(object.kind, &object.name, Owner::Shop);
        applied.insert(key.clone(), Record::of(&stored, object));
        live.insert(key, stored);
    }
    (live, applied)
}

fn described(requests: &[Request<'_>]) -> Vec<String> {
    let described = requests.iter().map(|request| match request {
        Request::DryRun(object) => format!("try {} {}", object.kind, object.name),
        Request::Apply(object) => format!("apply {} {}", object.kind, object.name),
        Request::Delete(kind, orphan) => format!("delete {kind} {}", orphan.name_any()),
    });
    described.collect()
}

#[test]
fn objects_that_may_be_refused_are_tried_before_anything_is_written() {
    let mut with_sidecars = spec();
    with_sidecars["resumption"] = json!({"sessionCache": {"mode": SessionCacheMode::Sidecar}});
    let objects = desired(with_sidecars).objects();
    let orphans = [found(Kind::Service, "shop-old", Owner::Shop)];
    let (nothing, no_record) = (BTreeMap::new(), Applied::new());
    assert_eq!(
        described(&requests(&objects, &nothing, &orphans, &no_record)),
        [
            "try Service shop-proxy",
            "try Service shop-proxy-metrics",
            "try Service shop-cache",
            "try Deployment shop-proxy",
            "apply ServiceAccount shop-proxy",
            "apply Role shop-proxy",
            "apply RoleBinding shop-proxy",
            "apply ConfigMap shop-proxy",
            "apply Service shop-proxy",
            "apply Service shop-proxy-metrics",
            "apply Service shop-cache",
            "apply Deployment shop-proxy",
            "apply PodDisruptionBudget shop-proxy",
            "delete Service shop-old",
        ]
    );
}

#[test]
fn without_changes_nothing_is_sent() {
    let objects = desired(spec()).objects();
    let (live, applied) = after_apply(&objects);
    assert_eq!(requests(&objects, &live, &[], &applied), []);
}

#[test]
fn only_changed_objects_are_tried_and_applied() {
    let objects = desired(spec()).objects();
    let due_after = |change: &dyn Fn(&mut BTreeMap<Key, DynamicObject>, &mut Applied)| {
        let (mut live, mut applied) = after_apply(&objects);
        change(&mut live, &mut applied);
        described(&requests(&objects, &live, &[], &applied))
    };
    let key = |kind| (kind, "shop-proxy".to_owned());
    let deployment = ["try Deployment shop-proxy", "apply Deployment shop-proxy"];
    assert_eq!(
        due_after(&|live, _| _ = live.remove(&key(Kind::Deployment))),
        deployment,
        "it was deleted"
    );
    assert_eq!(
        due_after(&|_, applied| _ = applied.remove(&key(Kind::Deployment))),
        deployment,
        "the operator was restarted"
    );
    let replace = |live: &mut BTreeMap<Key, DynamicObject>| {
        let object = live.get_mut(&key(Kind::ConfigMap)).expect("there");
        object.metadata.uid = Some("another".into());
    };
    assert_eq!(
        due_after(&|live, _| replace(live)),
        ["apply ConfigMap shop-proxy"],
        "somebody replaced it"
    );

    let mut scaled = spec();
    scaled["replicas"] = json!(7);
    let (live, applied) = after_apply(&objects);
    let scaled = desired(scaled).objects();
    assert_eq!(
        described(&requests(&scaled, &live, &[], &applied)),
        deployment,
        "the spec changed"
    );
}

#[test]
fn invalid_objects_refuse_the_farm_and_transient_errors_are_retried() {
    let answered = |code| {
        let status = kube::core::Status::failure("spec.replicas: Invalid value", "Invalid").with_code(code);
        let object = wanted(json!({}));
        not_applied(&object, kube::Error::Api(Box::new(status)))
    };
    for code in [400, 413, 422] {
        let ApplyError::Refused(refusal) = answered(code) else {
            panic!("{code} was not taken for a refusal");
        };
        assert_eq!(refusal.reason, Reason::Invalid);
        for word in ["Service shop-proxy", "spec.replicas: Invalid value"] {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
    }
    for code in [401, 403, 404, 409, 429, 500, 503] {
        assert!(matches!(answered(code), ApplyError::Failed(_)), "{code}");
    }
}

fn live(fields: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "shop-proxy",
            "uid": "1",
            "managedFields": [
                {"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}}},
                {"manager": "tlsfarm", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:x": {}}},
                {"manager": "tlsfarm", "operation": "Apply", "subresource": "status", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {}}},
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
fn only_changes_of_owned_fields_or_of_the_desired_state_count() {
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
