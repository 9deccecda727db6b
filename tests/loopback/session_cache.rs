//! Sessions in a shared cache: TLS 1.2 session ids and single-use tickets are resumed at every proxy, and a cache that
//! is sick costs full handshakes and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tlsfarm::api::TicketKind;
use tlsfarm::config::{self, CacheServer, ProxyConfig, SessionCache};

use crate::cache_peers::Caches;
use crate::cache_process::Cache;
use crate::harness::{Farm, Proxy, Visit, new_ring, put_config, visit, wait_for};
use crate::redis_server::Redis;

/// A client that keeps session ids and no tickets, and one that keeps tickets.
pub const BY_ID: [&str; 2] = ["-tls1_2", "-no_ticket"];
pub const BY_TICKET: [&str; 1] = ["-tls1_3"];

/// After this long a session is stored or will not be: many times the time limit of the cache.
const GIVEN_UP: Duration = Duration::from_millis(500);

/// What a handshake takes at most: the longest lookup, and what a busy machine adds.
const AT_MOST: Duration = Duration::from_millis(1500);

pub fn config(farm: &Farm, server: CacheServer) -> ProxyConfig {
    let mut config = farm.config();
    config.session_cache = Some(SessionCache {
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

/// Every traffic thread and the one that looks are connected, and none of them holds back.
pub fn wait_until_reachable(proxy: &Proxy) {
    let ways = 1 + thread::available_parallelism().map_or(1, usize::from) as u64;
    wait_for("the session cache", || {
        let reachable = proxy.metric("tlsfarm_proxy_session_cache_reachable");
        (reachable == ways).then_some(())
    });
    let cache = proxy.report().session_cache.expect("the proxy has a cache");
    assert!(cache.reachable, "{:?}", cache.problem);
}

pub fn requests(proxy: &Proxy, operation: &str, outcome: &str) -> u64 {
    proxy.metric(&format!(
        "tlsfarm_proxy_session_cache_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\"}}"
    ))
}

/// Makes a session at `proxy` that the cache has. On a busy machine an answer may be late, and a session is then given
/// up as not stored; so it may take several.
pub fn session(farm: &Farm, proxy: &Proxy, arguments: &[&str]) -> PathBuf {
    let file = farm
        .dir
        .join(format!("session-{}{}", proxy.https.port(), arguments.concat()));
    // Clients of TLS 1.3 get two tickets and offer the last.
    let entries = if arguments == BY_TICKET { 2 } else { 1 };
    wait_for("the cache to have a session", || {
        let stored = requests(proxy, "put", "stored");
        let first = connect(farm, proxy, "shop.test", arguments, "-sess_out", &file);
        assert!(first.served() && !first.reused, "{}", first.output);
        let given_up = Instant::now() + GIVEN_UP;
        while Instant::now() < given_up {
            if requests(proxy, "put", "stored") == stored + entries {
                return Some(());
            }
        }
        None
    });
    file
}

pub fn connect(farm: &Farm, proxy: &Proxy, name: &str, arguments: &[&str], way: &str, file: &Path) -> Visit {
    let file = file.to_str().expect("a plain path");
    visit(farm, proxy.https, name, &[arguments, &[way, file]].concat())
}

#[test]
fn session_ids_are_resumed_at_every_proxy_again_and_again() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxies = [(); 3].map(|()| start(&farm, redis.over_unix()));
    for issuer in &proxies {
        let file = session(&farm, issuer, &BY_ID);
        for proxy in proxies.iter().chain(&proxies) {
            let again = connect(&farm, proxy, "shop.test", &BY_ID, "-sess_in", &file);
            assert!(again.served() && again.reused, "{}", again.output);
        }
        let foreign = connect(&farm, issuer, "blog.test", &BY_ID, "-sess_in", &file);
        assert!(foreign.served() && !foreign.reused, "{}", foreign.output);
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
        let file = session(&farm, &proxies[issuer], &BY_TICKET);
        let foreign = connect(&farm, &proxies[other], "blog.test", &BY_TICKET, "-sess_in", &file);
        assert!(foreign.served() && !foreign.reused, "{}", foreign.output);
        let first = connect(&farm, &proxies[other], "shop.test", &BY_TICKET, "-sess_in", &file);
        assert!(first.served() && first.reused, "{}", first.output);
        for proxy in &proxies {
            let second = connect(&farm, proxy, "shop.test", &BY_TICKET, "-sess_in", &file);
            assert!(second.served() && !second.reused, "{}", second.output);
        }
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
    let again = connect(&farm, &proxy, "shop.test", &BY_ID, "-sess_in", &file);
    assert!(again.served() && !again.reused, "{}", again.output);
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
        let visit = connect(&farm, &proxy, "shop.test", &BY_ID, "-sess_in", &file);
        assert!(visit.served(), "{}", visit.output);
        assert!(began.elapsed() < AT_MOST, "it took {:?}", began.elapsed());
        visit.reused
    };
    assert!(offer());

    redis.signal("STOP");
    wait_for("the breaker to open", || {
        assert!(!offer(), "nobody answers");
        (requests(&proxy, "get", "unavailable") > 0).then_some(())
    });
    assert!(requests(&proxy, "get", "timeout") > 0);
    assert_eq!(
        proxy.get("/readyz").0,
        200,
        "a sick cache does not take a proxy out of service"
    );
    redis.signal("CONT");
    resumes_again(offer);

    redis.kill();
    assert!(!offer());
    wait_for("the loss to be known", || {
        let cache = proxy.report().session_cache.expect("the proxy has a cache");
        (!cache.reachable && cache.problem.is_some()).then_some(())
    });
    redis.start_again();
    wait_until_reachable(&proxy);
    let file = session(&farm, &proxy, &BY_ID);
    let again = connect(&farm, &proxy, "shop.test", &BY_ID, "-sess_in", &file);
    assert!(again.served() && again.reused, "{}", again.output);
}

/// A cache that is back is used within five seconds.
fn resumes_again(offer: impl Fn() -> bool) {
    let began = Instant::now();
    while !offer() {
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
    // Enough of them for either cache to own some.
    for round in 0..6 {
        let [issuer, other] = [round % 2, (round + 1) % 2].map(|number| &proxies[number]);
        let resumes = |arguments: &[&str], file: &Path| {
            let visit = connect(&caches.farm, other, "shop.test", arguments, "-sess_in", file);
            assert!(visit.served(), "{}", visit.output);
            visit.reused
        };
        let by_id = session(&caches.farm, issuer, &BY_ID);
        // Four processes take part in each: on a busy machine an answer may be late.
        wait_for("a session id to be resumed", || {
            resumes(&BY_ID, &by_id).then_some(())
        });
        let by_ticket = wait_for("a ticket to be resumed", || {
            let file = session(&caches.farm, issuer, &BY_TICKET);
            resumes(&BY_TICKET, &file).then_some(file)
        });
        assert!(!resumes(&BY_TICKET, &by_ticket), "it was used already");
    }
}

#[test]
fn a_client_that_keeps_tickets_is_no_business_of_the_cache() {
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
fn a_cache_is_taken_into_use_changed_and_given_up_without_a_restart() {
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
    let offer = || connect(&farm, &proxy, "shop.test", &BY_ID, "-sess_in", &file);
    // Each thread connects when its next client comes.
    let resumes = || wait_for("a session to be resumed", || offer().reused.then_some(()));
    resumes();
    change(config(&farm, other.over_unix()));
    let visit = offer();
    assert!(visit.served() && !visit.reused, "{}", visit.output);
    change(config(&farm, one.over_unix()));
    resumes();
    change(farm.config());
    let visit = offer();
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
    let (code, printed) = probe(&proxies);
    assert_eq!(code, Some(0), "{printed}");
    for row in ["TLS 1.2 session id  9/9  100 %", "TLS 1.3 single-use  9/9  100 %"] {
        assert!(printed.contains(row), "{printed}");
    }
    let all = |outcome| -> u64 {
        let taken = proxies.iter().map(|proxy| requests(proxy, "take", outcome));
        taken.sum()
    };
    assert_eq!((all("hit"), all("miss")), (9, 9), "each ticket was offered twice");
    let hung_up = "tlsfarm_proxy_handshake_failures_total{reason=\"client_closed\"}";
    wait_for("the ends of what was offered again", || {
        let count: u64 = proxies.iter().map(|proxy| proxy.metric(hung_up)).sum();
        (count == 9).then_some(())
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
