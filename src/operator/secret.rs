//! Secrets of the operator's own: reading them, and writing them by compare-and-swap.
//!
//! Nothing here quotes a Secret: neither errors nor logs hold any of its text.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use zeroize::{Zeroize, Zeroizing};

use super::error::ReconcileError;
use super::names::{FarmId, MANAGER, Ownership};

/// A Secret as it is.
pub(super) enum Found {
    /// There is none.
    Missing,
    /// One of that name is not the farm's.
    Foreign(Ownership),
    /// It is the farm's.
    Ours(Box<Content>, Version),
}

/// What a Secret of the farm holds. It is zeroed on release.
pub(super) struct Content(Secret);

/// The Secret that a write replaces. Any other write in between makes it fail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Version(pub(super) String);

/// A Secret as it should be.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) type_: &'static str,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) data: Vec<(&'static str, Zeroizing<Vec<u8>>)>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Written {
    /// It is stored.
    Stored,
    /// Somebody else wrote first; it must be read again.
    Overtaken,
}

impl Content {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.0.data.as_ref()?.get(key)?;
        Some(value.0.as_slice())
    }

    /// The value of an annotation.
    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
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
pub(super) async fn read(client: &Client, id: &FarmId, name: &str) -> Result<Found, ReconcileError> {
    let found = api(client, id).get_opt(name).await;
    let found = found.map_err(|error| ReconcileError::secret("get", name, &error))?;
    let Some(content) = found.map(Content) else {
        return Ok(Found::Missing);
    };
    let metadata = &content.0.metadata;
    Ok(match id.ownership(metadata) {
        Ownership::Ours => {
            let version = Version(metadata.resource_version.clone().unwrap_or_default());
            Found::Ours(Box::new(content), version)
        }
        ownership => Found::Foreign(ownership),
    })
}

/// Writes a Secret in place of the one of `version`, or creates it where there must be none.
///
/// After an error it is not known whether it was written: it must be read again.
pub(super) async fn write(
    client: &Client,
    id: &FarmId,
    wanted: Wanted,
    version: Option<&Version>,
) -> Result<Written, ReconcileError> {
    let name = wanted.name;
    let params = PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    };
    let mut metadata = id.metadata(name.clone());
    metadata.resource_version = version.map(|version| version.0.clone());
    metadata.annotations = (!wanted.annotations.is_empty()).then_some(wanted.annotations);
    let data = wanted.data.into_iter();
    let content = Content(Secret {
        metadata,
        type_: Some(wanted.type_.to_owned()),
        data: Some(
            data.map(|(key, mut value)| (key.to_owned(), ByteString(std::mem::take(&mut *value))))
                .collect(),
        ),
        ..Secret::default()
    });
    let api = api(client, id);
    let (verb, answer) = match version {
        Some(_) => ("update", api.replace(&name, &params, &content.0).await),
        None => ("create", api.create(&params, &content.0).await),
    };
    match answer.map(Content) {
        Ok(_) => Ok(Written::Stored),
        // Already there, changed, or gone.
        Err(kube::Error::Api(status)) if status.code == 409 || (status.code == 404 && version.is_some()) => {
            Ok(Written::Overtaken)
        }
        Err(error) => Err(ReconcileError::secret(verb, &name, &error)),
    }
}

/// Deletes the Secret of `version`, and no other that has its name meanwhile.
pub(super) async fn delete(
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
        // The answer may be the Secret itself.
        Ok(answer) => {
            answer.map_left(Content);
            Ok(Written::Stored)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Written::Stored),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Written::Overtaken),
        Err(error) => Err(ReconcileError::secret("delete", name, &error)),
    }
}

fn api(client: &Client, id: &FarmId) -> Api<Secret> {
    Api::namespaced(client.clone(), id.namespace())
}
