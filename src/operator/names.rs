//! Names, labels and ownership of a farm's objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::ApiResource;

use crate::api::{FARM_LABEL, GROUP, TLSFarm};

/// Name under which the operator applies fields, and value of the label `app.kubernetes.io/managed-by`.
pub(super) const MANAGER: &str = "tlsfarm";

const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
const COMPONENT: &str = "proxy";

/// Namespace and name of a farm. A farm that is deleted and created again has the same key.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct FarmKey {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// Identity of a farm: namespace, name and UID.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FarmId {
    pub(super) key: FarmKey,
    pub(super) uid: String,
}

/// Owner of an object, according to its owner references.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ownership {
    /// The farm.
    Ours,
    /// A deleted farm of the same name: the object will be garbage-collected.
    Leftover,
    /// Another owner, or none.
    Foreign,
}

impl FarmId {
    /// Reads the identity; None if the metadata is incomplete.
    pub(super) fn of(metadata: &ObjectMeta) -> Option<Self> {
        Some(Self {
            key: FarmKey {
                namespace: metadata.namespace.clone()?,
                name: metadata.name.clone()?,
            },
            uid: metadata.uid.clone()?,
        })
    }

    pub(super) fn namespace(&self) -> &str {
        &self.key.namespace
    }

    pub(super) fn name(&self) -> &str {
        &self.key.name
    }

    /// Name of most of the farm's objects.
    pub(super) fn proxy_name(&self) -> String {
        format!("{}-proxy", self.key.name)
    }

    /// Name of the Service for monitoring.
    pub(super) fn metrics_name(&self) -> String {
        format!("{}-proxy-metrics", self.key.name)
    }

    /// Name of the Secret that holds the ring.
    pub(super) fn ring_name(&self) -> String {
        format!("{}-ring", self.key.name)
    }

    /// Name of the Service for peer discovery of the caches.
    pub(super) fn cache_name(&self) -> String {
        format!("{}-cache", self.key.name)
    }

    /// Name of the Secret with the CA that signs the caches' certificate.
    pub(super) fn cache_authority_name(&self) -> String {
        format!("{}-cache-ca", self.key.name)
    }

    /// Name of the Secret with the certificate that the caches present to each other.
    pub(super) fn cache_tls_name(&self) -> String {
        format!("{}-cache-tls", self.key.name)
    }

    /// DNS name in the caches' certificate. It does not resolve: it distinguishes the caches of different farms.
    pub(super) fn cache_server_name(&self) -> String {
        format!("cache.{}.{}.tlsfarm", self.key.name, self.key.namespace)
    }

    /// Labels on every object of the farm.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        [
            (FARM_LABEL, self.name()),
            ("app.kubernetes.io/name", "tlsfarm"),
            ("app.kubernetes.io/instance", self.name()),
            (COMPONENT_LABEL, COMPONENT),
            ("app.kubernetes.io/managed-by", MANAGER),
        ]
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into()
    }

    /// Labels that select the proxies. Deployments never change theirs.
    pub(super) fn pod_labels(&self) -> BTreeMap<String, String> {
        [(FARM_LABEL, self.name()), (COMPONENT_LABEL, COMPONENT)]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into()
    }

    /// Label selector of the proxies, for list requests and the scale subresource.
    pub(super) fn pod_selector(&self) -> String {
        format!("{FARM_LABEL}={},{COMPONENT_LABEL}={COMPONENT}", self.name())
    }

    /// Metadata of an object of the farm, with an owner reference: deleting the farm deletes the object.
    pub(super) fn metadata(&self, name: String) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace().to_owned()),
            labels: Some(self.labels()),
            owner_references: Some(vec![self.owner_reference()]),
            ..ObjectMeta::default()
        }
    }

    fn owner_reference(&self) -> OwnerReference {
        let resource = ApiResource::erase::<TLSFarm>(&());
        OwnerReference {
            api_version: resource.api_version,
            kind: resource.kind,
            name: self.name().to_owned(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Returns who owns an object with one of the farm's names.
    pub(super) fn ownership(&self, metadata: &ObjectMeta) -> Ownership {
        match controller_farm(metadata) {
            Some(owner) if owner.uid == self.uid => Ownership::Ours,
            Some(owner) if owner.name == self.name() => Ownership::Leftover,
            _ => Ownership::Foreign,
        }
    }
}

/// The farm that an object belongs to, by its label, or else by its owner reference.
pub(super) fn farm_of(metadata: &ObjectMeta) -> Option<FarmKey> {
    let labelled = metadata.labels.as_ref().and_then(|labels| labels.get(FARM_LABEL));
    let name = labelled.or_else(|| controller_farm(metadata).map(|owner| &owner.name))?;
    Some(FarmKey {
        namespace: metadata.namespace.clone()?,
        name: name.clone(),
    })
}

fn controller_farm(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| {
        owner.controller == Some(true)
            && owner.kind == TLSFarm::kind(&())
            && owner
                .api_version
                .split_once('/')
                .is_some_and(|(group, _)| group == GROUP)
    })
}

#[cfg(test)]
pub(super) fn id(name: &str) -> FarmId {
    FarmId {
        key: FarmKey {
            namespace: "web".into(),
            name: name.into(),
        },
        uid: format!("uid-of-{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_farms_own_controller_reference_makes_an_object_ours() {
        let farm = id("shop");
        let ours = farm.metadata("shop-proxy".into());
        assert_eq!(farm.ownership(&ours), Ownership::Ours);
        assert_eq!(farm_of(&ours), Some(farm.key.clone()));

        let mut of_old_farm = ours.clone();
        of_old_farm.owner_references.as_mut().expect("set")[0].uid = "another".into();
        assert_eq!(farm.ownership(&of_old_farm), Ownership::Leftover);

        let mut not_controlled = ours.clone();
        not_controlled.owner_references.as_mut().expect("set")[0].controller = None;
        assert_eq!(farm.ownership(&not_controlled), Ownership::Foreign);

        let mut other_group = ours.clone();
        other_group.owner_references.as_mut().expect("set")[0].api_version = "tlsfarm.dev.evil/v1".into();
        assert_eq!(farm.ownership(&other_group), Ownership::Foreign);

        let labelled_only = ObjectMeta {
            owner_references: None,
            ..ours
        };
        assert_eq!(farm.ownership(&labelled_only), Ownership::Foreign);
    }

    #[test]
    fn every_object_of_a_farm_has_a_name_of_its_own() {
        let farm = id("shop");
        let names = [
            farm.proxy_name(),
            farm.metrics_name(),
            farm.ring_name(),
            farm.cache_name(),
            farm.cache_authority_name(),
            farm.cache_tls_name(),
        ];
        let expected = [
            "shop-proxy",
            "shop-proxy-metrics",
            "shop-ring",
            "shop-cache",
            "shop-cache-ca",
            "shop-cache-tls",
        ];
        assert_eq!(names, expected);
        assert_eq!(farm.cache_server_name(), "cache.shop.web.tlsfarm");
    }

    #[test]
    fn the_proxy_selector_uses_labels_of_every_object() {
        let farm = id("shop");
        let selector = "tlsfarm.dev/farm=shop,app.kubernetes.io/component=proxy";
        assert_eq!(farm.pod_selector(), selector);
        let labels: Vec<String> = farm
            .pod_labels()
            .iter()
            .map(|(label, value)| format!("{label}={value}"))
            .collect();
        assert!(
            labels.iter().all(|label| selector.contains(label.as_str())),
            "{labels:?}"
        );
        assert_eq!(labels.len(), 2);
        let all = farm.labels();
        assert!(
            farm.pod_labels()
                .iter()
                .all(|(label, value)| all.get(label) == Some(value))
        );
    }

    #[test]
    fn an_object_belongs_to_the_farm_of_its_label_or_else_of_its_controller() {
        let ours = id("shop").metadata("x".into());
        let unlabelled = ObjectMeta {
            labels: None,
            ..ours.clone()
        };
        assert_eq!(farm_of(&unlabelled), Some(id("shop").key));
        let labelled = ObjectMeta {
            labels: Some(id("blog").labels()),
            ..ours.clone()
        };
        assert_eq!(farm_of(&labelled), Some(id("blog").key));
        let neither = ObjectMeta {
            labels: None,
            owner_references: None,
            ..ours
        };
        assert_eq!(farm_of(&neither), None);
    }

    #[test]
    fn objects_of_other_farms_and_of_other_kinds_of_owner_are_foreign() {
        let farm = id("shop");
        assert_eq!(
            farm.ownership(&id("blog").metadata("x".into())),
            Ownership::Foreign
        );
        let mut of_a_replica_set = farm.metadata("x".into());
        of_a_replica_set.owner_references.as_mut().expect("set")[0].kind = "ReplicaSet".into();
        assert_eq!(farm.ownership(&of_a_replica_set), Ownership::Foreign);
    }

    #[test]
    fn a_farm_is_identified_once_the_api_server_has_completed_it() {
        let complete = ObjectMeta {
            uid: Some("uid-of-shop".into()),
            ..id("shop").metadata("shop".into())
        };
        assert_eq!(FarmId::of(&complete), Some(id("shop")));
        let without_uid = ObjectMeta {
            uid: None,
            ..complete
        };
        assert_eq!(FarmId::of(&without_uid), None);
    }
}
