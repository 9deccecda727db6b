//! The Secret that holds a farm's ring.

use std::collections::BTreeMap;

use kube::Client;

use super::secret::{self, SecretState, SecretToWrite, Version, Written};
use crate::api::RING_SECRET_TYPE;
use crate::compile::mounts::RING_KEY;
use crate::operator::error::ReconcileError;
use crate::operator::names::{FarmId, Ownership};
use crate::ring::{Ring, RingError};

/// State of the ring Secret.
#[derive(Debug)]
pub(crate) enum StoredRing {
    /// The Secret does not exist.
    Missing,
    /// A Secret of that name is not owned by the farm.
    Foreign(Ownership),
    /// The Secret contains no valid ring, for this reason.
    Damaged(String, Version),
    /// The Secret contains a ring of a later release, in this version of the format.
    UnknownFormat(u32),
    /// The Secret contains a valid ring.
    Good(Box<Ring>, Version),
}

/// Reads the ring Secret.
pub(crate) async fn read(client: &Client, id: &FarmId) -> Result<StoredRing, ReconcileError> {
    let found = secret::read(client, id, &id.ring_name()).await?;
    Ok(StoredRing::from(found))
}

impl From<SecretState> for StoredRing {
    fn from(found: SecretState) -> Self {
        let (content, version) = match found {
            SecretState::Missing => return Self::Missing,
            SecretState::Foreign(ownership) => return Self::Foreign(ownership),
            SecretState::Ours(content, version) => (content, version),
        };
        let ring = match content.get(RING_KEY) {
            Some(document) => match Ring::from_document(document) {
                // It may be whole. Replacing it would end every session, and a newer operator would do the same in return.
                Err(RingError::Version(version)) => return Self::UnknownFormat(version),
                ring => ring.map_err(|error| error.to_string()),
            },
            None => Err(format!("it has no data key {RING_KEY}")),
        };
        match ring {
            Ok(ring) => Self::Good(Box::new(ring), version),
            Err(why) => Self::Damaged(why, version),
        }
    }
}

/// Replaces the Secret of resource version `version` by `ring`; without a version, creates the Secret.
///
/// After an error it is unknown whether the ring was written: read it again.
pub(crate) async fn write(
    client: &Client,
    id: &FarmId,
    ring: &Ring,
    version: Option<&Version>,
) -> Result<Written, ReconcileError> {
    secret::write(client, id, wanted(id, ring), version).await
}

fn wanted(id: &FarmId, ring: &Ring) -> SecretToWrite {
    SecretToWrite {
        name: id.ring_name(),
        type_: RING_SECRET_TYPE,
        annotations: BTreeMap::new(),
        data: vec![(RING_KEY, ring.to_document())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::cluster::secret::tests::stored;
    use crate::operator::names::id;
    use crate::ring::fixtures::ring;

    #[test]
    fn a_ring_that_is_written_is_read_back() {
        let ring = ring();
        let read = StoredRing::from(stored(wanted(&id("shop"), &ring)));
        assert!(
            matches!(&read, StoredRing::Good(same, version) if **same == ring && version.0 == "7"),
            "{read:?}"
        );
    }

    #[test]
    fn an_unusable_ring_secret_has_a_reason_and_its_resource_version() {
        let damaged = |change: &dyn Fn(&mut SecretToWrite)| {
            let mut secret = wanted(&id("shop"), &ring());
            change(&mut secret);
            match StoredRing::from(stored(secret)) {
                StoredRing::Damaged(why, version) => (why, version.0),
                other => panic!("{other:?}"),
            }
        };
        let (why, version) = damaged(&|secret| secret.data.clear());
        assert_eq!(
            (why.as_str(), version.as_str()),
            ("it has no data key ring.json", "7")
        );
        let (why, _) = damaged(&|secret| secret.data[0].1.truncate(100));
        assert!(!why.is_empty());
    }

    #[test]
    fn missing_and_foreign_ring_secrets_are_distinguished() {
        assert!(matches!(
            StoredRing::from(SecretState::Missing),
            StoredRing::Missing
        ));
        let foreign = SecretState::Foreign(Ownership::Leftover);
        assert!(matches!(
            StoredRing::from(foreign),
            StoredRing::Foreign(Ownership::Leftover)
        ));
    }
}
