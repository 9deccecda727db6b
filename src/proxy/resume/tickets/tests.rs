mod counts;
mod lifetimes;

use jiff::SignedDuration;

use super::*;
use crate::api::MinVersion;
use crate::proxy::resume::session_cache::FoundSession;
use crate::ring::OpenError;
use crate::ring::fixtures::{POLICY, at, ring, secret};

const TICKETS: TicketPolicy = TicketPolicy {
    lifetime: SignedDuration::from_hours(4),
    max_age: SignedDuration::from_hours(24),
};

fn rules(scope: Scope, tickets: Option<TicketPolicy>, version: TicketVersion) -> ResumptionRules {
    ResumptionRules {
        scope,
        version,
        tickets,
        kind: TicketKind::Stateless,
        session_ids: None,
        gets_session_id: true,
    }
}

fn scope() -> Scope {
    Scope::new("web/shop", "shop", MinVersion::TLS12)
}

struct Farm {
    keys: Arc<SharedKeys>,
    metrics: ProxyMetrics,
}

impl Farm {
    fn with_ring() -> (Self, Ring) {
        let ring = ring();
        (Self::with(&ring, at(0)), ring)
    }

    fn with(ring: &Ring, now: Timestamp) -> Self {
        let farm = Self {
            keys: Arc::default(),
            metrics: ProxyMetrics::default(),
        };
        farm.keys.replace(ring, now);
        farm
    }

    fn connection(&self, version: TicketVersion) -> ConnectionTickets {
        self.connection_with(rules(scope(), Some(TICKETS), version), Cached::default())
    }

    /// One that may use the cache both ways, which had an entry under this name.
    fn cached(
        &self,
        version: TicketVersion,
        found: Option<(&[u8], CacheKind, &StoredSession)>,
    ) -> ConnectionTickets {
        let rules = ResumptionRules {
            kind: TicketKind::SingleUse,
            session_ids: Some(TICKETS),
            ..rules(scope().single_use(), Some(TICKETS), version)
        };
        let found = found.map(|(name, kind, entry)| FoundSession {
            name: name.try_into().expect("a name"),
            key: CacheKey::new(kind, &rules.scope, name),
            entry: entry.sealed.clone().into(),
        });
        let room = StoreAllowance::Free;
        self.connection_with(rules, Cached { found, room })
    }

    fn connection_with(&self, rules: ResumptionRules, cached: Cached) -> ConnectionTickets {
        let (keys, metrics) = (Arc::clone(&self.keys), self.metrics.clone());
        let tickets = ConnectionTickets::new(keys, rules, cached, metrics);
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
            farm.keys.replace(&ring, at(hour * 3600));
            ticket = resume(&farm, &ticket, version, hour * 3600).expect("sealed");
        }
        let late = farm.connection(version);
        assert!(late.open(&ticket, at(86_400)).is_none(), "{version:?}");
        let expired = TicketOutcome::Refused(OpenError::Expired);
        assert_eq!(farm.metrics.offered(expired), 1);
    }
}

#[test]
fn after_a_declined_ticket_the_age_counts_from_the_full_handshake() {
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
        keys.open(&ticket, SealedAs::Ticket, &scope(), &TICKETS, at(3601))
            .expect("opened")
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
    farm.keys
        .replace(&ring.rotated(secret(), None, &POLICY, at(2)), at(2));
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
    let make = |keys: &Arc<SharedKeys>, policy| {
        let rules = rules(scope(), policy, TicketVersion::Tls12);
        ConnectionTickets::new(Arc::clone(keys), rules, Cached::default(), farm.metrics.clone())
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
    let (farm, ring) = Farm::with_ring();
    assert!(!farm.keys.forget_expired(at(0)));
    let primary_ends = at(24 * 3600) + POLICY.lifetime;
    assert!(
        !farm
            .keys
            .forget_expired(primary_ends - SignedDuration::from_secs(1))
    );
    assert!(farm.keys.forget_expired(primary_ends));
    assert!(!farm.keys.forget_expired(primary_ends));
    let first = farm.keys.read(|keys| keys.next_expiry(Timestamp::MIN));
    assert_eq!(first, Some(Some(ring.next.open_until)), "the primary is gone");
    assert!(
        !<Arc<SharedKeys>>::default().forget_expired(primary_ends),
        "no ring"
    );
}

#[test]
fn a_key_that_has_expired_opens_nothing_after_a_reload_of_its_ring() {
    let (farm, ring) = Farm::with_ring();
    let generous = TicketPolicy {
        lifetime: SignedDuration::from_hours(100),
        max_age: SignedDuration::from_hours(100),
    };
    let connect = || {
        let rules = rules(scope(), Some(generous), TicketVersion::Tls13);
        farm.connection_with(rules, Cached::default())
    };
    let ticket = connect().seal(b"s", at(0)).expect("sealed");
    let rotated = ring.rotated(secret(), None, &POLICY, at(3600));
    let end = rotated.previous[0].open_until;
    let before = end - SignedDuration::from_secs(1);

    farm.keys.replace(&rotated, before);
    assert!(connect().open(&ticket, before).is_some());
    assert!(connect().open(&ticket, end).is_none(), "still held, but over");
    assert_eq!(
        farm.metrics.offered(TicketOutcome::Refused(OpenError::Expired)),
        1
    );

    farm.keys.replace(&rotated, end);
    // The key stays removed even if the clock is set back.
    assert!(connect().open(&ticket, before).is_none());
    assert_eq!(
        farm.metrics
            .offered(TicketOutcome::Refused(OpenError::UnknownKey)),
        1
    );
}

/// A single-use ticket of this connection, and the entry that it names.
fn single_use(connection: &ConnectionTickets, second: i64) -> Option<(Vec<u8>, StoredSession)> {
    let name = connection.seal(b"session", at(second))?;
    let mut entries = connection.take_entries();
    assert_eq!((name.len(), entries.len()), (32, 1));
    entries.pop().map(|entry| (name, entry))
}

#[test]
fn a_chain_of_single_use_tickets_ends_a_day_after_the_full_handshake() {
    let (farm, mut ring) = Farm::with_ring();
    let first = farm.cached(TicketVersion::Tls13, None);
    let (mut name, mut entry) = single_use(&first, 0).expect("sealed");
    assert_eq!(entry.lifetime, Duration::from_secs(4 * 3600));
    for hour in (3..24).step_by(3) {
        ring = ring.rotated(secret(), None, &POLICY, at(hour * 3600));
        farm.keys.replace(&ring, at(hour * 3600));
        let next = farm.cached(TicketVersion::Tls13, Some((&name, CacheKind::SingleUse, &entry)));
        let session = next.open(&name, at(hour * 3600));
        assert_eq!(session.as_deref(), Some(b"session".as_slice()));
        next.settle(RESUMED);
        (name, entry) = single_use(&next, hour * 3600).expect("sealed");
    }
    assert_eq!(
        entry.lifetime,
        Duration::from_secs(3 * 3600),
        "no more than is left"
    );
    let late = farm.cached(TicketVersion::Tls13, Some((&name, CacheKind::SingleUse, &entry)));
    assert!(late.open(&name, at(86_400)).is_none());
    assert_eq!(
        farm.metrics.offered(TicketOutcome::Refused(OpenError::Expired)),
        1
    );
}

#[test]
fn single_use_and_stateless_tickets_are_not_interchangeable() {
    let (farm, _) = Farm::with_ring();
    let stateless = farm
        .connection(TicketVersion::Tls13)
        .seal(b"s", at(0))
        .expect("sealed");
    let once = farm.cached(TicketVersion::Tls13, None);
    assert!(
        once.open(&stateless, at(1)).is_none(),
        "a stateless ticket could be used again"
    );
    assert_eq!(farm.metrics.offered(TicketOutcome::NotFound), 1);

    let (name, entry) = single_use(&once, 1).expect("sealed");
    let again = farm.connection(TicketVersion::Tls13);
    assert!(again.open(&name, at(2)).is_none());
    assert!(
        again.open(&entry.sealed, at(2)).is_none(),
        "an entry is not a ticket"
    );
}

#[test]
fn swapped_relabelled_and_altered_entries_are_refused() {
    let (farm, _) = Farm::with_ring();
    let issuer = farm.cached(TicketVersion::Tls13, None);
    let (name, entry) = single_use(&issuer, 0).expect("sealed");
    let (_, others) = single_use(&issuer, 0).expect("sealed");
    let of_an_id = {
        let connection = farm.cached(TicketVersion::Tls12, None);
        assert!(connection.keep(&name, b"session", at(0)));
        connection.take_entries().remove(0)
    };
    let mut altered = entry.sealed.clone();
    altered[100] ^= 1;
    let altered = StoredSession {
        sealed: altered,
        ..entry
    };
    for wrong in [&others, &of_an_id, &altered] {
        let connection = farm.cached(TicketVersion::Tls13, Some((&name, CacheKind::SingleUse, wrong)));
        assert!(connection.open(&name, at(1)).is_none());
    }
    let refused = TicketOutcome::Refused(OpenError::NotAuthentic);
    assert_eq!(farm.metrics.offered(refused), 3);
}

#[test]
fn a_session_id_is_good_for_its_lifetime_and_for_no_other_session() {
    let (farm, _) = Farm::with_ring();
    let issuer = farm.cached(TicketVersion::Tls12, None);
    let id = [7; 32];
    assert!(issuer.keep(&id, b"session", at(0)));
    let entry = issuer.take_entries().remove(0);
    let connection = || farm.cached(TicketVersion::Tls12, Some((&id, CacheKind::SessionId, &entry)));
    for _ in 0..2 {
        let again = connection();
        let session = again.open_session_id(&id, at(4 * 3600 - 1));
        assert_eq!(session.as_deref(), Some(b"session".as_slice()));
    }
    assert!(connection().open_session_id(&[8; 32], at(1)).is_none());
    assert!(connection().open_session_id(&id, at(4 * 3600)).is_none());
}

#[test]
fn no_session_is_issued_that_the_cache_cannot_store() {
    let (farm, _) = Farm::with_ring();
    let rules = ResumptionRules {
        kind: TicketKind::SingleUse,
        session_ids: Some(TICKETS),
        ..rules(scope().single_use(), Some(TICKETS), TicketVersion::Tls13)
    };
    for (room, over_budget) in [(StoreAllowance::NoCache, 0), (StoreAllowance::OverBudget, 2)] {
        let connection = farm.connection_with(rules, Cached { found: None, room });
        assert!(connection.seal(b"session", at(0)).is_none());
        assert!(!connection.can_cache());
        assert!(connection.take_entries().is_empty());
        assert_eq!(connection.take_over_budget(), over_budget);
    }
}

#[test]
fn clients_with_tickets_are_never_over_budget() {
    let (farm, _) = Farm::with_ring();
    let rules = ResumptionRules {
        session_ids: Some(TICKETS),
        gets_session_id: false,
        ..rules(scope(), Some(TICKETS), TicketVersion::Tls12)
    };
    let room = StoreAllowance::OverBudget;
    let connection = farm.connection_with(rules, Cached { found: None, room });
    assert!(!connection.can_cache());
    assert_eq!(connection.take_over_budget(), 0);
}
