//! Versioned JSON format of the ring, as stored in the ring Secret and mounted into the proxies.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{KeyId, KeySecret, KeyWeakness, MAX_KEYS, Ring, TicketKey};

/// The version that this release reads and writes. A new version is readable one release before it is written, so that
/// adjacent releases can share a ring.
const VERSION: u32 = 1;

/// Maximum size of a document in bytes: 32 keys take about 8 KiB.
const MAX_DOCUMENT: usize = 64 * 1024;

/// Valid range of times, in seconds since 1970: sums with lifetimes do not overflow.
const PLAUSIBLE: std::ops::Range<i64> = 0..16_725_225_600;

/// Why a ring document was rejected. No variant contains data of the document, which is secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RingError {
    /// It exceeds the maximum size.
    #[error("the ring document is too large: {0} bytes")]
    TooLarge(usize),
    /// It is not JSON or does not match the schema.
    #[error("failed to parse the ring document at line {line}, column {column}")]
    Malformed {
        /// Line of the first error, from 1.
        line: usize,
        /// Column of the first error, from 1.
        column: usize,
    },
    /// Its version is not supported.
    #[error("ring document version {0} is not supported; this release supports version {VERSION}")]
    Version(u32),
    /// It has too many keys.
    #[error("the ring has {0} keys; the maximum is {MAX_KEYS}")]
    TooManyKeys(usize),
    /// A key's id is not 32 hexadecimal digits, or its secret is not base64.
    #[error(
        "key number {0} of the ring: the id is not 32 lower-case hexadecimal digits, or the secret is not base64"
    )]
    KeyEncoding(usize),
    /// Two keys share an id or a secret.
    #[error("two keys of the ring share an id or a secret")]
    DuplicateKey,
    /// A time is out of range.
    #[error("the ring document contains a time before 1970 or after 2500")]
    ImplausibleTime,
    /// A key is weak.
    #[error("key {0} of the ring is weak: {1}")]
    WeakKey(KeyId, KeyWeakness),
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    version: u32,
    generation: u64,
    changed_at: Timestamp,
    rotated_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    handled_request: Option<String>,
    next: KeyDocument,
    primary: KeyDocument,
    previous: Vec<KeyDocument>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyDocument {
    id: String,
    secret: Zeroizing<String>,
    created_at: Timestamp,
    seal_until: Timestamp,
    open_until: Timestamp,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl Ring {
    /// Parses a ring document. Fails if anything in it is invalid.
    pub fn from_document(document: &[u8]) -> Result<Self, RingError> {
        if document.len() > MAX_DOCUMENT {
            return Err(RingError::TooLarge(document.len()));
        }
        let VersionOnly { version } = serde_json::from_slice(document).map_err(malformed)?;
        if version != VERSION {
            return Err(RingError::Version(version));
        }
        let document: Document = serde_json::from_slice(document).map_err(malformed)?;
        let count = document.previous.len() + 2;
        if count > MAX_KEYS {
            return Err(RingError::TooManyKeys(count));
        }
        let ring = Self {
            generation: document.generation,
            changed_at: document.changed_at,
            rotated_at: document.rotated_at,
            handled_request: document.handled_request,
            next: read_key(1, document.next)?,
            primary: read_key(2, document.primary)?,
            previous: (3..)
                .zip(document.previous)
                .map(|(n, key)| read_key(n, key))
                .collect::<Result<_, _>>()?,
        };
        let times = ring
            .keys()
            .flat_map(|key| [key.created_at, key.seal_until, key.open_until]);
        if times
            .chain([ring.changed_at, ring.rotated_at])
            .any(|time| !PLAUSIBLE.contains(&time.as_second()))
        {
            return Err(RingError::ImplausibleTime);
        }
        let ids: BTreeSet<_> = ring.keys().map(|key| key.id).collect();
        let secrets: BTreeSet<_> = ring.keys().map(|key| key.secret.expose()).collect();
        if ids.len() < count || secrets.len() < count {
            return Err(RingError::DuplicateKey);
        }
        Ok(ring)
    }

    /// Serializes the ring. The document contains all secrets: write it only to the ring Secret.
    pub fn to_document(&self) -> Zeroizing<Vec<u8>> {
        let document = Document {
            version: VERSION,
            generation: self.generation,
            changed_at: self.changed_at,
            rotated_at: self.rotated_at,
            handled_request: self.handled_request.clone(),
            next: write_key(&self.next),
            primary: write_key(&self.primary),
            previous: self.previous.iter().map(write_key).collect(),
        };
        // Room for the largest ring, so that growing never leaves a copy behind in freed memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_DOCUMENT));
        serde_json::to_writer(&mut *bytes, &document)
            .expect("strings and numbers always serialize into memory");
        bytes
    }
}

fn malformed(error: serde_json::Error) -> RingError {
    RingError::Malformed {
        line: error.line(),
        column: error.column(),
    }
}

fn read_key(number: usize, key: KeyDocument) -> Result<TicketKey, RingError> {
    let id = KeyId::from_hex(&key.id).ok_or(RingError::KeyEncoding(number))?;
    let bytes = Zeroizing::new(
        STANDARD
            .decode(key.secret.as_bytes())
            .map_err(|_| RingError::KeyEncoding(number))?,
    );
    let secret = KeySecret::from_slice(&bytes).map_err(|weakness| RingError::WeakKey(id, weakness))?;
    Ok(TicketKey {
        id,
        secret,
        created_at: key.created_at,
        seal_until: key.seal_until,
        open_until: key.open_until,
    })
}

fn write_key(key: &TicketKey) -> KeyDocument {
    KeyDocument {
        id: key.id.to_string(),
        secret: Zeroizing::new(STANDARD.encode(key.secret.expose())),
        created_at: key.created_at,
        seal_until: key.seal_until,
        open_until: key.open_until,
    }
}

#[cfg(test)]
mod tests;
