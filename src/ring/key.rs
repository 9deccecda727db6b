//! Ticket keys: secret, id and validity.

use std::fmt;

use jiff::Timestamp;
use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::ZeroizeOnDrop;

use super::policy::RotationPolicy;

/// 256 random bits from the operating system. They are zeroed on drop, never printed, and never used directly: each
/// purpose derives its own key from them.
///
/// There is no `Debug` that could leak them:
///
/// ```compile_fail
/// let secret = tlsfarm::ring::KeySecret::generate().unwrap();
/// println!("{:?}", secret);
/// ```
///
/// and no way to print or compare them:
///
/// ```compile_fail
/// let secret = tlsfarm::ring::KeySecret::generate().unwrap();
/// println!("{}", secret);
/// ```
#[derive(Clone, ZeroizeOnDrop)]
pub struct KeySecret([u8; KeySecret::LEN]);

/// Public id of a key, which tickets contain in plain text. It is random, so it reveals nothing about time or place.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(pub [u8; 16]);

/// A key of the ring with its validity. Proxies enforce both limits by their own clocks.
#[derive(Clone)]
pub struct TicketKey {
    /// Public id.
    pub id: KeyId,
    pub(super) secret: KeySecret,
    /// When it was generated.
    pub created_at: Timestamp,
    /// From this time on it must not encrypt tickets.
    pub seal_until: Timestamp,
    /// From this time on it must not decrypt tickets; proxies remove it.
    pub open_until: Timestamp,
}

/// Why key material is rejected as weak (GnuTLS used an all-zero key: CVE-2020-13777).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyWeakness {
    /// It does not have 256 bits; its length in bytes.
    #[error("the secret is {0} bytes long instead of 32")]
    Length(usize),
    /// All bytes are the same, or a short pattern repeats.
    #[error("the secret is a repeating pattern")]
    Repeating,
}

/// The operating system returned no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("failed to get random bytes from the operating system")]
pub struct RandomnessError(#[source] rand::rngs::SysError);

impl KeySecret {
    pub(super) const LEN: usize = 32;

    /// Generates a secret from random bytes of the operating system.
    pub fn generate() -> Result<Self, RandomnessError> {
        let mut secret = Self([0; Self::LEN]);
        SysRng.try_fill_bytes(&mut secret.0).map_err(RandomnessError)?;
        Ok(secret)
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Result<Self, KeyWeakness> {
        let secret = Self(bytes.try_into().map_err(|_| KeyWeakness::Length(bytes.len()))?);
        let repeats = |period: usize| {
            let mut chunks = secret.0.chunks(period);
            let first = chunks.next();
            chunks.all(|chunk| Some(chunk) == first)
        };
        if [1, 2, 4, 8, 16].into_iter().any(repeats) {
            return Err(KeyWeakness::Repeating);
        }
        Ok(secret)
    }

    /// The raw bytes, only for the ring document and key derivation.
    pub(super) fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl KeyId {
    fn generate() -> Self {
        Self(rand::random())
    }

    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32
            || !text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return None;
        }
        u128::from_str_radix(text, 16)
            .ok()
            .map(|number| Self(number.to_be_bytes()))
    }
}

impl TicketKey {
    pub(super) fn next(secret: KeySecret, policy: &RotationPolicy, now: Timestamp) -> Self {
        // The key may be promoted a whole window late and then seal for a window.
        let seal_until = now + policy.seal_window() * 2;
        Self {
            id: KeyId::generate(),
            secret,
            created_at: now,
            seal_until,
            open_until: seal_until + policy.lifetime,
        }
    }

    pub(super) fn promoted(self, policy: &RotationPolicy, now: Timestamp) -> Self {
        let seal_until = now + policy.seal_window();
        Self {
            seal_until,
            open_until: seal_until + policy.lifetime,
            ..self
        }
    }

    /// The same key, which may only decrypt.
    pub(super) fn silenced(self, now: Timestamp) -> Self {
        Self {
            seal_until: self.seal_until.min(now),
            ..self
        }
    }

    /// The same key with times that a key of now could have.
    pub(super) fn clamped(self, policy: &RotationPolicy, now: Timestamp) -> Self {
        let latest = now + policy.seal_window() * 2;
        Self {
            created_at: self.created_at.min(now),
            seal_until: self.seal_until.min(latest),
            open_until: self.open_until.min(latest + policy.lifetime),
            ..self
        }
    }

    pub(super) fn demoted(self, policy: &RotationPolicy, now: Timestamp) -> Self {
        // Proxies that load the rotation late seal with this key for up to the longest wait, and those tickets count
        // too.
        Self {
            seal_until: now,
            open_until: now + policy.max_unacked_wait + policy.lifetime,
            ..self
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey")
            .field("id", &self.id)
            .field("created_at", &self.created_at)
            .field("seal_until", &self.seal_until)
            .field("open_until", &self.open_until)
            .finish_non_exhaustive()
    }
}

/// Keys are equal if their ids are; secrets are never compared.
impl PartialEq for TicketKey {
    fn eq(&self, other: &Self) -> bool {
        (self.id, self.created_at, self.seal_until, self.open_until)
            == (other.id, other.created_at, other.seal_until, other.open_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::fixtures::{POLICY, at};

    #[test]
    fn weak_secrets_are_refused() {
        for weak in [
            vec![0; 32],
            vec![1; 32],
            [1, 2, 3, 4, 5, 6, 7, 8].repeat(4),
            (0..16).collect::<Vec<u8>>().repeat(2),
        ] {
            assert_eq!(KeySecret::from_slice(&weak).err(), Some(KeyWeakness::Repeating));
        }
        assert_eq!(
            KeySecret::from_slice(&[7; 31]).err(),
            Some(KeyWeakness::Length(31))
        );
    }

    #[test]
    fn debug_output_holds_no_byte_of_the_secret() {
        let bytes: Vec<u8> = (100..132).collect();
        let key = TicketKey::next(KeySecret::from_slice(&bytes).expect("strong"), &POLICY, at(0));
        let shown = format!("{key:?}");
        // A random id may contain any digits.
        let without_id = shown.replace(&key.id.to_string(), "");
        assert!(
            !without_id.contains("100") && !without_id.contains("64656667"),
            "{shown}"
        );
        assert!(
            shown.contains(&key.id.to_string()),
            "{shown} does not say which key"
        );
        assert!(
            shown.contains(&key.open_until.to_string()),
            "{shown} does not say until when"
        );
    }

    #[test]
    fn a_key_with_another_id_or_another_time_is_another_key() {
        let key = TicketKey::next(KeySecret::generate().expect("randomness"), &POLICY, at(0));
        assert_eq!(key, key.clone());
        let other = |change: fn(&mut TicketKey)| {
            let mut other = key.clone();
            change(&mut other);
            other
        };
        for altered in [
            other(|key| key.id = KeyId::generate()),
            other(|key| key.created_at = at(1)),
            other(|key| key.seal_until = at(1)),
            other(|key| key.open_until = at(1)),
        ] {
            assert_ne!(key, altered);
        }
    }

    #[test]
    fn ids_are_random_and_survive_hex() {
        let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| KeyId::generate()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            assert_eq!(KeyId::from_hex(&id.to_string()), Some(id));
        }
        assert_eq!(KeyId::from_hex("+0000000000000000000000000000000"), None);
    }
}
