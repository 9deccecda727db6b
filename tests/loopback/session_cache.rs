//! Sessions in a shared cache: TLS 1.2 session ids and single-use tickets are resumed at every proxy, and a cache that
//! is sick costs full handshakes and nothing else.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tlsfarm::api::TicketKind;
use tlsfarm::config::{self, CacheServer, ProxyConfig, SessionCacheConfig};

use crate::cache_peers::Caches;
use crate::cache_process::Cache;
use crate::harness::{Farm, Proxy, new_ring, put_config, wait_for};
use crate::redis_server::Redis;
use crate::session_offers::{
    BY_ID, BY_TICKET, Counted, Offer, answered_offer, connect, is_refused, offer, requests, resumes, session,
    until_answered, use_ticket,
};

/// What a handshake takes at most: the longest lookup, and what a busy machine adds.
const AT_MOST: Duration = Duration::from_secs(3);

pub fn config(farm: &Farm, server: CacheServer) -> ProxyConfig {
    let mut config = farm.config();
    config.session_cache = Some(SessionCacheConfig {
        server,
        session_id_lifetime: "1h".parse().expect("valid"),
        lookup_timeout: "50ms".parse().expect("valid"),
    });
    for host in &mut config.hosts {
        host.ticket_kind = TicketKind::SingleUse;
    }
    config
}

pub fn start(farm: &Farm, server: CacheServer) -> Proxy {
    let proxy = farm.start_with(config(farm, server));
    wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
    wait_until_reachable(&proxy);
    proxy
}

/// Traffic threads of a proxy.
fn threads() -> u64 {
    thread::available_parallelism().map_or(1, usize::from) as u64
}

/// Every traffic thread and the one that looks are connected, and none of them holds back.
pub fn wait_until_reachable(proxy: &Proxy) {
    let ways = 1 + threads();
    wait_for("the session cache", || {
        let reachable = proxy.metric("tlsfarm_proxy_session_cache_reachable");
        (reachable == ways).then_some(())
    });
    let cache = proxy.report().session_cache.expect("the proxy has a cache");
    assert!(cache.reachable, "{:?}", cache.problem);
}

#[test]
fn session_ids_are_resumed_at_every_proxy_again_and_again() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxies = [(); 3].map(|()| start(&farm, redis.over_unix()));
    for issuer in &proxies {
        let file = session(&farm, issuer, &BY_ID);
        for proxy in proxies.iter().chain(&proxies) {
            resumes(&farm, proxy, &BY_ID, &file);
        }
        let foreign = answered_offer(&farm, issuer, "blog.test", &BY_ID, &file);
        assert_eq!(foreign, Offer::Refused);
    }
    let counted = proxies[0].metric("tlsfarm_proxy_session_ids_offered_total{outcome=\"ok\"}");
    assert_eq!(counted, 6);
}

#[test]
fn a_single_use_ticket_is_resumed_at_any_proxy_and_once() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxies = [(); 2].map(|()| start(&farm, redis.over_unix()));
    for (issuer, other) in [(0, 1), (1, 0), (0, 0)] {
        let (issuer, other) = (&proxies[issuer], &proxies[other]);
        let unused = session(&farm, issuer, &BY_TICKET);
        let foreign = answered_offer(&farm, other, "blog.test", &BY_TICKET, &unused);
        assert_eq!(foreign, Offer::Refused);
        let used = use_ticket(&farm, issuer, other);
        for proxy in &proxies {
            is_refused(&farm, proxy, &BY_TICKET, &used);
        }
    }
}

#[test]
fn a_ticket_that_another_host_refused_is_still_good_where_it_came_from() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxy = start(&farm, redis.over_unix());
    until_answered(&proxy, "taking a ticket's session", || {
        let file = session(&farm, &proxy, &BY_TICKET);
        let foreign = answered_offer(&farm, &proxy, "blog.test", &BY_TICKET, &file);
        assert_eq!(foreign, Offer::Refused);
        match offer(&farm, &proxy, &BY_TICKET, &file) {
            Offer::Unanswered => None,
            answered => {
                assert_eq!(answered, Offer::Resumed);
                Some(())
            }
        }
    });
}

#[test]
fn entries_end_with_their_sessions() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let mut config = config(&farm, redis.over_unix());
    config.tickets.lifetime = "30m".parse().expect("valid");
    let ids = config.session_cache.as_mut().expect("configured");
    ids.session_id_lifetime = "10m".parse().expect("valid");
    let proxy = farm.start_with(config);
    wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
    wait_until_reachable(&proxy);
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    for (by, entries, lifetime) in [(&BY_ID[..], 1, minutes(10)), (&BY_TICKET, 2, minutes(30))] {
        redis.command("FLUSHALL");
        let began = Instant::now();
        session(&farm, &proxy, by);
        let left = redis.lifetimes();
        let least = lifetime.saturating_sub(began.elapsed() + Duration::from_secs(1));
        assert!(left.len() >= entries, "{left:?}");
        assert!(
            left.iter().all(|left| (least..=lifetime).contains(left)),
            "{left:?}"
        );
    }
}

#[test]
fn a_dropped_ring_key_makes_its_entries_unreadable_at_once() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxy = start(&farm, redis.over_unix());
    let file = session(&farm, &proxy, &BY_ID);
    let mut ring = new_ring();
    ring.generation = 1000;
    farm.put_ring(&ring);
    wait_for("the other ring", || {
        (proxy.report().ring.generation == Some(1000)).then_some(())
    });
    is_refused(&farm, &proxy, &BY_ID, &file);
    let counted = proxy.metric("tlsfarm_proxy_session_ids_offered_total{outcome=\"unknown_key\"}");
    assert_eq!(counted, 1);
}

#[test]
fn a_dead_or_silent_cache_costs_full_handshakes_and_nothing_else() {
    let farm = Farm::new("web/shop");
    let mut redis = Redis::start(&farm, &[]);
    let proxy = start(&farm, redis.over_unix());
    let file = session(&farm, &proxy, &BY_ID);
    let offer = || {
        let began = Instant::now();
        let offer = offer(&farm, &proxy, &BY_ID, &file);
        let took = began.elapsed();
        assert!(took < AT_MOST, "took {took:?}");
        offer
    };
    resumes(&farm, &proxy, &BY_ID, &file);

    redis.signal("STOP");
    // At most five offers per thread wait before its breaker opens; the next one fails immediately.
    let most = 5 * threads() + 1;
    let known = (0..most).any(|_| {
        assert_eq!(offer(), Offer::Unanswered);
        requests(&proxy, "get", "unavailable") > 0
    });
    assert!(known, "after {most} offers no thread knows that the cache hangs");
    assert!(requests(&proxy, "get", "timeout") > 0);
    assert_eq!(
        proxy.get("/readyz").0,
        200,
        "a sick cache does not take a proxy out of service"
    );
    redis.signal("CONT");
    is_used_soon(offer);

    redis.kill();
    assert_eq!(offer(), Offer::Unanswered);
    wait_for("the loss to be known", || {
        let cache = proxy.report().session_cache.expect("the proxy has a cache");
        (!cache.reachable && cache.problem.is_some()).then_some(())
    });
    redis.start_again();
    wait_until_reachable(&proxy);
    let file = session(&farm, &proxy, &BY_ID);
    resumes(&farm, &proxy, &BY_ID, &file);
}

/// A cache that is back is used within five seconds. Until then it is not asked, or answers too late.
pub fn is_used_soon(offer: impl Fn() -> Offer) {
    let began = Instant::now();
    loop {
        match offer() {
            Offer::Resumed => return,
            Offer::Refused => panic!("the cache has lost a session"),
            Offer::Unanswered => {}
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "the cache is back and not used"
        );
    }
}

#[test]
fn proxies_share_sessions_through_a_cache_beside_each() {
    let caches = Caches::start(2);
    caches.wait_until_linked();
    let start = |cache: &Cache| start(&caches.farm, CacheServer::Unix(cache.unix.clone()));
    let proxies = [start(&caches.all[0]), start(&caches.all[1])];
    // Enough entries for each cache to own some.
    for round in 0..6 {
        let [issuer, other] = [round % 2, (round + 1) % 2].map(|number| &proxies[number]);
        let by_id = session(&caches.farm, issuer, &BY_ID);
        resumes(&caches.farm, other, &BY_ID, &by_id);
        let by_ticket = use_ticket(&caches.farm, issuer, other);
        is_refused(&caches.farm, other, &BY_TICKET, &by_ticket);
    }
}

#[test]
fn clients_with_tickets_do_not_use_the_cache() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let mut config = config(&farm, redis.over_unix());
    for host in &mut config.hosts {
        host.ticket_kind = TicketKind::Stateless;
    }
    let proxy = farm.start_with(config);
    wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
    wait_until_reachable(&proxy);
    for version in ["-tls1_2", "-tls1_3"] {
        let file = farm.dir.join(version);
        let first = connect(&farm, &proxy, "shop.test", &[version], "-sess_out", &file);
        assert!(first.served() && !first.reused, "{}", first.output);
        // OpenSSL sends an id along with a TLS 1.2 ticket (RFC 5077 section 3.4).
        let again = connect(&farm, &proxy, "shop.test", &[version], "-sess_in", &file);
        assert!(again.served() && again.reused, "{}", again.output);
        let generation = proxy.report().ring.generation.map(|generation| generation + 1);
        farm.put_ring(&new_ring().reissued(generation.expect("a ring"), jiff::Timestamp::now()));
        wait_for("the other ring", || {
            (proxy.report().ring.generation == generation).then_some(())
        });
        let late = connect(&farm, &proxy, "shop.test", &[version], "-sess_in", &file);
        assert!(late.served() && !late.reused, "{}", late.output);
    }
    for (operation, outcome) in [
        ("get", "hit"),
        ("get", "miss"),
        ("take", "miss"),
        ("put", "stored"),
    ] {
        assert_eq!(requests(&proxy, operation, outcome), 0, "{operation} {outcome}");
    }
}

#[test]
fn a_cache_is_enabled_changed_and_disabled_without_a_restart() {
    let farm = Farm::new("web/shop");
    let (one, other_farm) = (Redis::start(&farm, &[]), Farm::new("web/shop"));
    let other = Redis::start(&other_farm, &[]);
    let proxy = farm.start();
    let file = farm.dir.join("without");
    let without = |way| connect(&farm, &proxy, "shop.test", &BY_ID, way, &file);
    assert!(without("-sess_out").served());
    assert_eq!(proxy.report().session_cache, None);

    let change = |mut config: ProxyConfig| {
        config.listen = proxy.config.listen.clone();
        put_config(&proxy.config_file, &config);
        let wanted = config::fingerprint(&serde_json::to_vec(&config).expect("serializes"));
        wait_for("the other configuration", || {
            (proxy.report().config.fingerprint == wanted).then_some(())
        });
    };
    change(config(&farm, one.over_unix()));
    wait_for("a cache", || proxy.report().session_cache);
    let file = session(&farm, &proxy, &BY_ID);
    // Each thread connects when its next client arrives; that client waits for the connection.
    resumes(&farm, &proxy, &BY_ID, &file);
    change(config(&farm, other.over_unix()));
    is_refused(&farm, &proxy, &BY_ID, &file);
    change(config(&farm, one.over_unix()));
    resumes(&farm, &proxy, &BY_ID, &file);
    change(farm.config());
    let visit = connect(&farm, &proxy, "shop.test", &BY_ID, "-sess_in", &file);
    assert!(visit.served() && !visit.reused, "{}", visit.output);
    wait_for("no cache", || {
        proxy.report().session_cache.is_none().then_some(())
    });
}

#[test]
fn the_probe_sees_every_proxy_resume_and_single_use_tickets_once() {
    let farm = Farm::new("web/shop");
    let shared = Redis::start(&farm, &[]);
    let proxies = [(); 3].map(|()| start(&farm, shared.over_unix()));
    let all = |outcome| -> u64 {
        let taken = proxies.iter().map(|proxy| requests(proxy, "take", outcome));
        taken.sum()
    };
    let hung_up = || -> u64 {
        let series = "tlsfarm_proxy_handshake_failures_total{reason=\"client_closed\"}";
        proxies.iter().map(|proxy| proxy.metric(series)).sum()
    };
    let unanswered = || -> u64 {
        let counted = proxies.iter().map(Counted::of);
        counted
            .map(|counted| counted.unanswered + counted.not_stored)
            .sum()
    };
    let every_thread_asks = || {
        let held_back = proxies.iter().any(|proxy| Counted::of(proxy).holds_back());
        (!held_back).then_some(())
    };
    until_answered(&proxies[0], "the probe", || {
        wait_for("caches that every thread asks", every_thread_asks);
        let before = (unanswered(), all("hit"), all("miss"), hung_up());
        let (code, printed) = probe(&proxies);
        if unanswered() > before.0 {
            return None;
        }
        for row in ["TLS 1.2 session id", "TLS 1.3 single-use"] {
            let line = printed.lines().find(|line| line.contains(row)).expect("a row");
            assert!(
                line.split_whitespace().any(|word| word == "9/9"),
                "{row}: {printed}"
            );
        }
        assert_eq!(code, Some(0), "{printed}");
        assert_eq!(
            (all("hit") - before.1, all("miss") - before.2),
            (9, 9),
            "each ticket was offered twice"
        );
        wait_for("the repeated offers to end", || {
            (hung_up() >= before.3 + 9).then_some(())
        });
        Some(())
    });

    let other_farm = Farm::new("web/shop");
    let other = Redis::start(&other_farm, &[]);
    let (code, printed) = probe(&[start(&farm, shared.over_unix()), start(&farm, other.over_unix())]);
    assert_eq!(code, Some(1), "two caches that do not share: {printed}");
}

fn probe(proxies: &[Proxy]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlsfarm"));
    command.args(["probe", "--server-name", "shop.test"]);
    command.args([
        "--mechanism",
        "tls12-session-id",
        "--mechanism",
        "tls13-single-use",
    ]);
    for proxy in proxies {
        command.args(["--address", &proxy.https.to_string()]);
    }
    let output = command.output().expect("the probe runs");
    let printed = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&printed).into_owned(),
    )
}
