//! Lifetimes of sessions as sent to clients and to the session cache, and whether a session is issued at all.

use super::*;

const GENEROUS: TicketPolicy = TicketPolicy {
    lifetime: SignedDuration::from_hours(60 * 24),
    max_age: SignedDuration::from_hours(90 * 24),
};

/// How a session is handed out.
#[derive(Clone, Copy, Debug)]
enum By {
    Ticket(TicketVersion),
    SingleUse,
    SessionId,
}

const ALL: [By; 4] = [
    By::Ticket(TicketVersion::Tls12),
    By::Ticket(TicketVersion::Tls13),
    By::SingleUse,
    By::SessionId,
];

fn rules_for(by: By, policy: TicketPolicy) -> ResumptionRules {
    match by {
        By::Ticket(version) => rules(scope(), Some(policy), version),
        By::SingleUse => ResumptionRules {
            kind: TicketKind::SingleUse,
            ..rules(scope().single_use(), Some(policy), TicketVersion::Tls13)
        },
        By::SessionId => ResumptionRules {
            session_ids: Some(policy),
            ..rules(scope(), None, TicketVersion::Tls12)
        },
    }
}

fn with_room() -> Cached {
    Cached {
        found: None,
        room: StoreAllowance::Free,
    }
}

/// Lifetime in seconds of a session issued at second 0, as sent to client and cache; `None` if none is issued.
fn promised(by: By, policy: TicketPolicy, certificate_until: Timestamp) -> Option<u64> {
    let (farm, _) = Farm::with_ring();
    let connection = farm.connection_with(rules_for(by, policy), with_room());
    connection.set_certificate_until(certificate_until);
    let handed_out = match by {
        By::Ticket(_) | By::SingleUse => connection.seal(b"session", at(0)).is_some(),
        By::SessionId => connection.keep(&[7; 32], b"session", at(0)),
    };
    let entries = connection.take_entries();
    let stored = entries.first().map(|entry| entry.lifetime.as_secs());
    let hint = handed_out.then(|| u64::from(connection.lifetime()));
    match by {
        By::Ticket(_) => {
            assert!(
                entries.is_empty(),
                "a ticket that carries its session needs no cache"
            );
            hint
        }
        By::SingleUse => {
            assert_eq!(
                stored, hint,
                "the cache keeps it as long as the client may use it"
            );
            hint
        }
        By::SessionId => stored,
    }
}

#[test]
fn clients_and_caches_are_told_the_shortest_of_all_bounds() {
    let far = at(90 * 86_400);
    let short_sessions = TicketPolicy {
        max_age: SignedDuration::from_hours(1),
        ..TICKETS
    };
    for by in ALL {
        assert_eq!(
            promised(by, TICKETS, far),
            Some(4 * 3600),
            "{by:?}: the policy's lifetime"
        );
        assert_eq!(
            promised(by, short_sessions, far),
            Some(3600),
            "{by:?}: the session's end"
        );
        assert_eq!(
            promised(by, TICKETS, at(60)),
            Some(60),
            "{by:?}: the certificate's end"
        );
        assert_eq!(
            promised(by, GENEROUS, far),
            Some(7 * 86_400),
            "{by:?}: what TLS allows"
        );
        assert_eq!(
            promised(by, TICKETS, at(0)),
            None,
            "{by:?}: an expired certificate"
        );
    }
}

#[test]
fn sessions_issued_on_resumption_end_with_the_original_session() {
    let (farm, _) = Farm::with_ring();
    let hours = |hours| SignedDuration::from_hours(hours);
    // A session whose full handshake was 23 hours ago, however it was resumed.
    let begun = SessionAge {
        authenticated_at: at(-23 * 3600),
        certificate_until: at(90 * 86_400),
    };
    let (policy, ids) = (TICKETS, [7; 32]);
    for by in [By::SessionId, By::Ticket(TicketVersion::Tls12)] {
        let rules = ResumptionRules {
            tickets: Some(policy),
            session_ids: Some(policy),
            ..rules_for(by, policy)
        };
        let key = CacheKey::new(CacheKind::SessionId, &rules.scope, &ids);
        let sealed_as = match by {
            By::SessionId => SealedAs::Entry(&key),
            _ => SealedAs::Ticket,
        };
        let sealed = farm
            .keys
            .read(|keys| keys.seal(b"session", sealed_as, &rules.scope, &policy, &begun, at(0)))
            .expect("a ring")
            .expect("sealed");
        let found = matches!(by, By::SessionId).then(|| FoundSession {
            name: ids,
            key,
            entry: sealed.clone().into(),
        });
        let connection = farm.connection_with(
            rules,
            Cached {
                found,
                room: StoreAllowance::Free,
            },
        );
        let opened = match by {
            By::SessionId => connection.open_session_id(&ids, at(60)),
            _ => connection.open(&sealed, at(60)),
        };
        assert!(opened.is_some(), "{by:?}");
        // In TLS 1.2 the ticket is sealed before it is known that the session was resumed.
        let ticket = connection.seal(b"next", at(60)).expect("sealed");
        assert_eq!(connection.lifetime(), 3600 - 60, "{by:?}");
        connection.settle(RESUMED);
        let last = at(0) + hours(1) - SignedDuration::from_secs(1);
        let again = |now| farm.connection(TicketVersion::Tls12).open(&ticket, now);
        assert!(again(last).is_some(), "{by:?}");
        assert!(again(at(0) + hours(1)).is_none(), "{by:?}");
    }
}

/// A farm whose ring was made that many hours ago, for what rustls asks by the clock of this machine.
fn aged(hours: i64) -> (Farm, Timestamp) {
    let now = Timestamp::now();
    let made = now - SignedDuration::from_hours(hours);
    let ring = Ring::new(1, secret(), secret(), &POLICY, made);
    (Farm::with(&ring, now), now)
}

fn connect_now(farm: &Farm, rules: ResumptionRules, now: Timestamp) -> ConnectionTickets {
    let connection = farm.connection_with(rules, with_room());
    connection.set_certificate_until(now + SignedDuration::from_hours(90 * 24));
    connection
}

#[test]
fn a_proxy_that_cannot_seal_opens_tls13_tickets_and_promises_none_in_tls12() {
    let (farm, now) = aged(25);
    let tls13 = rules_for(By::Ticket(TicketVersion::Tls13), TICKETS);
    let ticket = connect_now(&farm, tls13, now)
        .seal(b"session", now - SignedDuration::from_hours(2))
        .expect("sealed while it might");
    let connection = connect_now(&farm, tls13, now);
    assert!(connection.enabled(), "rustls would not even try the ticket");
    assert_eq!(
        connection.decrypt(&ticket).as_deref(),
        Some(b"session".as_slice())
    );
    connection.settle(RESUMED);
    assert!(connection.encrypt(b"session").is_none());

    let tls12 = rules_for(By::Ticket(TicketVersion::Tls12), TICKETS);
    let connection = connect_now(&farm, tls12, now);
    assert!(!connection.enabled(), "rustls would promise a ticket");
    assert_eq!(
        connection.decrypt(&ticket).as_deref(),
        Some(b"session".as_slice())
    );
    let by_id = connect_now(&farm, rules_for(By::SessionId, TICKETS), now);
    assert!(!by_id.can_cache());
    assert!(!by_id.put(vec![7; 32], b"session".to_vec()));
}

#[test]
fn a_proxy_that_may_seal_hands_out_tickets_and_session_ids() {
    let (farm, now) = aged(0);
    for version in [TicketVersion::Tls12, TicketVersion::Tls13] {
        let connection = connect_now(&farm, rules_for(By::Ticket(version), TICKETS), now);
        assert!(connection.enabled());
        let ticket = connection.encrypt(b"session").expect("sealed");
        assert_eq!(
            connection.decrypt(&ticket).as_deref(),
            Some(b"session".as_slice())
        );
        assert!(!connection.can_cache(), "no session ids for this host");
    }
    let id = [7; 32];
    let rules = rules_for(By::SessionId, TICKETS);
    let issuer = connect_now(&farm, rules, now);
    assert!(issuer.can_cache());
    assert!(issuer.put(id.to_vec(), b"session".to_vec()));
    let entry = issuer.take_entries().pop().expect("kept");
    let found = Some(FoundSession {
        name: id,
        key: entry.key,
        entry: entry.sealed.into(),
    });
    let room = StoreAllowance::Free;
    let again = farm.connection_with(rules, Cached { found, room });
    assert_eq!(again.get(&id).as_deref(), Some(b"session".as_slice()));
    assert_eq!(again.take(&id), None, "nothing but TLS 1.3 takes");

    let old_client = ResumptionRules {
        gets_session_id: false,
        ..rules
    };
    assert!(!connect_now(&farm, old_client, now).can_cache());
}

#[test]
fn without_a_ticket_policy_a_single_use_host_makes_no_tls12_tickets() {
    let (farm, now) = aged(0);
    let rules = ResumptionRules {
        kind: TicketKind::SingleUse,
        ..rules_for(By::SessionId, TICKETS)
    };
    let connection = connect_now(&farm, rules, now);
    assert!(!connection.enabled());
    assert!(connection.encrypt(b"session").is_none());
    assert!(connection.take_entries().is_empty());
    assert!(connection.can_cache(), "it has session ids instead");
}
