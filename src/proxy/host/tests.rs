use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use rustls::server::StoresServerSessions;

use super::*;
use crate::proxy::control::snapshot::{Snapshot, fixtures};
use crate::proxy::resume::session_cache::{FoundSession, StoreAllowance};
use crate::ring::fixtures::{POLICY, at, ring, secret};
use crate::ring::{CacheKey, Ring, SealedAs, SessionAge, TicketKeys};

fn snapshot_with(change: impl FnOnce(&mut ProxyConfig)) -> Snapshot {
    let mut config = fixtures::config();
    change(&mut config);
    fixtures::snapshot(config)
}

fn snapshot() -> Snapshot {
    snapshot_with(|_| {})
}

fn host<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Host {
    &snapshot.find(name).expect("one of the hosts").host
}

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

/// A client of TLS 1.2 that keeps session ids and no tickets, and offers one.
fn by_id() -> ClientHello {
    ClientHello {
        extended_master_secret: true,
        session_id: Some([7; 32]),
        ..ClientHello::default()
    }
}

/// A client of TLS 1.2 that keeps tickets and has none yet.
fn by_ticket() -> ClientHello {
    ClientHello {
        extended_master_secret: true,
        ticket: Some(TicketOffer::Empty),
        ..ClientHello::default()
    }
}

/// A client of TLS 1.3 with a ticket that may be one for a single use. It sends a random session id.
fn modern() -> ClientHello {
    ClientHello {
        offers_tls13: true,
        single_use: Some([9; 32]),
        ..by_id()
    }
}

#[test]
fn a_session_id_is_looked_up_for_clients_of_tls12_that_resume_by_it() {
    let snapshot = snapshot();
    for name in ["shop.test", "once.test"] {
        let host = host(&snapshot, name);
        let lookup = Lookup {
            kind: CacheKind::SessionId,
            name: [7; 32],
            scope: host.scope,
        };
        assert_eq!(host.lookup(&by_id()), Some(lookup), "{name}");
        for (what, hello) in [
            (
                "no extended master secret",
                ClientHello {
                    extended_master_secret: false,
                    ..by_id()
                },
            ),
            (
                "a ticket instead",
                ClientHello {
                    ticket: Some(TicketOffer::Ticket),
                    ..by_id()
                },
            ),
            (
                "no id",
                ClientHello {
                    session_id: None,
                    ..by_id()
                },
            ),
            (
                "TLS 1.3",
                ClientHello {
                    offers_tls13: true,
                    ..by_id()
                },
            ),
        ] {
            assert_eq!(host.lookup(&hello), None, "{name}: {what}");
        }
        let wishes_for_a_ticket = ClientHello {
            session_id: Some([7; 32]),
            ..by_ticket()
        };
        assert!(host.lookup(&wishes_for_a_ticket).is_some(), "{name}");
    }
    assert_eq!(host(&snapshot, "strict.test").lookup(&by_id()), None);
    let cacheless = snapshot_with(|config| config.session_cache = None);
    assert_eq!(host(&cacheless, "shop.test").lookup(&by_id()), None);
}

#[test]
fn tls13_tickets_are_looked_up_on_single_use_hosts() {
    let snapshot = snapshot();
    let once = host(&snapshot, "once.test");
    let lookup = Lookup {
        kind: CacheKind::SingleUse,
        name: [9; 32],
        scope: once.scope,
    };
    assert_eq!(once.lookup(&modern()), Some(lookup));
    let tls12 = ClientHello {
        offers_tls13: false,
        session_id: None,
        ..modern()
    };
    assert_eq!(once.lookup(&tls12), None);
    assert_eq!(host(&snapshot, "shop.test").lookup(&modern()), None);
    assert_eq!(host(&snapshot, "strict.test").lookup(&modern()), None);
}

/// RFC 7627 section 5: without it a session can be moved to another connection.
#[test]
fn without_extended_master_secret_no_tls12_session_is_found_or_made() {
    let snapshot = snapshot();
    for (name, hello) in [
        ("shop.test", by_id()),
        ("shop.test", by_ticket()),
        ("once.test", by_id()),
    ] {
        let secret = hello.extended_master_secret;
        assert!(secret && offered_anything(&snapshot, name, &hello), "{name}");
        let without = ClientHello {
            extended_master_secret: false,
            ..hello
        };
        assert!(!offered_anything(&snapshot, name, &without), "{name}");
    }
    let modern = ClientHello {
        extended_master_secret: false,
        ..modern()
    };
    let tickets = host(&snapshot, "shop.test").rules(&modern).tickets;
    assert!(tickets.is_some(), "TLS 1.3 has no need of it");
}

/// Whether rustls can find, keep or issue anything for this client, with a cache that has room and a session of this id.
fn offered_anything(snapshot: &Snapshot, name: &str, hello: &ClientHello) -> bool {
    let host = host(snapshot, name);
    let id = [7; 32];
    let keys = Arc::new(SharedKeys::default());
    let now = Timestamp::now();
    keys.replace(&Ring::new(1, secret(), secret(), &POLICY, now), now);
    let issuer = {
        let tls12 = ClientHello {
            extended_master_secret: true,
            ..by_id()
        };
        let free = Cached {
            found: None,
            room: StoreAllowance::Free,
        };
        let ConnectionTls { tickets, .. } =
            host.connect(0, &tls12, free, Arc::clone(&keys), ProxyMetrics::default());
        tickets.set_certificate_until(Timestamp::MAX);
        tickets
    };
    assert!(issuer.put(id.to_vec(), b"session".to_vec()));
    let entry = issuer.take_entries().remove(0);
    let cached = Cached {
        found: Some(FoundSession {
            name: id,
            key: CacheKey::new(CacheKind::SessionId, &host.scope, &id),
            entry: entry.sealed.into(),
        }),
        room: StoreAllowance::Free,
    };
    let ConnectionTls { config, tickets } = host.connect(0, hello, cached, keys, ProxyMetrics::default());
    tickets.set_certificate_until(Timestamp::MAX);
    let sessions = &config.session_storage;
    let by_id = [
        sessions.get(&id).is_some(),
        sessions.put(vec![8; 32], b"session".to_vec()),
    ];
    assert_eq!(by_id[0], by_id[1], "found and kept go together");
    let by_ticket = [
        config.ticketer.enabled(),
        config.ticketer.encrypt(b"session").is_some(),
    ];
    assert_eq!(by_ticket[0], by_ticket[1], "what is promised is issued");
    by_id[0] || sessions.can_cache() || by_ticket[0]
}

#[test]
fn a_single_use_host_gives_tls12_clients_session_ids_and_no_tickets() {
    let snapshot = snapshot();
    let once = host(&snapshot, "once.test").rules(&by_ticket());
    assert_eq!((once.tickets, once.version), (None, TicketVersion::Tls12));
    assert!(once.session_ids.is_some() && once.gets_session_id);
    let modern = host(&snapshot, "once.test").rules(&modern());
    assert_eq!(
        (modern.kind, modern.version),
        (TicketKind::SingleUse, TicketVersion::Tls13)
    );
    assert!(modern.tickets.is_some());
    let shop = host(&snapshot, "shop.test").rules(&by_ticket());
    assert_eq!(
        (shop.kind, shop.version),
        (TicketKind::Stateless, TicketVersion::Tls12)
    );
    assert!(shop.tickets.is_some());
}

#[test]
fn a_client_that_gets_a_ticket_gets_no_session_id() {
    let snapshot = snapshot();
    let shop = host(&snapshot, "shop.test");
    assert!(!shop.rules(&by_ticket()).gets_session_id);
    assert!(shop.rules(&by_id()).gets_session_id);
    let ticketless = snapshot_with(|config| config.tickets.tls12_lifetime = None);
    assert!(host(&ticketless, "shop.test").rules(&by_ticket()).gets_session_id);
}

#[test]
fn lifetimes_are_those_of_the_configuration_and_the_shorter_one_counts() {
    let policy = |lifetime, max_age| {
        Some(TicketPolicy {
            lifetime: hours(lifetime),
            max_age: hours(max_age),
        })
    };
    // Lifetime and greatest age of tickets, bounds for TLS 1.2 tickets and ids: the policies that result.
    for ([lifetime, max_age, tls12, ids], [of_tls13, of_tls12, of_ids]) in [
        ([4, 24, 2, 1], [policy(4, 24), policy(2, 2), policy(1, 1)]),
        ([4, 24, 12, 10], [policy(4, 24), policy(4, 12), policy(4, 10)]),
        ([4, 24, 48, 72], [policy(4, 24), policy(4, 24), policy(4, 24)]),
    ] {
        let duration = |hours: u64| Duration::from_secs(hours * 3600);
        let snapshot = snapshot_with(|config| {
            config.tickets.lifetime = duration(lifetime);
            config.tickets.max_age = duration(max_age);
            config.tickets.tls12_lifetime = Some(duration(tls12));
            let cache = config.session_cache.as_mut().expect("configured");
            cache.session_id_lifetime = duration(ids);
        });
        let shop = host(&snapshot, "shop.test");
        assert_eq!(shop.rules(&modern()).tickets, of_tls13);
        assert_eq!(shop.rules(&modern()).session_ids, None);
        assert_eq!(shop.rules(&by_ticket()).tickets, of_tls12);
        assert_eq!(shop.rules(&by_ticket()).session_ids, of_ids);
        let once = host(&snapshot, "once.test");
        assert_eq!(once.rules(&modern()).tickets, of_tls13);
        assert_eq!(once.rules(&by_id()).session_ids, of_ids);
        assert_eq!(host(&snapshot, "strict.test").rules(&by_id()).session_ids, None);
    }
    let without = snapshot_with(|config| {
        config.tickets.tls12_lifetime = None;
        config.session_cache = None;
    });
    let rules = host(&without, "shop.test").rules(&by_ticket());
    assert_eq!((rules.tickets, rules.session_ids), (None, None));
    assert!(host(&without, "shop.test").rules(&modern()).tickets.is_some());
}

/// In TLS 1.2 all sessions of a chain have the same keys.
#[test]
fn a_chain_of_tls12_resumptions_ends_a_session_lifetime_after_the_full_handshake() {
    let snapshot = snapshot();
    let rules = host(&snapshot, "shop.test").rules(&by_ticket());
    let tickets = rules.tickets.expect("configured");
    assert_eq!(chain(&tickets, SealedAs::Ticket, &rules.scope), hours(2));
    let key = CacheKey::new(CacheKind::SessionId, &rules.scope, &[7; 32]);
    let ids = rules.session_ids.expect("configured");
    assert_eq!(chain(&ids, SealedAs::Entry(&key), &rules.scope), hours(1));
}

/// How long after the full handshake a client that comes every ten minutes makes the next one.
fn chain(policy: &TicketPolicy, sealed_as: SealedAs<'_>, scope: &Scope) -> SignedDuration {
    let keys = TicketKeys::new(&ring());
    let mut age = SessionAge {
        authenticated_at: at(0),
        certificate_until: at(90 * 86_400),
    };
    let mut now = at(0);
    // A ring's keys can seal for a day.
    while now.duration_since(at(0)) < hours(23) {
        let ticket = keys
            .seal(b"session", sealed_as, scope, policy, &age, now)
            .expect("sealed");
        now += SignedDuration::from_mins(10);
        match keys.open(&ticket, sealed_as, scope, policy, now) {
            Ok(opened) => age.authenticated_at = opened.authenticated_at,
            Err(_) => break,
        }
    }
    now.duration_since(at(0))
}

#[test]
fn every_host_farm_and_policy_has_a_scope_of_its_own() {
    let scope = |snapshot: &Snapshot, name: &str| host(snapshot, name).rules(&modern()).scope;
    let one = snapshot();
    let other_farm = snapshot_with(|config| config.farm = "web/other".into());
    let strict = snapshot_with(|config| config.hosts[0].min_version = MinVersion::TLS13);
    let single_use = snapshot_with(|config| config.hosts[0].ticket_kind = TicketKind::SingleUse);
    let scopes: HashSet<Scope> = [
        scope(&one, "shop.test"),
        scope(&one, "once.test"),
        scope(&one, "strict.test"),
        scope(&other_farm, "shop.test"),
        scope(&strict, "shop.test"),
        scope(&single_use, "shop.test"),
    ]
    .into();
    assert_eq!(scopes.len(), 6);
    assert_eq!(scope(&one, "shop.test"), scope(&one, "www.shop.test"));
    let renamed = snapshot_with(|config| config.hosts[0].hostnames.push("more.test".into()));
    assert_eq!(scope(&one, "shop.test"), scope(&renamed, "more.test"));
}

#[test]
fn a_snapshot_serves_as_long_as_one_host_has_a_certificate() {
    let snapshot = snapshot();
    assert!(snapshot.any_servable());
    let served: HashSet<_> = snapshot.certificates_in_use().map(|(host, ..)| host).collect();
    assert_eq!(served, HashSet::from(["shop", "strict", "once"]));
    assert_eq!(snapshot.certificate_reports(Timestamp::now()).len(), 4);
    let bare = snapshot_with(|config| config.hosts.retain(|host| host.name == "bare"));
    assert!(!bare.any_servable());
    assert_eq!(bare.certificates_in_use().count(), 0);
}
