//! The tickets of one connection: what rustls asks to be sealed and opened, bound to the host that the client named.
//!
//! rustls sees only bytes here, and does not say whether an opened ticket led to a resumption. Hence one object for each
//! connection, which knows host and policy, and [`ConnectionTickets::settle`], which the handshake calls whenever rustls
//! has decided.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use jiff::Timestamp;
use rustls::HandshakeKind;
use rustls::server::ProducesTickets;

use super::metrics::{Metrics, TicketIssue, TicketOutcome};
use crate::api::KeyRole;
use crate::ring::{Ring, Scope, SessionAge, TicketKeys, TicketPolicy};

/// Most tickets of one connection that are tried; each costs a decryption before the client has proven anything.
const MOST_TRIED: usize = 4;

/// The ticket keys of the process. There are none before the first good ring, and no others ever.
///
/// Connections look here at each use, so that a new ring reaches also those whose handshake had begun, and an expired
/// key is gone for all at once.
#[derive(Default)]
pub(crate) struct SharedKeys(RwLock<Option<TicketKeys>>);

impl SharedKeys {
    /// Takes a ring into use.
    pub(crate) fn replace(&self, ring: &Ring) {
        let keys = TicketKeys::new(ring);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(keys);
    }

    /// Forgets the keys whose time is over; says whether any went.
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

    /// Looks at the keys, if there are any.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&TicketKeys) -> R) -> Option<R> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(look)
    }
}

/// Version that a connection will speak, as far as tickets care.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TicketVersion {
    /// A ticket carries the keys of the session itself.
    Tls12,
    /// A ticket carries a secret that is combined with a fresh key exchange.
    Tls13,
}

/// Seals and opens the tickets of one connection.
pub(crate) struct ConnectionTickets {
    keys: Arc<SharedKeys>,
    scope: Scope,
    /// None when the connection may not resume by ticket.
    policy: Option<TicketPolicy>,
    version: TicketVersion,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tried: usize,
    /// An opened ticket whose fate rustls has not told yet.
    opened: Option<Opened>,
    /// When the client last made a full handshake, once it is known that this is not one.
    authenticated_at: Option<Timestamp>,
    certificate_until: Option<Timestamp>,
    /// Lifetime of the ticket that was sealed last.
    lifetime: u32,
}

#[derive(Clone, Copy)]
struct Opened {
    authenticated_at: Timestamp,
    role: KeyRole,
}

impl ConnectionTickets {
    /// Tickets for one connection to the host of `scope`.
    pub(crate) fn new(
        keys: Arc<SharedKeys>,
        scope: Scope,
        policy: Option<TicketPolicy>,
        version: TicketVersion,
        metrics: Metrics,
    ) -> Self {
        Self {
            keys,
            scope,
            policy,
            version,
            metrics,
            state: Mutex::default(),
        }
    }

    /// Says when the certificate of the connection expires. Without it no ticket is issued.
    pub(crate) fn set_certificate_until(&self, until: Timestamp) {
        self.state().certificate_until = Some(until);
    }

    /// Tells what rustls has decided so far. An opened ticket counts as used only when the session was resumed; in a
    /// full handshake the client's identity is as old as the handshake.
    pub(crate) fn settle(&self, kind: Option<HandshakeKind>) {
        let Some(kind) = kind else { return };
        let Some(opened) = self.state().opened.take() else {
            return;
        };
        if kind == HandshakeKind::Resumed {
            self.state().authenticated_at = Some(opened.authenticated_at);
            self.metrics.ticket_offered(TicketOutcome::Resumed(opened.role));
        } else {
            self.metrics.ticket_offered(TicketOutcome::Declined);
        }
    }

    fn seal(&self, session: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        let mut state = self.state();
        let policy = self.policy?;
        let age = SessionAge {
            // In TLS 1.2 the new ticket is sealed before `settle` can be called, and only when resuming.
            authenticated_at: state
                .authenticated_at
                .or(state.opened.map(|opened| opened.authenticated_at))
                .unwrap_or(now),
            certificate_until: state.certificate_until?,
        };
        let sealed = self
            .keys
            .read(|keys| keys.seal(session, &self.scope, &policy, &age, now));
        state.lifetime = policy.lifetime_of(&age, now);
        self.metrics.ticket_issued(match &sealed {
            None => TicketIssue::NoRing,
            Some(Ok(_)) => TicketIssue::Sealed,
            Some(Err(error)) => TicketIssue::Refused(*error),
        });
        sealed?.ok()
    }

    fn open(&self, ticket: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        let mut state = self.state();
        // rustls asks for another ticket only after it has turned down the one before.
        if state.opened.take().is_some() {
            self.metrics.ticket_offered(TicketOutcome::Declined);
        }
        state.tried += 1;
        let (Some(policy), 1..=MOST_TRIED) = (self.policy, state.tried) else {
            self.metrics.ticket_offered(TicketOutcome::NotAllowed);
            return None;
        };
        match self
            .keys
            .read(|keys| keys.open(ticket, &self.scope, &policy, now))
        {
            None => self.metrics.ticket_offered(TicketOutcome::NoRing),
            Some(Err(error)) => self.metrics.ticket_offered(TicketOutcome::Refused(error)),
            Some(Ok(ticket)) => {
                state.opened = Some(Opened {
                    authenticated_at: ticket.authenticated_at,
                    role: ticket.opened_by,
                });
                // rustls takes it over and zeroes what it parses from it.
                return Some(ticket.session.to_vec());
            }
        }
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProducesTickets for ConnectionTickets {
    fn enabled(&self) -> bool {
        let can_seal = || self.keys.read(|keys| keys.can_seal(Timestamp::now()));
        self.policy.is_some()
            && match self.version {
                // Offered tickets are opened in any case, and a ticket that was promised must be sent.
                TicketVersion::Tls12 => can_seal() == Some(true),
                // Tickets are opened only when this holds.
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
        if state.opened.is_some() {
            self.metrics.ticket_offered(TicketOutcome::Declined);
        }
    }
}

impl fmt::Debug for ConnectionTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionTickets")
            .field("scope", &self.scope)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::api::MinVersion;
    use crate::ring::OpenError;
    use crate::ring::fixtures::{POLICY, at, ring, secret};

    const TICKETS: TicketPolicy = TicketPolicy {
        lifetime: SignedDuration::from_hours(4),
        max_age: SignedDuration::from_hours(24),
    };

    struct Farm {
        keys: Arc<SharedKeys>,
        metrics: Metrics,
    }

    impl Farm {
        fn with_ring() -> (Self, Ring) {
            let farm = Self {
                keys: Arc::default(),
                metrics: Metrics::default(),
            };
            let ring = ring();
            farm.keys.replace(&ring);
            (farm, ring)
        }

        fn connection(&self, version: TicketVersion) -> ConnectionTickets {
            let scope = Scope::new("web/shop", "shop", MinVersion::TLS12);
            let (keys, metrics) = (Arc::clone(&self.keys), self.metrics.clone());
            let tickets = ConnectionTickets::new(keys, scope, Some(TICKETS), version, metrics);
            tickets.set_certificate_until(at(90 * 86_400));
            tickets
        }
    }

    const RESUMED: Option<HandshakeKind> = Some(HandshakeKind::Resumed);
    const FULL: Option<HandshakeKind> = Some(HandshakeKind::Full);

    /// Resumes with `ticket` and returns the next one.
    fn resume(farm: &Farm, ticket: &[u8], version: TicketVersion, second: i64) -> Option<Vec<u8>> {
        let connection = farm.connection(version);
        connection.open(ticket, at(second)).expect("opened");
        if version == TicketVersion::Tls13 {
            connection.settle(RESUMED);
        }
        let next = connection.seal(b"next", at(second));
        connection.settle(RESUMED);
        next
    }

    #[test]
    fn a_chain_of_resumptions_ends_a_day_after_the_full_handshake() {
        for version in [TicketVersion::Tls12, TicketVersion::Tls13] {
            let (farm, mut ring) = Farm::with_ring();
            let mut ticket = farm.connection(version).seal(b"first", at(0)).expect("sealed");
            for hour in (3..24).step_by(3) {
                ring = ring.rotated(secret(), None, &POLICY, at(hour * 3600));
                farm.keys.replace(&ring);
                ticket = resume(&farm, &ticket, version, hour * 3600).expect("sealed");
            }
            let late = farm.connection(version);
            assert!(late.open(&ticket, at(86_400)).is_none(), "{version:?}");
            let expired = TicketOutcome::Refused(OpenError::Expired);
            assert_eq!(farm.metrics.offered(expired), 1);
        }
    }

    #[test]
    fn a_declined_ticket_makes_the_next_one_as_young_as_the_full_handshake() {
        let (farm, _) = Farm::with_ring();
        let ticket = farm
            .connection(TicketVersion::Tls13)
            .seal(b"s", at(0))
            .expect("sealed");
        let connection = farm.connection(TicketVersion::Tls13);
        connection.open(&ticket, at(3600)).expect("opened");
        connection.settle(FULL);
        let ticket = connection.seal(b"s", at(3600)).expect("sealed");
        let opened = farm.keys.read(|keys| {
            let scope = Scope::new("web/shop", "shop", MinVersion::TLS12);
            keys.open(&ticket, &scope, &TICKETS, at(3601)).expect("opened")
        });
        assert_eq!(opened.expect("a ring").authenticated_at, at(3600));
        assert_eq!(farm.metrics.offered(TicketOutcome::Declined), 1);
    }

    #[test]
    fn every_offered_ticket_has_one_outcome() {
        let (farm, ring) = Farm::with_ring();
        let ticket = farm
            .connection(TicketVersion::Tls13)
            .seal(b"s", at(0))
            .expect("sealed");
        resume(&farm, &ticket, TicketVersion::Tls13, 1);
        farm.keys.replace(&ring.rotated(secret(), None, &POLICY, at(2)));
        resume(&farm, &ticket, TicketVersion::Tls13, 3);

        let connection = farm.connection(TicketVersion::Tls13);
        connection.open(&ticket, at(4)).expect("opened");
        for _ in 1..MOST_TRIED {
            connection.open(b"junk", at(4));
        }
        assert!(connection.open(&ticket, at(4)).is_none(), "one too many");
        let abandoned = farm.connection(TicketVersion::Tls13);
        abandoned.open(&ticket, at(5)).expect("opened");
        drop(abandoned);

        for (outcome, count) in [
            (TicketOutcome::Resumed(KeyRole::Primary), 1),
            (TicketOutcome::Resumed(KeyRole::Previous), 1),
            (TicketOutcome::Refused(OpenError::Malformed), 3),
            (TicketOutcome::NotAllowed, 1),
            (TicketOutcome::Declined, 2),
        ] {
            assert_eq!(farm.metrics.offered(outcome), count, "{outcome:?}");
        }
    }

    #[test]
    fn without_ring_certificate_or_permission_there_are_no_tickets() {
        let (farm, _) = Farm::with_ring();
        let scope = Scope::new("web/shop", "shop", MinVersion::TLS12);
        let make = |keys: &Arc<SharedKeys>, policy| {
            ConnectionTickets::new(
                Arc::clone(keys),
                scope,
                policy,
                TicketVersion::Tls12,
                farm.metrics.clone(),
            )
        };
        assert!(
            make(&farm.keys, Some(TICKETS)).seal(b"s", at(0)).is_none(),
            "no certificate"
        );

        let ticket = farm
            .connection(TicketVersion::Tls12)
            .seal(b"s", at(0))
            .expect("sealed");
        let forbidden = make(&farm.keys, None);
        forbidden.set_certificate_until(at(86_400));
        assert!(!forbidden.enabled());
        assert!(forbidden.seal(b"s", at(0)).is_none());
        assert!(forbidden.open(&ticket, at(1)).is_none());

        let ringless = make(&Arc::default(), Some(TICKETS));
        ringless.set_certificate_until(at(86_400));
        assert!(!ringless.enabled());
        assert!(ringless.seal(b"s", at(0)).is_none());
        assert!(ringless.open(&ticket, at(1)).is_none());
        assert_eq!(farm.metrics.offered(TicketOutcome::NoRing), 1);
    }

    #[test]
    fn expired_keys_are_forgotten_by_the_clock() {
        let (farm, _) = Farm::with_ring();
        assert!(!farm.keys.forget_expired(at(0)));
        let primary_ends = at(24 * 3600) + POLICY.lifetime;
        assert!(farm.keys.forget_expired(primary_ends));
        assert!(!farm.keys.forget_expired(primary_ends));
        assert_eq!(farm.keys.read(|keys| keys.can_seal(primary_ends)), Some(false));
    }
}
