//! Sessions in a shared cache: TLS 1.2 session ids and single-use tickets are resumed at every proxy, and a cache that
//! is sick costs full handshakes and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tlsfarm::api::TicketKind;
use tlsfarm::config::{CacheServer, ProxyConfig, SessionCache};

use crate::harness::{Farm, PATIENCE, Proxy, Visit, new_ring, visit, wait_for};
use crate::redis_server::Redis;

/// A client that keeps session ids and no tickets, and one that keeps tickets.
const BY_ID: [&str; 2] = ["-tls1_2", "-no_ticket"];
const BY_TICKET: [&str; 1] = ["-tls1_3"];

/// What a handshake takes at most: the longest lookup, and what a busy machine adds.
const AT_MOST: Duration = Duration::from_millis(1500);

fn config(farm: &Farm, server: CacheServer) -> ProxyConfig {
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

fn start(farm: &Farm, server: CacheServer) -> Proxy {
    let proxy = farm.start_with(config(farm, server));
    wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
    wait_until_reachable(&proxy);
    proxy
}

fn wait_until_reachable(proxy: &Proxy) {
    wait_for("the session cache", || {
        let cache = proxy.report().session_cache.expect("the proxy has a cache");
        cache.reachable.then_some(())
    });
}

fn requests(proxy: &Proxy, operation: &str, outcome: &str) -> u64 {
    proxy.metric(&format!(
        "tlsfarm_proxy_session_cache_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\"}}"
    ))
}

/// Makes a session at `proxy` and waits until the cache has it.
fn session(farm: &Farm, proxy: &Proxy, arguments: &[&str]) -> PathBuf {
    let file = farm
        .dir
        .join(format!("session-{}{}", proxy.https.port(), arguments.concat()));
    let before = requests(proxy, "put", "stored");
    let first = connect(farm, proxy, "shop.test", arguments, "-sess_out", &file);
    assert!(first.served() && !first.reused, "{}", first.output);
    wait_for("the cache to have the session", || {
        (requests(proxy, "put", "stored") > before).then_some(())
    });
    file
}

fn connect(farm: &Farm, proxy: &Proxy, name: &str, arguments: &[&str], way: &str, file: &Path) -> Visit {
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
    for _ in 0..12 {
        assert!(!offer(), "nobody answers");
    }
    assert!(requests(&proxy, "get", "timeout") > 0);
    assert!(requests(&proxy, "get", "unavailable") > 0, "the breaker is open");
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
    let file = {
        wait_until_reachable(&proxy);
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "nothing is stored again");
            let before = requests(&proxy, "put", "stored");
            let file = farm.dir.join("session-after");
            connect(&farm, &proxy, "shop.test", &BY_ID, "-sess_out", &file);
            if requests(&proxy, "put", "stored") > before {
                break file;
            }
        }
    };
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
