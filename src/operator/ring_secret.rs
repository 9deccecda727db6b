//! The Secret that holds a farm's ring: reading it, and writing it by compare-and-swap.
//!
//! Nothing here quotes the Secret: neither errors nor logs hold any of its text.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use zeroize::Zeroize;

use super::build::RING_KEY;
use super::error::ReconcileError;
use super::names::{FarmId, MANAGER, Ownership};
use crate::api::RING_SECRET_TYPE;
use crate::ring::Ring;

/// The ring Secret as it is.
#[derive(Debug)]
pub(super) enum Stored {
    /// There is none.
    Missing,
    /// One of that name is not the farm's.
    Foreign(Ownership),
    /// It holds no ring that could be used, for this reason.
    Damaged(String, Version),
    /// It holds a ring.
    Good(Box<Ring>, Version),
}

/// The Secret that a write replaces. Any other write in between makes it fail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Version(pub(super) String);

/// What became of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Written {
    /// The ring is stored.
    Stored,
    /// Somebody else wrote first; the ring must be read again.
    Overtaken,
}

/// Reads the ring Secret.
pub(super) async fn read(client: &Client, id: &FarmId) -> Result<Stored, ReconcileError> {
    let name = id.ring_name();
    let found = api(client, id).get_opt(&name).await;
    let found = found.map_err(|error| ReconcileError::ring_secret("get", &name, &error))?;
    let Some(secret) = found else {
        return Ok(Stored::Missing);
    };
    let ownership = id.ownership(&secret.metadata);
    if ownership != Ownership::Ours {
        wipe(secret);
        return Ok(Stored::Foreign(ownership));
    }
    let version = Version(secret.metadata.resource_version.clone().unwrap_or_default());
    let ring = match secret.data.as_ref().and_then(|data| data.get(RING_KEY)) {
        Some(document) => Ring::from_document(&document.0).map_err(|error| error.to_string()),
        None => Err(format!("it has no key {RING_KEY}")),
    };
    wipe(secret);
    Ok(match ring {
        Ok(ring) => Stored::Good(Box::new(ring), version),
        Err(why) => Stored::Damaged(why, version),
    })
}

/// Writes `ring` in place of the Secret of `version`, or creates the Secret where there must be none.
///
/// After an error it is not known whether the ring was written: it must be read again.
pub(super) async fn write(
    client: &Client,
    id: &FarmId,
    ring: &Ring,
    version: Option<&Version>,
) -> Result<Written, ReconcileError> {
    let name = id.ring_name();
    let params = PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    };
    let mut metadata = id.metadata(name.clone());
    metadata.resource_version = version.map(|version| version.0.clone());
    let secret = Secret {
        metadata,
        type_: Some(RING_SECRET_TYPE.to_owned()),
        data: Some(BTreeMap::from([(
            RING_KEY.to_owned(),
            ByteString(ring.to_document().to_vec()),
        )])),
        ..Secret::default()
    };
    let api = api(client, id);
    let (verb, answer) = match version {
        Some(_) => ("update", api.replace(&name, &params, &secret).await),
        None => ("create", api.create(&params, &secret).await),
    };
    wipe(secret);
    match answer {
        Ok(stored) => {
            wipe(stored);
            Ok(Written::Stored)
        }
        // Already there, changed, or gone.
        Err(kube::Error::Api(status)) if status.code == 409 || (status.code == 404 && version.is_some()) => {
            Ok(Written::Overtaken)
        }
        Err(error) => Err(ReconcileError::ring_secret(verb, &name, &error)),
    }
}

fn api(client: &Client, id: &FarmId) -> Api<Secret> {
    Api::namespaced(client.clone(), id.namespace())
}

/// Zeroes the copy that went over the wire, as far as it is ours.
fn wipe(secret: Secret) {
    for (_, mut value) in secret.data.unwrap_or_default() {
        value.0.zeroize();
    }
}
