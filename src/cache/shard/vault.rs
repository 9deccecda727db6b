//! In-memory form of keys and values: keys as keyed hashes, values encrypted if configured.
//!
//! Both secrets are generated at the start and never leave the process. Without them, a swapped page or a copy of the
//! heap reveals no session and no id that a client could offer.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{cmac, rand};
use zeroize::{Zeroize, Zeroizing};

/// Keyed hash of a key: uniformly distributed, and unique for practical purposes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Id(pub(super) [u8; 16]);

/// Length of the prefix of an encrypted value: the counter of its nonce.
const HEAD: usize = 8;

/// The hash and encryption keys of one process.
pub(super) struct Vault {
    ids: cmac::Key,
    values: Option<LessSafeKey>,
    sealed: AtomicU64,
}

impl Vault {
    /// Generates the secrets. Values are encrypted if `encrypt` is set. None if the operating system returns no random
    /// bytes.
    pub(super) fn new(encrypt: bool) -> Option<Self> {
        let mut secrets = Zeroizing::new([0; 48]);
        rand::fill(secrets.as_mut()).ok()?;
        let (ids, values) = secrets.split_at_checked(16)?;
        let values = UnboundKey::new(&AES_256_GCM, values).ok()?;
        Some(Self {
            ids: cmac::Key::new(cmac::AES_128, ids).ok()?,
            values: encrypt.then(|| LessSafeKey::new(values)),
            sealed: AtomicU64::new(0),
        })
    }

    /// Hashes a key; None if the crypto library fails.
    pub(super) fn id(&self, key: &[u8]) -> Option<Id> {
        let tag = cmac::sign(&self.ids, key).ok()?;
        tag.as_ref().try_into().ok().map(Id)
    }

    /// Encrypts a value, bound to its key by the associated data.
    pub(super) fn seal(&self, id: &Id, value: &[u8]) -> Option<Zeroizing<Box<[u8]>>> {
        let Some(key) = &self.values else {
            return Some(Zeroizing::new(value.into()));
        };
        let number = self.sealed.fetch_add(1, Ordering::Relaxed);
        let mut kept = Vec::with_capacity(HEAD + value.len() + AES_256_GCM.tag_len());
        kept.extend_from_slice(&number.to_le_bytes());
        kept.extend_from_slice(value);
        let outcome = key.seal_in_place_separate_tag(nonce(number), Aad::from(id.0), kept.get_mut(HEAD..)?);
        let Ok(tag) = outcome else {
            kept.zeroize();
            return None;
        };
        kept.extend_from_slice(tag.as_ref());
        Some(Zeroizing::new(kept.into_boxed_slice()))
    }

    /// Decrypts a value from [`seal`](Self::seal). None if authentication fails.
    pub(super) fn open(&self, id: &Id, kept: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let Some(key) = &self.values else {
            return Some(Zeroizing::new(kept.to_vec()));
        };
        let (number, sealed) = kept.split_first_chunk::<HEAD>()?;
        let mut value = Zeroizing::new(sealed.to_vec());
        let nonce = nonce(u64::from_le_bytes(*number));
        let length = key.open_in_place(nonce, Aad::from(id.0), &mut value).ok()?.len();
        value.truncate(length);
        Some(value)
    }
}

/// Builds a nonce from a counter, which never repeats with one key.
fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    let (head, _) = nonce.split_at_mut(HEAD);
    head.copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_values_open_only_under_their_own_key_and_hide_the_plaintext() {
        let vault = Vault::new(true).expect("randomness");
        let (one, other) = (vault.id(b"one").expect("id"), vault.id(b"other").expect("id"));
        let value = b"a master secret that nobody may read";
        let kept = vault.seal(&one, value).expect("sealed");
        assert_eq!(vault.open(&one, &kept).expect("opens").as_slice(), value);
        assert_eq!(vault.open(&other, &kept), None);
        assert_eq!(vault.open(&one, &kept[1..]), None);
        assert_eq!(vault.open(&one, b""), None);
        assert!(!kept.windows(6).any(|part| part == b"secret"));
        assert_ne!(kept, vault.seal(&one, value).expect("sealed"));
    }

    #[test]
    fn ids_differ_between_keys_and_between_processes() {
        let (here, there) = (Vault::new(false).expect("new"), Vault::new(false).expect("new"));
        assert_eq!(here.id(b"a"), here.id(b"a"));
        assert_ne!(here.id(b"a"), here.id(b"b"));
        assert_ne!(here.id(b"a"), there.id(b"a"));
    }

    #[test]
    fn values_that_are_sealed_already_are_kept_as_they_are() {
        let vault = Vault::new(false).expect("randomness");
        let id = vault.id(b"one").expect("id");
        assert_eq!(vault.seal(&id, b"sealed").expect("kept").as_ref(), b"sealed");
        assert_eq!(vault.open(&id, b"sealed").expect("kept").as_slice(), b"sealed");
    }
}
