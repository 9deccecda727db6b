//! Tickets and session cache entries: encrypts a session with the primary key ("seal"), and decrypts it on any proxy
//! ("open").
//!
//! ```text
//! ticket = version (1) | key id (16) | nonce (12) | AES-256-GCM-SIV( state ) | tag (16)
//! state  = issued (8) | expires (8) | authenticated (8) | length (2) | session | zeros up to the next bucket
//! ```
//!
//! Times are seconds since 1970, big-endian. The associated data is version, key id, format and [`Scope`], so a ticket
//! from another scope or format fails to authenticate, as a forged one does. GCM-SIV is used because repeated random
//! nonces among all proxies do not compromise other tickets (RFC 8452). Keys are selected by id, never by trial
//! decryption.

use std::collections::HashMap;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use jiff::{SignedDuration, Timestamp};
use zeroize::Zeroizing;

use super::{CacheKey, KeyId, Ring, Scope, TicketKey};
use crate::api::KeyRole;

/// Sizes of tickets in bytes. Sessions are padded to these, so that the size of a ticket does not reveal the length of
/// the session.
const BUCKETS: [usize; 4] = [256, 512, 1024, 2048];

const VERSION: u8 = 1;

/// Format of the session in the ticket. rustls session values have no version, so this must change with every rustls
/// release that changes them; tickets of the old format then cause full handshakes.
const FORMAT: &[u8] = b"rustls 0.23";

/// Purpose under which ticket keys are derived from a ring secret (RFC 5869 info).
const TICKET_PURPOSE: &[u8] = b"tlsfarm session ticket v1";

/// Purpose under which the keys for entries of the session cache are derived.
const CACHE_PURPOSE: &[u8] = b"tlsfarm session cache v1";

const HEADER: usize = 1 + 16 + NONCE_LEN;
const TAG_LEN: usize = 16;
const STATE_HEADER: usize = 8 * 3 + 2;

/// Allowed clock skew in seconds: how far the clock of the issuing proxy may be ahead.
const CLOCK_SKEW: i64 = 600;

/// Maximum ticket lifetime in TLS (RFC 9846 section 4.7.1), in seconds.
const LONGEST_LIFETIME: i64 = 604_800;

/// The derived keys of one ring.
pub struct TicketKeys {
    generation: u64,
    primary: KeyId,
    keys: HashMap<KeyId, ReadyKey>,
}

struct ReadyKey {
    tickets: LessSafeKey,
    entries: LessSafeKey,
    role: KeyRole,
    seal_until: Timestamp,
    open_until: Timestamp,
}

/// What a session is encrypted as. Each kind has its own keys, so one cannot be decrypted as the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SealedAs<'a> {
    /// A ticket, stored by the client.
    Ticket,
    /// The session cache entry with this key.
    Entry(&'a CacheKey),
}

/// Lifetimes of tickets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TicketPolicy {
    /// Lifetime of one ticket.
    pub lifetime: SignedDuration,
    /// Maximum time since the last full handshake for which a client can resume.
    pub max_age: SignedDuration,
}

/// Limits on the tickets of one connection in addition to the policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SessionAge {
    /// When the client last made a full handshake.
    pub authenticated_at: Timestamp,
    /// Expiry of the host's certificate: no session may outlive it.
    pub certificate_until: Timestamp,
}

/// A decrypted ticket.
pub struct OpenedTicket {
    /// The session value of rustls. It contains secrets.
    pub session: Zeroizing<Vec<u8>>,
    /// When the client last made a full handshake.
    pub authenticated_at: Timestamp,
    /// Role of the key that decrypted it, in this proxy's ring.
    pub opened_by: KeyRole,
}

/// Why a ticket was not issued.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum SealError {
    /// The primary key may no longer encrypt: the proxy has not loaded a rotated ring in time.
    #[error("the sealing period of the primary key has ended")]
    KeyExpired,
    /// The session exceeded its maximum age, or the certificate has expired.
    #[error("the session is too old or its certificate has expired")]
    SessionExpired,
    /// The session exceeds the largest ticket size.
    #[error("the session is too large for a ticket")]
    TooLarge,
    /// The random generator or the cipher failed.
    #[error("the cipher or the random generator failed")]
    Cipher,
}

/// Why an offered ticket is not used. The client gets a full handshake, never an alert (RFC 9846 section 4.3.11).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// It does not have the format of a ticket of this farm.
    #[error("not a ticket of this farm")]
    Malformed,
    /// Its key is not in the ring.
    #[error("sealed with a key that is not in the ring")]
    UnknownKey,
    /// Authentication failed: it is forged, modified, or issued for another scope or by another release.
    #[error("failed to authenticate, or issued for another scope")]
    NotAuthentic,
    /// The ticket, its key or its session has expired.
    #[error("expired")]
    Expired,
}

impl TicketPolicy {
    /// Lifetime in seconds of a ticket issued at `now`; 0 if none may be issued.
    pub fn lifetime_of(&self, age: &SessionAge, now: Timestamp) -> u32 {
        let ends = [
            now + self.lifetime,
            age.authenticated_at + self.max_age,
            age.certificate_until,
        ];
        let end = ends.into_iter().min().unwrap_or(now);
        (end.as_second() - now.as_second()).clamp(0, LONGEST_LIFETIME) as u32
    }
}

impl TicketKeys {
    /// Derives the ticket keys of a ring.
    pub fn new(ring: &Ring) -> Self {
        let ready = |key: &TicketKey, role| {
            let ready = ReadyKey {
                tickets: cipher(key, TICKET_PURPOSE),
                entries: cipher(key, CACHE_PURPOSE),
                role,
                seal_until: key.seal_until,
                open_until: key.open_until,
            };
            (key.id, ready)
        };
        let mut keys: HashMap<_, _> = ring
            .previous
            .iter()
            .map(|key| ready(key, KeyRole::Previous))
            .collect();
        keys.extend([
            ready(&ring.next, KeyRole::Next),
            ready(&ring.primary, KeyRole::Primary),
        ]);
        Self {
            generation: ring.generation,
            primary: ring.primary.id,
            keys,
        }
    }

    /// Generation of the ring.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Id of the primary key.
    pub fn primary(&self) -> KeyId {
        self.primary
    }

    /// Ids of the keys that may decrypt tickets at `now`, sorted.
    pub fn open_ids(&self, now: Timestamp) -> Vec<KeyId> {
        let open = self.keys.iter().filter(|(_, key)| now < key.open_until);
        let mut ids: Vec<KeyId> = open.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether the primary key may encrypt tickets at `now`.
    pub fn can_seal(&self, now: Timestamp) -> bool {
        self.keys
            .get(&self.primary)
            .is_some_and(|key| now < key.seal_until)
    }

    /// The earliest time after `now` at which a key expires.
    pub fn next_expiry(&self, now: Timestamp) -> Option<Timestamp> {
        self.keys
            .values()
            .map(|key| key.open_until)
            .filter(|end| *end > now)
            .min()
    }

    /// Removes expired keys; returns whether there were any.
    pub fn without_expired(&mut self, now: Timestamp) -> bool {
        let before = self.keys.len();
        self.keys.retain(|_, key| now < key.open_until);
        self.keys.len() < before
    }

    /// Encrypts a session for `scope` with the primary key.
    pub fn seal(
        &self,
        session: &[u8],
        sealed_as: SealedAs<'_>,
        scope: &Scope,
        policy: &TicketPolicy,
        age: &SessionAge,
        now: Timestamp,
    ) -> Result<Vec<u8>, SealError> {
        let key = self
            .keys
            .get(&self.primary)
            .filter(|key| now < key.seal_until)
            .ok_or(SealError::KeyExpired)?;
        let lifetime = policy.lifetime_of(age, now);
        if lifetime == 0 {
            return Err(SealError::SessionExpired);
        }
        // The padding is encrypted with the session: outside, it would reveal where the session ends.
        let smallest = HEADER + STATE_HEADER + session.len() + TAG_LEN;
        let size = BUCKETS
            .into_iter()
            .find(|size| smallest <= *size)
            .ok_or(SealError::TooLarge)?;

        let mut state = Zeroizing::new(Vec::with_capacity(size - HEADER));
        state.extend(now.as_second().to_be_bytes());
        state.extend((now.as_second() + i64::from(lifetime)).to_be_bytes());
        // Copied from ticket to ticket, so that a chain of resumptions ends `max_age` after its full handshake.
        state.extend(age.authenticated_at.as_second().to_be_bytes());
        state.extend((session.len() as u16).to_be_bytes());
        state.extend_from_slice(session);
        state.resize(size - HEADER - TAG_LEN, 0);
        // Proxies share the key and cannot share a counter. GCM-SIV tolerates that two random nonces are equal.
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SealError::Cipher)?;
        let aad = associated_data(&self.primary, sealed_as, scope);
        key.cipher(sealed_as)
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut *state)
            .map_err(|_| SealError::Cipher)?;

        let mut ticket = Vec::with_capacity(size);
        ticket.push(VERSION);
        ticket.extend(self.primary.0);
        ticket.extend(nonce);
        ticket.extend_from_slice(&state);
        Ok(ticket)
    }

    /// Decrypts a ticket or entry for `scope`. `ticket` is untrusted input from the client or the cache.
    pub fn open(
        &self,
        ticket: &[u8],
        sealed_as: SealedAs<'_>,
        scope: &Scope,
        policy: &TicketPolicy,
        now: Timestamp,
    ) -> Result<OpenedTicket, OpenError> {
        let Envelope { id, nonce, sealed } = Envelope::read(ticket).ok_or(OpenError::Malformed)?;
        let key = self.keys.get(&id).ok_or(OpenError::UnknownKey)?;
        // The control thread removes expired keys. If it hangs, they must not live on.
        if now >= key.open_until {
            return Err(OpenError::Expired);
        }
        let mut state = Zeroizing::new(sealed.to_vec());
        let aad = associated_data(&id, sealed_as, scope);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let state = key
            .cipher(sealed_as)
            .open_in_place(nonce, Aad::from(aad), &mut state)
            .map_err(|_| OpenError::NotAuthentic)?;
        // Only a state that was sealed with the key gets here. A release that changes the state must change FORMAT, so
        // that other releases fail to authenticate its tickets.
        let state = State::read(state).ok_or(OpenError::NotAuthentic)?;
        let from_the_future = state.issued.as_second() > now.as_second() + CLOCK_SKEW;
        // The current policy also applies to tickets that were issued under a more generous one.
        let ends = [
            state.expires.as_second(),
            state.issued.as_second() + policy.lifetime.as_secs(),
            state.authenticated_at.as_second() + policy.max_age.as_secs(),
        ];
        if from_the_future || ends.into_iter().any(|end| now.as_second() >= end) {
            return Err(OpenError::Expired);
        }
        Ok(OpenedTicket {
            session: Zeroizing::new(state.session.to_vec()),
            authenticated_at: state.authenticated_at,
            opened_by: key.role,
        })
    }
}

/// The parts of a ticket.
struct Envelope<'a> {
    id: KeyId,
    nonce: [u8; NONCE_LEN],
    sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn read(ticket: &'a [u8]) -> Option<Self> {
        if !BUCKETS.contains(&ticket.len()) {
            return None;
        }
        let ticket = ticket.strip_prefix(&[VERSION])?;
        let (id, ticket) = ticket.split_first_chunk()?;
        let (nonce, sealed) = ticket.split_first_chunk()?;
        Some(Self {
            id: KeyId(*id),
            nonce: *nonce,
            sealed,
        })
    }
}

/// What a ticket carries.
struct State<'a> {
    issued: Timestamp,
    expires: Timestamp,
    authenticated_at: Timestamp,
    session: &'a [u8],
}

impl<'a> State<'a> {
    fn read(state: &'a [u8]) -> Option<Self> {
        let time = |bytes: &[u8; 8]| Timestamp::from_second(i64::from_be_bytes(*bytes)).ok();
        let (issued, state) = state.split_first_chunk()?;
        let (expires, state) = state.split_first_chunk()?;
        let (authenticated_at, state) = state.split_first_chunk()?;
        let (length, state) = state.split_first_chunk()?;
        Some(Self {
            issued: time(issued)?,
            expires: time(expires)?,
            authenticated_at: time(authenticated_at)?,
            session: state.get(..usize::from(u16::from_be_bytes(*length)))?,
        })
    }
}

impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketKeys")
            .field("generation", &self.generation)
            .field("primary", &self.primary)
            .finish_non_exhaustive()
    }
}

impl ReadyKey {
    fn cipher(&self, sealed_as: SealedAs<'_>) -> &LessSafeKey {
        match sealed_as {
            SealedAs::Ticket => &self.tickets,
            SealedAs::Entry(_) => &self.entries,
        }
    }
}

fn cipher(key: &TicketKey, purpose: &[u8]) -> LessSafeKey {
    struct Length32;
    impl KeyType for Length32 {
        fn len(&self) -> usize {
            32
        }
    }
    let prk = Prk::new_less_safe(HKDF_SHA256, key.secret.expose());
    let mut derived = Zeroizing::new([0; 32]);
    prk.expand(&[purpose], Length32)
        .and_then(|okm| okm.fill(&mut *derived))
        .expect("32 bytes are within what HKDF-SHA256 can expand to");
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &*derived).expect("the cipher takes 32-byte keys"))
}

fn associated_data(id: &KeyId, sealed_as: SealedAs<'_>, scope: &Scope) -> Vec<u8> {
    let place: &[u8] = match sealed_as {
        SealedAs::Ticket => &[],
        SealedAs::Entry(key) => key.as_bytes(),
    };
    [&[VERSION], id.0.as_slice(), FORMAT, scope.as_bytes(), place].concat()
}

#[cfg(test)]
mod tests;
