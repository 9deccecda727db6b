//! Rotation policy of the ring.

use jiff::SignedDuration;

/// Rotation policy of the ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RotationPolicy {
    /// Interval between rotations.
    pub rotation_interval: SignedDuration,
    /// Lifetime of a ticket.
    pub lifetime: SignedDuration,
    /// How long a rotation waits for a proxy that does not acknowledge.
    pub max_unacked_wait: SignedDuration,
}

impl RotationPolicy {
    /// How long a proxy may encrypt with a key without loading a new ring: a day, or two rotation intervals if longer.
    pub(super) fn seal_window(&self) -> SignedDuration {
        SignedDuration::from_hours(24).max(self.rotation_interval * 2)
    }
}
