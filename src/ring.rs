//! The ring: the ordered set of session-ticket keys that all proxies of a farm share, its rotation, and the tickets
//! that its keys encrypt.
//!
//! Pure: time is an argument, and only [`KeySecret::generate`] and the nonces of [`TicketKeys::seal`] use random bytes.
//!
//! A ring always contains one `next` key (decrypts only), one `primary` (encrypts and decrypts) and as many `previous`
//! keys (decrypt only) as valid tickets need. One rotation is one write: primary becomes previous, next becomes
//! primary, a new next key is added, and expired previous keys are removed. It is safe once every proxy has reported
//! that it can decrypt with the next key, however late it loads the rotated ring.
//!
//! A primary key that not every proxy is known to have, for example of a ring that was restored, may not encrypt
//! ([`Ring::without_sealing`]). Then a rotation is due at once, and makes a primary that every proxy has confirmed.

mod cache_key;
mod document;
mod key;
mod plan;
mod policy;
mod scope;
mod ticket;

use jiff::Timestamp;

pub use cache_key::{CacheKey, CacheKind};
pub use document::RingError;
pub use key::{KeyId, KeySecret, KeyWeakness, RandomnessError, TicketKey};
pub use plan::{Acknowledgement, Plan, RotationRequest, plan};
pub use policy::RotationPolicy;
pub use scope::Scope;
pub use ticket::{OpenError, OpenedTicket, SealError, SealedAs, SessionAge, TicketKeys, TicketPolicy};

/// Maximum number of keys in a ring.
pub const MAX_KEYS: usize = 32;

/// What identifies a ring for those who acknowledge it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingVersion {
    /// Generation of the ring.
    pub generation: u64,
    /// Id of the next key.
    pub next: KeyId,
    /// Id of the primary key.
    pub primary: KeyId,
}

/// The ticket keys by role, and the generation that proxies acknowledge.
#[derive(Clone, Debug, PartialEq)]
pub struct Ring {
    /// Increases by one with every change; proxies reject a ring of a lower generation.
    pub generation: u64,
    /// When this generation was written.
    pub changed_at: Timestamp,
    /// When the current primary became primary.
    pub rotated_at: Timestamp,
    /// Value of the last executed rotation request (annotation `tlsfarm.dev/rotate`).
    pub handled_request: Option<String>,
    /// Decrypts only; encrypts after the next rotation.
    pub next: TicketKey,
    /// Encrypts and decrypts.
    pub primary: TicketKey,
    /// Decrypt only, newest first.
    pub previous: Vec<TicketKey>,
}

impl Ring {
    /// Creates the first ring of a farm, or the one that replaces a lost ring: `generation` must be higher than any
    /// that a proxy may have loaded. Its primary may encrypt: see [`Self::without_sealing`] if there may be proxies.
    pub fn new(
        generation: u64,
        next: KeySecret,
        primary: KeySecret,
        policy: &RotationPolicy,
        now: Timestamp,
    ) -> Self {
        Self {
            generation,
            changed_at: now,
            rotated_at: now,
            handled_request: None,
            next: TicketKey::next(next, policy, now),
            primary: TicketKey::next(primary, policy, now).promoted(policy, now),
            previous: Vec::new(),
        }
    }

    /// Returns the ring after one rotation. `fresh` becomes the new `next`.
    pub fn rotated(
        self,
        fresh: KeySecret,
        request: Option<&RotationRequest>,
        policy: &RotationPolicy,
        now: Timestamp,
    ) -> Self {
        let mut ring = self.without_expired(now);
        ring.rotated_at = now;
        if let Some(request) = request {
            ring.handled_request = Some(request.value.clone());
        }
        let promoted =
            std::mem::replace(&mut ring.next, TicketKey::next(fresh, policy, now)).promoted(policy, now);
        let demoted = std::mem::replace(&mut ring.primary, promoted).demoted(policy, now);
        ring.previous.insert(0, demoted);
        ring
    }

    /// Returns the same ring with a primary that only decrypts, until a rotation makes another one.
    pub fn without_sealing(mut self, now: Timestamp) -> Self {
        self.primary = self.primary.silenced(now);
        self
    }

    /// Whether the primary key may encrypt tickets at `now`.
    pub fn may_seal(&self, now: Timestamp) -> bool {
        now < self.primary.seal_until
    }

    /// Returns the ring with another `next`, to replace one that expires before it could be used.
    pub fn with_next(self, fresh: KeySecret, policy: &RotationPolicy, now: Timestamp) -> Self {
        let mut ring = self.without_expired(now);
        ring.next = TicketKey::next(fresh, policy, now);
        ring
    }

    /// Returns the ring without times in the future, under the next generation.
    pub fn clamped(self, policy: &RotationPolicy, now: Timestamp) -> Self {
        let mut ring = self.without_expired(now);
        ring.rotated_at = ring.rotated_at.min(now);
        ring.next = ring.next.clamped(policy, now);
        ring.primary = ring.primary.clamped(policy, now);
        let previous = ring.previous.into_iter();
        ring.previous = previous.map(|key| key.clamped(policy, now)).collect();
        ring
    }

    /// What proxies acknowledge.
    pub fn version(&self) -> RingVersion {
        RingVersion {
            generation: self.generation,
            next: self.next.id,
            primary: self.primary.id,
        }
    }

    /// Removes the keys that may no longer decrypt tickets.
    pub fn without_expired(mut self, now: Timestamp) -> Self {
        self.generation += 1;
        self.changed_at = now;
        self.previous.retain(|key| now < key.open_until);
        self
    }

    /// Returns the same keys under a higher generation, to replace a damaged, missing or rolled-back ring.
    pub fn reissued(mut self, generation: u64, now: Timestamp) -> Self {
        self.generation = generation;
        self.changed_at = now;
        self
    }

    /// All keys, newest first.
    pub fn keys(&self) -> impl Iterator<Item = &TicketKey> {
        [&self.next, &self.primary].into_iter().chain(&self.previous)
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use jiff::SignedDuration;

    use super::*;

    pub(crate) const POLICY: RotationPolicy = RotationPolicy {
        rotation_interval: SignedDuration::from_hours(1),
        lifetime: SignedDuration::from_hours(4),
        max_unacked_wait: SignedDuration::from_mins(10),
    };

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    pub(crate) fn secret() -> KeySecret {
        KeySecret::generate().expect("the system has randomness")
    }

    /// A version of which only the generation matters.
    pub(crate) fn version(generation: u64) -> RingVersion {
        RingVersion {
            generation,
            next: KeyId([1; 16]),
            primary: KeyId([2; 16]),
        }
    }

    pub(crate) fn ring() -> Ring {
        Ring::new(1, secret(), secret(), &POLICY, at(0))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::fixtures::*;
    use super::*;

    fn ids(ring: &Ring) -> Vec<KeyId> {
        ring.keys().map(|key| key.id).collect()
    }

    #[test]
    fn rotation_moves_every_key_one_role_on() {
        let first = ring();
        let before = ids(&first);
        let second = first.rotated(secret(), None, &POLICY, at(3600));
        let third = second.clone().rotated(secret(), None, &POLICY, at(7200));
        assert_eq!((second.generation, third.generation), (2, 3));
        assert_eq!((third.changed_at, third.rotated_at), (at(7200), at(7200)));
        assert_eq!(ids(&second)[1..], before, "newest first, and none lost");
        assert_eq!(ids(&third)[1..], ids(&second));
        let distinct: std::collections::BTreeSet<_> = ids(&third).into_iter().collect();
        assert_eq!(distinct.len(), 4, "the new key is none of the old ones");
    }

    #[test]
    fn a_scheduled_rotation_does_not_forget_the_request_that_was_handled() {
        let asked = RotationRequest {
            value: "x".into(),
            seen_at: at(10),
        };
        let ring = ring().rotated(secret(), Some(&asked), &POLICY, at(10));
        let ring = ring.rotated(secret(), None, &POLICY, at(3610));
        assert_eq!(ring.handled_request.as_deref(), Some("x"));
    }

    #[test]
    fn a_previous_key_outlives_every_ticket_that_a_late_proxy_may_have_sealed() {
        let ring = ring().rotated(secret(), None, &POLICY, at(3600));
        let latest_seal = at(3600) + POLICY.max_unacked_wait;
        assert_eq!(ring.previous[0].seal_until, at(3600));
        assert_eq!(ring.previous[0].open_until, latest_seal + POLICY.lifetime);
    }

    #[test]
    fn a_proxy_that_misses_rotations_seals_for_a_day_or_for_two_intervals() {
        for (interval_hours, window_hours) in [(1, 24), (12, 24), (13, 26), (48, 96)] {
            let policy = RotationPolicy {
                rotation_interval: SignedDuration::from_hours(interval_hours),
                ..POLICY
            };
            let window = SignedDuration::from_hours(window_hours);
            let ring = Ring::new(1, secret(), secret(), &policy, at(0));
            let times = |key: &TicketKey| (key.created_at, key.seal_until, key.open_until);
            let primary_ends = at(0) + window;
            let primary = (at(0), primary_ends, primary_ends + POLICY.lifetime);
            assert_eq!(times(&ring.primary), primary, "interval of {interval_hours} h");
            // One window in which the key may still be promoted, and one in which it then seals.
            let next_ends = at(0) + window + window;
            let next = (at(0), next_ends, next_ends + POLICY.lifetime);
            assert_eq!(times(&ring.next), next, "interval of {interval_hours} h");
            let rotated = ring.rotated(secret(), None, &policy, at(3600));
            let promoted_ends = at(3600) + window;
            let promoted = (at(0), promoted_ends, promoted_ends + POLICY.lifetime);
            assert_eq!(
                times(&rotated.primary),
                promoted,
                "interval of {interval_hours} h"
            );
        }
    }

    #[test]
    fn expired_keys_are_dropped_and_the_generation_grows() {
        let ring = ring().rotated(secret(), None, &POLICY, at(3600));
        let end = ring.previous[0].open_until;
        let before = end - SignedDuration::from_secs(1);
        let still_there = ring.clone().without_expired(before);
        assert_eq!((still_there.previous.len(), still_there.generation), (1, 3));
        let dropped = ring.without_expired(end);
        assert!(dropped.previous.is_empty());
        assert_eq!((dropped.generation, dropped.changed_at), (3, end));
        assert_eq!(dropped.rotated_at, at(3600), "no rotation");
    }

    #[test]
    fn a_rotation_removes_expired_keys() {
        let ring = ring().rotated(secret(), None, &POLICY, at(3600));
        let (oldest, end) = (ring.previous[0].id, ring.previous[0].open_until);
        let primary = ring.primary.id;
        let rotated = ring.rotated(secret(), None, &POLICY, end);
        assert!(!ids(&rotated).contains(&oldest), "an expired key stayed");
        assert_eq!(rotated.previous.len(), 1);
        assert_eq!(rotated.previous[0].id, primary);
    }

    #[test]
    fn a_reissued_ring_is_newer_and_holds_the_same_keys() {
        let before = ring().rotated(secret(), None, &POLICY, at(3600));
        let after = before.clone().reissued(9, at(7200));
        assert_eq!((after.generation, after.changed_at), (9, at(7200)));
        let unchanged = Ring {
            generation: before.generation,
            changed_at: before.changed_at,
            ..after
        };
        assert_eq!(unchanged, before);
    }
}
