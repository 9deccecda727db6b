//! The ring as one versioned JSON document, as it lies in the ring Secret and in the proxies' mounts.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{KeyId, KeySecret, KeyWeakness, MAX_KEYS, Ring, TicketKey};

/// The version that this release writes. It reads this one only; a later format is read for one release before it is
/// written, so that neighbouring releases share a ring.
const VERSION: u32 = 1;

/// No honest ring is larger: 32 keys take about 8 KiB.
const MAX_DOCUMENT: usize = 64 * 1024;

/// Seconds since 1970 that a ring may speak of: sums with lifetimes stay far from the ends of the calendar.
const PLAUSIBLE: std::ops::Range<i64> = 0..16_725_225_600;

/// Why a ring document is refused. No variant carries any of the document's text, which holds secrets.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RingError {
    /// It is larger than any ring.
    #[error("the ring document is too large: {0} bytes")]
    TooLarge(usize),
    /// It is not a JSON document of the right form.
    #[error("failed to parse the ring document at line {line}, column {column}")]
    Malformed {
        /// Line of the first fault, from 1.
        line: usize,
        /// Column of the first fault, from 1.
        column: usize,
    },
    /// It is written in a format that this release does not know.
    #[error("ring document version {0} is not supported; this release supports version {VERSION}")]
    Version(u32),
    /// It holds more keys than a ring may.
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
    /// A time lies so far from ours that nothing could be computed with it.
    #[error("the ring document contains a time before 1970 or after 2500")]
    ImplausibleTime,
    /// A key is too weak to be used.
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
    /// Reads a ring document, refusing it whole when anything is wrong with it.
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

    /// Writes the ring as a document. It holds every secret: it belongs in the ring Secret and nowhere else.
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
