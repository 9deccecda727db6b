//! The Secret that holds a farm's ring.

use std::collections::BTreeMap;

use kube::Client;

use super::build::RING_KEY;
use super::error::ReconcileError;
use super::names::{FarmId, Ownership};
use super::secret::{self, Found, Version, Wanted, Written};
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

/// Reads the ring Secret.
pub(super) async fn read(client: &Client, id: &FarmId) -> Result<Stored, ReconcileError> {
    let (content, version) = match secret::read(client, id, &id.ring_name()).await? {
        Found::Missing => return Ok(Stored::Missing),
        Found::Foreign(ownership) => return Ok(Stored::Foreign(ownership)),
        Found::Ours(content, version) => (content, version),
    };
    let ring = match content.get(RING_KEY) {
        Some(document) => Ring::from_document(document).map_err(|error| error.to_string()),
        None => Err(format!("it has no key {RING_KEY}")),
    };
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
    let wanted = Wanted {
        name: id.ring_name(),
        type_: RING_SECRET_TYPE,
        annotations: BTreeMap::new(),
        data: vec![(RING_KEY, ring.to_document())],
    };
    secret::write(client, id, wanted, version).await
}
