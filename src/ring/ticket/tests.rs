use proptest::prelude::*;

use super::*;
use crate::api::MinVersion;
use crate::ring::CacheKind;
use crate::ring::fixtures::{POLICY, at, ring, secret};

const TICKETS: TicketPolicy = TicketPolicy {
    lifetime: SignedDuration::from_hours(4),
    max_age: SignedDuration::from_hours(24),
};

const KEY_ID: std::ops::Range<usize> = 1..17;
const NONCE: std::ops::Range<usize> = 17..HEADER;

fn age(second: i64) -> SessionAge {
    SessionAge {
        authenticated_at: at(second),
        certificate_until: at(90 * 86_400),
    }
}

fn scope() -> Scope {
    Scope::new("web/shop", "shop", MinVersion::TLS12)
}

fn sealed(keys: &TicketKeys, session: &[u8]) -> Vec<u8> {
    keys.seal(session, SealedAs::Ticket, &scope(), &TICKETS, &age(0), at(0))
        .expect("sealed")
}

#[test]
fn a_proxy_that_never_issued_a_ticket_opens_those_of_another() {
    let document = ring().to_document();
    let load = || TicketKeys::new(&Ring::from_document(&document).expect("valid"));
    let ticket = sealed(&load(), b"session");
    let opened = load()
        .open(&ticket, SealedAs::Ticket, &scope(), &TICKETS, at(60))
        .expect("opened");
    assert_eq!(*opened.session, b"session");
    assert_eq!(opened.opened_by, KeyRole::Primary);
}

#[test]
fn every_altered_byte_is_refused() {
    let keys = TicketKeys::new(&ring());
    let ticket = sealed(&keys, b"session");
    for at_byte in 0..ticket.len() {
        let mut altered = ticket.clone();
        altered[at_byte] ^= 0x40;
        assert!(
            keys.open(&altered, SealedAs::Ticket, &scope(), &TICKETS, at(1))
                .is_err(),
            "byte {at_byte} is not protected"
        );
    }
}

#[test]
fn another_scope_is_refused() {
    let keys = TicketKeys::new(&ring());
    let ticket = sealed(&keys, b"session");
    for other in [
        Scope::new("web/shop", "shop", MinVersion::TLS13),
        Scope::new("web/shop", "blog", MinVersion::TLS12),
        Scope::new("other/shop", "shop", MinVersion::TLS12),
    ] {
        let refused = keys
            .open(&ticket, SealedAs::Ticket, &other, &TICKETS, at(1))
            .err();
        assert_eq!(refused, Some(OpenError::NotAuthentic));
    }
}

#[test]
fn tickets_expire_with_their_lifetime_their_session_and_the_certificate() {
    let keys = TicketKeys::new(&ring());
    let ticket = sealed(&keys, b"session");
    assert!(
        keys.open(&ticket, SealedAs::Ticket, &scope(), &TICKETS, at(4 * 3600 - 1))
            .is_ok()
    );
    assert_eq!(
        keys.open(&ticket, SealedAs::Ticket, &scope(), &TICKETS, at(4 * 3600))
            .err(),
        Some(OpenError::Expired)
    );

    let nearly_old = age(-23 * 3600);
    assert_eq!(TICKETS.lifetime_of(&nearly_old, at(0)), 3600);
    let too_old = keys.seal(
        b"session",
        SealedAs::Ticket,
        &scope(),
        &TICKETS,
        &age(-24 * 3600),
        at(0),
    );
    assert_eq!(too_old.err(), Some(SealError::SessionExpired));

    let certificate = SessionAge {
        certificate_until: at(60),
        ..age(0)
    };
    assert_eq!(TICKETS.lifetime_of(&certificate, at(0)), 60);
}

#[test]
fn a_shortened_lifetime_holds_for_tickets_issued_before() {
    let keys = TicketKeys::new(&ring());
    let ticket = sealed(&keys, b"session");
    let shorter = |lifetime, max_age| TicketPolicy {
        lifetime: SignedDuration::from_mins(lifetime),
        max_age: SignedDuration::from_mins(max_age),
    };
    for policy in [shorter(10, 60), shorter(60, 10)] {
        assert!(
            keys.open(&ticket, SealedAs::Ticket, &scope(), &policy, at(599))
                .is_ok()
        );
        let refused = keys
            .open(&ticket, SealedAs::Ticket, &scope(), &policy, at(600))
            .err();
        assert_eq!(refused, Some(OpenError::Expired), "{policy:?}");
    }
}

#[test]
fn an_isolated_proxy_stops_sealing_and_then_forgets() {
    let mut keys = TicketKeys::new(&ring());
    let (stop, forget) = (at(24 * 3600), at(24 * 3600) + POLICY.lifetime);
    let seal = |keys: &TicketKeys, now: Timestamp| {
        let age = SessionAge {
            authenticated_at: now,
            certificate_until: at(90 * 86_400),
        };
        keys.seal(b"session", SealedAs::Ticket, &scope(), &TICKETS, &age, now)
    };
    let last = seal(&keys, stop - SignedDuration::from_secs(1)).expect("may still seal");
    assert_eq!(seal(&keys, stop).err(), Some(SealError::KeyExpired));
    assert_eq!(
        keys.open(&last, SealedAs::Ticket, &scope(), &TICKETS, forget)
            .err(),
        Some(OpenError::Expired)
    );
    assert_eq!(keys.next_expiry(stop), Some(forget));
    assert!(keys.without_expired(forget));
    assert!(!keys.can_seal(forget));
}

#[test]
fn tickets_of_the_key_before_open_and_those_of_a_dropped_key_do_not() {
    let first = ring();
    let ticket = sealed(&TicketKeys::new(&first), b"session");
    let second = first.rotated(secret(), None, &POLICY, at(3600));
    let opened = TicketKeys::new(&second)
        .open(&ticket, SealedAs::Ticket, &scope(), &TICKETS, at(3601))
        .expect("opened");
    assert_eq!(opened.opened_by, KeyRole::Previous);
    let third = second.without_expired(at(30 * 3600));
    let refused = TicketKeys::new(&third)
        .open(&ticket, SealedAs::Ticket, &scope(), &TICKETS, at(3601))
        .err();
    assert_eq!(refused, Some(OpenError::UnknownKey));
}

#[test]
fn sizes_come_from_few_buckets_and_large_sessions_get_no_ticket() {
    let keys = TicketKeys::new(&ring());
    for length in [0, 100, 180, 181, 200, 900, 1900] {
        assert!(BUCKETS.contains(&sealed(&keys, &vec![7; length]).len()));
    }
    let refused = keys
        .seal(&[7; 2000], SealedAs::Ticket, &scope(), &TICKETS, &age(0), at(0))
        .err();
    assert_eq!(refused, Some(SealError::TooLarge));
}

#[test]
fn nonces_never_repeat() {
    let keys = TicketKeys::new(&ring());
    let nonces: std::collections::HashSet<_> =
        (0..10_000).map(|_| sealed(&keys, b"s")[NONCE].to_vec()).collect();
    assert_eq!(nonces.len(), 10_000);
}

proptest! {
    #[test]
    fn arbitrary_tickets_never_panic(
        mut ticket in proptest::collection::vec(any::<u8>(), 0..2100),
        bucket in 0usize..4,
        known_key: bool,
    ) {
        let keys = TicketKeys::new(&ring());
        prop_assert!(keys.open(&ticket, SealedAs::Ticket, &scope(), &TICKETS, at(1)).is_err());
        ticket.resize(BUCKETS[bucket], 0);
        ticket[0] = VERSION;
        if known_key {
            ticket[KEY_ID].copy_from_slice(&keys.primary.0);
        }
        prop_assert!(keys.open(&ticket, SealedAs::Ticket, &scope(), &TICKETS, at(1)).is_err());
    }

    #[test]
    fn sessions_round_trip(session in proptest::collection::vec(any::<u8>(), 0..1900)) {
        let keys = TicketKeys::new(&ring());
        let opened = keys.open(&sealed(&keys, &session), SealedAs::Ticket, &scope(), &TICKETS, at(1)).expect("opened");
        prop_assert_eq!(&*opened.session, &session);
    }
}

#[test]
fn an_entry_of_the_cache_opens_under_its_own_key_and_scope_only() {
    let keys = TicketKeys::new(&ring());
    let key = |id: &[u8]| CacheKey::new(CacheKind::SingleUse, &scope(), id);
    let (own, other) = (key(&[1; 32]), key(&[2; 32]));
    let entry = keys
        .seal(
            b"session",
            SealedAs::Entry(&own),
            &scope(),
            &TICKETS,
            &age(0),
            at(0),
        )
        .expect("sealed");
    let open = |sealed_as, scope: &Scope| {
        keys.open(&entry, sealed_as, scope, &TICKETS, at(1))
            .map(|o| o.session)
    };
    assert_eq!(
        *open(SealedAs::Entry(&own), &scope()).expect("opened"),
        b"session"
    );
    let refused = Some(OpenError::NotAuthentic);
    assert_eq!(
        open(SealedAs::Entry(&other), &scope()).err(),
        refused,
        "another entry"
    );
    assert_eq!(open(SealedAs::Ticket, &scope()).err(), refused, "as a ticket");
    assert_eq!(
        open(SealedAs::Entry(&own), &scope().single_use()).err(),
        refused,
        "another scope"
    );
    let ticket = sealed(&keys, b"session");
    let as_entry = keys.open(&ticket, SealedAs::Entry(&own), &scope(), &TICKETS, at(1));
    assert_eq!(as_entry.err(), refused, "a ticket as an entry");
}
