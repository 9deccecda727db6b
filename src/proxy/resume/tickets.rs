//! The tickets of one connection: encrypts and decrypts sessions for rustls, bound to the client's host.
//!
//! rustls passes only bytes, and does not report whether a decrypted ticket was resumed. So each connection has its own
//! object, which knows host and policy, and the handshake calls [`ConnectionTickets::settle`] after each decision of
//! rustls.

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use rustls::HandshakeKind;
use rustls::server::{ProducesTickets, StoresServerSessions};
use zeroize::Zeroizing;

use super::session_cache::{Cached, StoreAllowance, StoredSession};
use crate::api::{KeyRole, TicketKind};
use crate::proxy::metrics::{ProxyMetrics, TicketIssue, TicketOutcome};
use crate::proxy::tls::client_hello::SessionName;
use crate::ring::{
    CacheKey, CacheKind, OpenError, OpenedTicket, Ring, Scope, SealError, SealedAs, SessionAge, TicketKeys,
    TicketPolicy,
};

/// Maximum number of tickets decrypted per connection, because each costs a decryption for an unauthenticated client.
const MOST_TRIED: usize = 4;

/// The ticket keys of the process; None until the first valid ring is loaded.
///
/// Connections read the keys at each use, so that a new ring or an expired key takes effect for running handshakes too.
#[derive(Default)]
pub(crate) struct SharedKeys(RwLock<Option<TicketKeys>>);

impl SharedKeys {
    /// Loads a ring, without its expired keys.
    pub(crate) fn replace(&self, ring: &Ring, now: Timestamp) {
        let mut keys = TicketKeys::new(ring);
        keys.without_expired(now);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(keys);
    }

    /// Removes expired keys; returns whether there were any.
    pub(crate) fn forget_expired(&self, now: Timestamp) -> bool {
        let due = self.read(|keys| keys.next_expiry(Timestamp::MIN).is_some_and(|first| first <= now));
        due == Some(true)
            && self
                .0
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .as_mut()
                .is_some_and(|keys| keys.without_expired(now))
    }

    /// Calls `look` with the keys, if a ring is loaded.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&TicketKeys) -> R) -> Option<R> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(look)
    }
}

/// An encrypted session.
struct SealedSession {
    bytes: Vec<u8>,
    /// Lifetime in seconds.
    lifetime: u32,
}

/// Why a session was not encrypted.
enum Unsealed {
    /// There is no ring, or no certificate.
    Unable,
    Refused(SealError),
}

impl From<Unsealed> for TicketIssue {
    fn from(unsealed: Unsealed) -> Self {
        match unsealed {
            Unsealed::Unable => Self::NoRing,
            Unsealed::Refused(error) => Self::Refused(error),
        }
    }
}

/// TLS version of a connection, for ticket policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TicketVersion {
    /// TLS 1.2: a ticket contains the session's own keys.
    Tls12,
    /// TLS 1.3: a ticket contains a secret that is combined with a new key exchange.
    Tls13,
}

/// Resumption policy of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResumptionRules {
    /// Scope that its sessions are bound to.
    pub(crate) scope: Scope,
    /// TLS version of the connection.
    pub(crate) version: TicketVersion,
    /// Lifetimes of its tickets; None: tickets are not allowed.
    pub(crate) tickets: Option<TicketPolicy>,
    /// Kind of its TLS 1.3 tickets.
    pub(crate) kind: TicketKind,
    /// Lifetimes of session ids; None: session ids are not allowed.
    pub(crate) session_ids: Option<TicketPolicy>,
    /// Whether a new session gets a session id, if those are allowed.
    pub(crate) gets_session_id: bool,
}

/// Encrypts and decrypts the sessions of one connection: tickets and session cache entries.
pub(crate) struct ConnectionTickets {
    keys: Arc<SharedKeys>,
    rules: ResumptionRules,
    cached: Cached,
    metrics: ProxyMetrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tried: usize,
    /// A decrypted session whose outcome is unknown yet.
    opened: Option<Opened>,
    /// Time of the client's last full handshake, if this handshake is a resumption.
    authenticated_at: Option<Timestamp>,
    certificate_until: Option<Timestamp>,
    /// Lifetime of the last ticket, in seconds.
    lifetime: u32,
    /// Sessions to store in the session cache.
    entries: Vec<StoredSession>,
    /// Number of sessions not stored because the client exceeded its budget.
    over_budget: usize,
}

#[derive(Clone, Copy)]
struct Opened {
    authenticated_at: Timestamp,
    role: KeyRole,
    by: OpenedBy,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum OpenedBy {
    Ticket,
    SessionId,
}

impl ConnectionTickets {
    /// Creates the tickets of one connection. `cached` is the result of the session cache lookup.
    pub(crate) fn new(
        keys: Arc<SharedKeys>,
        rules: ResumptionRules,
        cached: Cached,
        metrics: ProxyMetrics,
    ) -> Self {
        Self {
            keys,
            rules,
            cached,
            metrics,
            state: Mutex::default(),
        }
    }

    /// Sets the expiry of the connection's certificate. Until then no ticket is issued.
    pub(crate) fn set_certificate_until(&self, until: Timestamp) {
        self.state().certificate_until = Some(until);
    }

    /// Records the handshake kind that rustls has decided. A decrypted session counts as used only if it was resumed; a
    /// full handshake resets the age of the session.
    pub(crate) fn settle(&self, kind: Option<HandshakeKind>) {
        let Some(kind) = kind else { return };
        let Some(opened) = self.state().opened.take() else {
            return;
        };
        if kind == HandshakeKind::Resumed {
            self.state().authenticated_at = Some(opened.authenticated_at);
            self.count(opened.by, TicketOutcome::Resumed(opened.role));
        } else {
            self.count(opened.by, TicketOutcome::Declined);
        }
    }

    /// Removes and returns the sessions to store in the session cache.
    pub(crate) fn take_entries(&self) -> Vec<StoredSession> {
        mem::take(&mut self.state().entries)
    }

    /// Removes and returns the number of sessions that were not stored because the client exceeded its budget.
    pub(crate) fn take_over_budget(&self) -> usize {
        mem::take(&mut self.state().over_budget)
    }

    fn seal(&self, session: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        let policy = self.rules.tickets?;
        if self.rules.kind == TicketKind::SingleUse && !self.finds_room() {
            self.metrics.ticket_issued(match self.cached.room {
                StoreAllowance::OverBudget => TicketIssue::OverBudget,
                StoreAllowance::Free | StoreAllowance::NoCache => TicketIssue::NoCache,
            });
            return None;
        }
        let sealed = match self.rules.kind {
            TicketKind::Stateless => self.seal_as(session, SealedAs::Ticket, &policy, now),
            TicketKind::SingleUse => self.seal_single_use(session, &policy, now),
        };
        match sealed {
            Ok(ticket) => {
                self.state().lifetime = ticket.lifetime;
                self.metrics.ticket_issued(TicketIssue::Sealed);
                Some(ticket.bytes)
            }
            Err(unsealed) => {
                self.metrics.ticket_issued(unsealed.into());
                None
            }
        }
    }

    /// Issues a single-use ticket: a random id. The session is stored in the cache.
    fn seal_single_use(
        &self,
        session: &[u8],
        policy: &TicketPolicy,
        now: Timestamp,
    ) -> Result<SealedSession, Unsealed> {
        let mut name: SessionName = [0; 32];
        if aws_lc_rs::rand::fill(&mut name).is_err() {
            return Err(Unsealed::Refused(SealError::Cipher));
        }
        let lifetime = self.seal_entry(CacheKind::SingleUse, &name, session, policy, now)?;
        Ok(SealedSession {
            bytes: name.to_vec(),
            lifetime,
        })
    }

    /// Encrypts a session for the cache and keeps it until `take_entries`. Returns its lifetime in seconds.
    fn seal_entry(
        &self,
        kind: CacheKind,
        name: &[u8],
        session: &[u8],
        policy: &TicketPolicy,
        now: Timestamp,
    ) -> Result<u32, Unsealed> {
        let key = CacheKey::new(kind, &self.rules.scope, name);
        let SealedSession { bytes, lifetime } = self.seal_as(session, SealedAs::Entry(&key), policy, now)?;
        self.state().entries.push(StoredSession {
            key,
            sealed: bytes,
            lifetime: Duration::from_secs(lifetime.into()),
        });
        Ok(lifetime)
    }

    fn seal_as(
        &self,
        session: &[u8],
        sealed_as: SealedAs<'_>,
        policy: &TicketPolicy,
        now: Timestamp,
    ) -> Result<SealedSession, Unsealed> {
        let state = self.state();
        let age = SessionAge {
            // In TLS 1.2 the new ticket is sealed before `settle` can be called, and only when resuming.
            authenticated_at: state
                .authenticated_at
                .or(state.opened.map(|opened| opened.authenticated_at))
                .unwrap_or(now),
            certificate_until: state.certificate_until.ok_or(Unsealed::Unable)?,
        };
        let lifetime = policy.lifetime_of(&age, now);
        let sealed = self
            .keys
            .read(|keys| keys.seal(session, sealed_as, &self.rules.scope, policy, &age, now))
            .ok_or(Unsealed::Unable)?;
        match sealed {
            Ok(bytes) => Ok(SealedSession { bytes, lifetime }),
            Err(error) => Err(Unsealed::Refused(error)),
        }
    }

    /// Keeps a session with a session id; returns whether it was kept.
    fn keep(&self, id: &[u8], session: &[u8], now: Timestamp) -> bool {
        let Some(policy) = self.rules.session_ids else {
            return false;
        };
        let kept = self.seal_entry(CacheKind::SessionId, id, session, &policy, now);
        kept.is_ok()
    }

    fn open(&self, ticket: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        // rustls asks for another ticket only after it has declined the previous one.
        let turned_down = self.state().opened.take();
        if let Some(opened) = turned_down {
            self.count(opened.by, TicketOutcome::Declined);
        }
        let tried = {
            let mut state = self.state();
            state.tried += 1;
            state.tried
        };
        let (Some(policy), 1..=MOST_TRIED) = (self.rules.tickets, tried) else {
            self.metrics.ticket_offered(TicketOutcome::NotAllowed);
            return None;
        };
        let scope = &self.rules.scope;
        let opened = match self.rules.kind {
            TicketKind::Stateless => {
                let opened = self
                    .keys
                    .read(|keys| keys.open(ticket, SealedAs::Ticket, scope, &policy, now));
                outcome_of(opened)
            }
            TicketKind::SingleUse => self.open_found(ticket, &policy, now),
        };
        match opened {
            Ok(opened) => Some(self.opened(&opened, OpenedBy::Ticket)),
            Err(outcome) => {
                self.metrics.ticket_offered(outcome);
                None
            }
        }
    }

    fn open_session_id(&self, id: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        let policy = self.rules.session_ids?;
        match self.open_found(id, &policy, now) {
            Ok(opened) => Some(self.opened(&opened, OpenedBy::SessionId)),
            // TLS 1.3 clients send random session ids, so an unknown id is not a miss.
            Err(TicketOutcome::NotFound) => None,
            Err(outcome) => {
                self.metrics.session_id_offered(outcome);
                None
            }
        }
    }

    /// Decrypts the cache entry for this id.
    fn open_found(
        &self,
        name: &[u8],
        policy: &TicketPolicy,
        now: Timestamp,
    ) -> Result<OpenedTicket, TicketOutcome> {
        let found = self.cached.found.as_ref().filter(|found| found.name == name);
        let found = found.ok_or(TicketOutcome::NotFound)?;
        let sealed_as = SealedAs::Entry(&found.key);
        outcome_of(
            self.keys
                .read(|keys| keys.open(&found.entry, sealed_as, &self.rules.scope, policy, now)),
        )
    }

    /// Remembers a decrypted session until its outcome is known, and passes it to rustls, which owns the bytes from
    /// then on and does not zero them: only the parsed values are zeroed.
    fn opened(&self, opened: &OpenedTicket, by: OpenedBy) -> Vec<u8> {
        self.state().opened = Some(Opened {
            authenticated_at: opened.authenticated_at,
            role: opened.opened_by,
            by,
        });
        opened.session.to_vec()
    }

    fn count(&self, by: OpenedBy, outcome: TicketOutcome) {
        match by {
            OpenedBy::Ticket => self.metrics.ticket_offered(outcome),
            OpenedBy::SessionId => self.metrics.session_id_offered(outcome),
        }
    }

    /// Whether one more session may be stored. If not, no id is issued, because lookups would miss.
    fn finds_room(&self) -> bool {
        if self.cached.room == StoreAllowance::OverBudget {
            self.state().over_budget += 1;
        }
        self.cached.room == StoreAllowance::Free
    }

    fn can_seal(&self) -> bool {
        self.keys.read(|keys| keys.can_seal(Timestamp::now())) == Some(true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// TLS 1.2 sessions by id. rustls finds only the session that was looked up before the handshake.
impl StoresServerSessions for ConnectionTickets {
    fn put(&self, id: Vec<u8>, session: Vec<u8>) -> bool {
        let session = Zeroizing::new(session);
        self.keep(&id, &session, Timestamp::now())
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.open_session_id(id, Timestamp::now())
    }

    fn take(&self, _: &[u8]) -> Option<Vec<u8>> {
        // rustls calls this only in TLS 1.3 without a ticketer.
        None
    }

    fn can_cache(&self) -> bool {
        let rules = &self.rules;
        // rustls calls this once per full handshake.
        rules.session_ids.is_some() && rules.gets_session_id && self.can_seal() && self.finds_room()
    }
}

impl ProducesTickets for ConnectionTickets {
    fn enabled(&self) -> bool {
        self.rules.tickets.is_some()
            && match self.rules.version {
                // rustls opens offered tickets regardless of this, and a ticket that was promised must be sent.
                TicketVersion::Tls12 => self.can_seal(),
                // rustls opens offered tickets only if this returns true.
                TicketVersion::Tls13 => true,
            }
    }

    fn lifetime(&self) -> u32 {
        self.state().lifetime
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.seal(session, Timestamp::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, Timestamp::now())
    }
}

impl Drop for ConnectionTickets {
    fn drop(&mut self) {
        // The handshake ended before rustls had decided, as it does on a wrong binder.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = state.opened.take() {
            self.count(opened.by, TicketOutcome::Declined);
        }
    }
}

/// Converts the result of decryption to an outcome. None: no ring is loaded.
fn outcome_of(opened: Option<Result<OpenedTicket, OpenError>>) -> Result<OpenedTicket, TicketOutcome> {
    match opened {
        None => Err(TicketOutcome::NoRing),
        Some(opened) => opened.map_err(TicketOutcome::Refused),
    }
}

impl fmt::Debug for ConnectionTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionTickets")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
