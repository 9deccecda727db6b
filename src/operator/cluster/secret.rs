//! Reads the operator's Secrets and writes them by compare-and-swap.
//!
//! Errors and logs never contain data of a Secret.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use zeroize::{Zeroize, Zeroizing};

use crate::operator::error::ReconcileError;
use crate::operator::names::{FarmId, MANAGER, Ownership};

/// State of a Secret.
pub(crate) enum SecretState {
    /// It does not exist.
    Missing,
    /// A Secret of that name is not owned by the farm.
    Foreign(Ownership),
    /// It is owned by the farm.
    Ours(Box<Content>, Version),
}

/// Data of a Secret of the farm. It is zeroed on drop.
pub(crate) struct Content(Secret);

/// Resource version of the Secret that a write replaces. The write fails if the Secret has changed in between.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Version(pub(crate) String);

/// A Secret to write.
pub(crate) struct SecretToWrite {
    pub(crate) name: String,
    pub(crate) type_: &'static str,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) data: Vec<(&'static str, Zeroizing<Vec<u8>>)>,
}

/// Outcome of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Written {
    /// The write succeeded.
    Stored,
    /// Conflict: another writer was first. Read the Secret again.
    Overtaken,
}

impl Content {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.0.data.as_ref()?.get(key)?;
        Some(value.0.as_slice())
    }

    /// The value of an annotation.
    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        let annotations = self.0.metadata.annotations.as_ref()?;
        annotations.get(name).map(String::as_str)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        for value in self.0.data.iter_mut().flat_map(BTreeMap::values_mut) {
            value.0.zeroize();
        }
    }
}

/// Reads a Secret.
pub(crate) async fn read(client: &Client, id: &FarmId, name: &str) -> Result<SecretState, ReconcileError> {
    let found = api(client, id).get_opt(name).await;
    let found = found.map_err(|error| ReconcileError::secret("get", name, &error))?;
    Ok(found.map_or(SecretState::Missing, |secret| {
        SecretState::of(id, Content(secret))
    }))
}

impl SecretState {
    fn of(id: &FarmId, content: Content) -> Self {
        let metadata = &content.0.metadata;
        match id.ownership(metadata) {
            Ownership::Ours => {
                let version = Version(metadata.resource_version.clone().unwrap_or_default());
                Self::Ours(Box::new(content), version)
            }
            ownership => Self::Foreign(ownership),
        }
    }
}

/// Replaces the Secret of resource version `version`; without a version, creates it.
///
/// After an error it is unknown whether it was written: read it again.
pub(crate) async fn write(
    client: &Client,
    id: &FarmId,
    wanted: SecretToWrite,
    version: Option<&Version>,
) -> Result<Written, ReconcileError> {
    let name = wanted.name.clone();
    let params = PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    };
    let content = content(id, wanted, version);
    let api = api(client, id);
    let (verb, answer) = match version {
        Some(_) => ("update", api.replace(&name, &params, &content.0).await),
        None => ("create", api.create(&params, &content.0).await),
    };
    match answer.map(Content) {
        Ok(_) => Ok(Written::Stored),
        Err(error) if is_overtaken(&error, version) => Ok(Written::Overtaken),
        Err(error) => Err(ReconcileError::secret(verb, &name, &error)),
    }
}

fn content(id: &FarmId, wanted: SecretToWrite, version: Option<&Version>) -> Content {
    let mut metadata = id.metadata(wanted.name);
    metadata.resource_version = version.map(|version| version.0.clone());
    metadata.annotations = (!wanted.annotations.is_empty()).then_some(wanted.annotations);
    let data = wanted.data.into_iter();
    Content(Secret {
        metadata,
        type_: Some(wanted.type_.to_owned()),
        data: Some(
            data.map(|(key, mut value)| (key.to_owned(), ByteString(std::mem::take(&mut *value))))
                .collect(),
        ),
        ..Secret::default()
    })
}

/// Whether a write that replaces `version` failed because the Secret already exists, was changed, or was deleted.
fn is_overtaken(error: &kube::Error, version: Option<&Version>) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 409 || (status.code == 404 && version.is_some()),
        _ => false,
    }
}

/// Deletes the Secret of resource version `version`, but not a newer one of the same name.
pub(crate) async fn delete(
    client: &Client,
    id: &FarmId,
    name: &str,
    version: &Version,
) -> Result<Written, ReconcileError> {
    let this_one_only = DeleteParams {
        preconditions: Some(Preconditions {
            resource_version: Some(version.0.clone()),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    match api(client, id).delete(name, &this_one_only).await {
        // The body of the answer may be the Secret itself.
        Ok(answer) => {
            answer.map_left(Content);
            Ok(Written::Stored)
        }
        Err(error) => {
            let settled = not_deleted(&error);
            settled.ok_or_else(|| ReconcileError::secret("delete", name, &error))
        }
    }
}

/// Outcome of a failed deletion: the Secret no longer exists, or has been changed.
fn not_deleted(error: &kube::Error) -> Option<Written> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Some(Written::Stored),
        kube::Error::Api(status) if status.code == 409 => Some(Written::Overtaken),
        _ => None,
    }
}

fn api(client: &Client, id: &FarmId) -> Api<Secret> {
    Api::namespaced(client.clone(), id.namespace())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::operator::names::id;

    /// What the farm `shop` reads once `wanted` is stored.
    pub(in crate::operator) fn stored(wanted: SecretToWrite) -> SecretState {
        SecretState::of(
            &id("shop"),
            content(&id("shop"), wanted, Some(&Version("7".into()))),
        )
    }

    pub(in crate::operator) fn wanted(name: &str) -> SecretToWrite {
        SecretToWrite {
            name: name.into(),
            type_: "kubernetes.io/tls",
            annotations: BTreeMap::from([("since".into(), "then".into())]),
            data: vec![("tls.crt", Zeroizing::new(b"a certificate".to_vec()))],
        }
    }

    fn refused(code: u16) -> kube::Error {
        kube::Error::Api(kube::core::Status::failure("no", "No").with_code(code).boxed())
    }

    #[test]
    fn a_written_secret_is_read_back_with_its_resource_version() {
        let SecretState::Ours(content, version) = stored(wanted("shop-cache-tls")) else {
            panic!("the Secret is foreign");
        };
        assert_eq!(version, Version("7".into()));
        assert_eq!(content.get("tls.crt"), Some(&b"a certificate"[..]));
        assert_eq!(content.get("tls.key"), None);
        assert_eq!(
            (content.annotation("since"), content.annotation("until")),
            (Some("then"), None)
        );
        assert_eq!(content.0.type_.as_deref(), Some("kubernetes.io/tls"));
        assert_eq!(content.0.metadata.name.as_deref(), Some("shop-cache-tls"));
    }

    #[test]
    fn a_secret_that_must_not_exist_yet_is_written_without_a_version() {
        let mut plain = wanted("shop-ring");
        plain.annotations.clear();
        let content = content(&id("shop"), plain, None);
        assert_eq!(content.0.metadata.resource_version, None);
        assert_eq!(content.0.metadata.annotations, None);
    }

    #[test]
    fn a_secret_of_another_owner_is_never_read() {
        let theirs = || content(&id("shop"), wanted("shop-ring"), None);
        let mut leftover = theirs();
        leftover.0.metadata.owner_references.as_mut().expect("set")[0].uid = "another".into();
        assert!(matches!(
            SecretState::of(&id("shop"), leftover),
            SecretState::Foreign(Ownership::Leftover)
        ));
        let mut foreign = theirs();
        foreign.0.metadata.owner_references = None;
        assert!(matches!(
            SecretState::of(&id("shop"), foreign),
            SecretState::Foreign(Ownership::Foreign)
        ));
    }

    #[test]
    fn a_conflicting_write_is_overtaken_and_other_errors_are_failures() {
        let version = Version("7".into());
        assert!(is_overtaken(&refused(409), None), "the Secret exists already");
        assert!(
            is_overtaken(&refused(409), Some(&version)),
            "the Secret was changed"
        );
        assert!(
            is_overtaken(&refused(404), Some(&version)),
            "the Secret was deleted"
        );
        assert!(!is_overtaken(&refused(404), None), "the namespace is gone");
        for code in [400, 403, 422, 500] {
            assert!(!is_overtaken(&refused(code), Some(&version)), "{code}");
        }
        assert!(
            !is_overtaken(&kube::Error::TlsRequired, Some(&version)),
            "there was no answer"
        );
    }

    #[test]
    fn deleting_tolerates_a_missing_secret_and_spares_a_changed_one() {
        assert_eq!(not_deleted(&refused(404)), Some(Written::Stored));
        assert_eq!(not_deleted(&refused(409)), Some(Written::Overtaken));
        assert_eq!(not_deleted(&refused(403)), None);
        assert_eq!(not_deleted(&kube::Error::TlsRequired), None);
    }
}
