//! Loads the ring file, and rejects a ring that must not replace the loaded one.

use std::io;
use std::path::Path;

use aws_lc_rs::digest::{Digest, SHA256, digest};
use zeroize::Zeroizing;

use crate::ring::{Ring, RingError};
use crate::runtime::files::WatchedFile;

/// The ring file and the identity of the loaded ring.
#[derive(Default)]
pub(crate) struct RingFile {
    file: WatchedFile,
    loaded: Option<Mark>,
}

/// Result of checking the file.
#[derive(Debug)]
pub(crate) enum RingFileState {
    /// The file has not changed.
    Unchanged,
    /// The file has changed, but contains the loaded ring.
    InUse,
    /// The file contains a newer ring to load.
    Replaced(Box<Ring>),
    /// The file contains no ring that may replace the loaded one.
    Refused(RingRefusal),
}

/// Identifies a ring without containing its keys.
struct Mark {
    generation: u64,
    digest: Digest,
}

/// Why the ring file was rejected.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum RingRefusal {
    /// The file does not exist.
    #[error("the ring file is missing")]
    Missing,
    /// Reading the file failed.
    #[error("failed to read the ring file: {0}")]
    Unreadable(io::ErrorKind),
    /// The ring document is invalid.
    #[error(transparent)]
    Damaged(RingError),
    /// The ring is older than the loaded one, for example after a backup was restored.
    #[error("the ring file has generation {found}, older than the loaded generation {loaded}")]
    Older {
        /// Generation in the file.
        found: u64,
        /// Generation of the loaded ring.
        loaded: u64,
    },
    /// The ring has the generation of the loaded one, but different contents.
    #[error("the ring file differs from the loaded ring but has the same generation {0}")]
    Changed(u64),
}

impl RingFile {
    /// Checks the file.
    pub(crate) fn poll(&mut self, path: &Path) -> RingFileState {
        match self.file.poll(path) {
            None => RingFileState::Unchanged,
            Some(Ok(bytes)) => self.read(&Zeroizing::new(bytes)),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                RingFileState::Refused(RingRefusal::Missing)
            }
            Some(Err(error)) => RingFileState::Refused(RingRefusal::Unreadable(error.kind())),
        }
    }

    fn read(&mut self, document: &[u8]) -> RingFileState {
        let ring = match Ring::from_document(document) {
            Ok(ring) => ring,
            Err(error) => return RingFileState::Refused(RingRefusal::Damaged(error)),
        };
        // Hash the ring re-encoded, so that white space makes no difference.
        let mark = Mark {
            generation: ring.generation,
            digest: digest(&SHA256, &ring.to_document()),
        };
        if let Some(loaded) = &self.loaded {
            if mark.generation < loaded.generation {
                return RingFileState::Refused(RingRefusal::Older {
                    found: mark.generation,
                    loaded: loaded.generation,
                });
            }
            if mark.generation == loaded.generation {
                return if mark.digest.as_ref() == loaded.digest.as_ref() {
                    RingFileState::InUse
                } else {
                    RingFileState::Refused(RingRefusal::Changed(mark.generation))
                };
            }
        }
        self.loaded = Some(mark);
        RingFileState::Replaced(Box::new(ring))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::fixtures::{POLICY, at, ring, secret};

    #[test]
    fn only_a_newer_good_ring_replaces_the_one_in_use() {
        let first = ring();
        let second = first.clone().rotated(secret(), None, &POLICY, at(3600));
        let forged = ring().rotated(secret(), None, &POLICY, at(3600));
        let mut file = RingFile::default();

        /// The generation that was taken into use, if any, or the refusal.
        fn taken(state: RingFileState) -> Result<Option<u64>, RingRefusal> {
            match state {
                RingFileState::Unchanged | RingFileState::InUse => Ok(None),
                RingFileState::Replaced(ring) => Ok(Some(ring.generation)),
                RingFileState::Refused(refusal) => Err(refusal),
            }
        }
        assert_eq!(taken(file.read(&first.to_document())), Ok(Some(1)));
        assert_eq!(taken(file.read(&first.to_document())), Ok(None));
        assert_eq!(taken(file.read(&second.to_document())), Ok(Some(2)));
        let older = RingRefusal::Older { found: 1, loaded: 2 };
        assert_eq!(taken(file.read(&first.to_document())), Err(older));
        assert_eq!(
            taken(file.read(&forged.to_document())),
            Err(RingRefusal::Changed(2))
        );
        let damaged = &second.to_document()[..100];
        assert!(matches!(taken(file.read(damaged)), Err(RingRefusal::Damaged(_))));
        assert_eq!(taken(file.read(&second.to_document())), Ok(None));
    }
}
