use jiff::SignedDuration;

use super::*;
use crate::api::MinVersion;
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
    }
}

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
        let tickets = ConnectionTickets::new(keys, rules(scope, Some(TICKETS), version), None, metrics);
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
        keys.open(&ticket, SealedAs::Ticket, &scope, &TICKETS, at(3601))
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
        let rules = rules(scope, policy, TicketVersion::Tls12);
        ConnectionTickets::new(Arc::clone(keys), rules, None, farm.metrics.clone())
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
