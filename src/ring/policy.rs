//! How keys age.

use jiff::SignedDuration;

/// How keys age.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RotationPolicy {
    /// How often a new key begins to seal.
    pub rotation_interval: SignedDuration,
    /// How long a ticket may be used.
    pub lifetime: SignedDuration,
    /// How long a proxy that does not acknowledge may hold up a rotation.
    pub max_unacked_wait: SignedDuration,
}

impl RotationPolicy {
    /// How long a proxy that is cut off from the operator goes on sealing with a key: a day, or two rotation intervals
    /// where those are longer.
    pub(super) fn seal_window(&self) -> SignedDuration {
        SignedDuration::from_hours(24).max(self.rotation_interval * 2)
    }
}
