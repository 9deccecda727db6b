//! A session cache that lies, dawdles or says nothing: full handshakes, no error, no wait beyond the limit, no growth.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime;

use crate::client::{Client, Http};
use crate::evil_cache::{Conduct, EvilCache};
use crate::harness::{Farm, Proxy, wait_for};
use crate::session_cache::{config, is_used_soon, wait_until_reachable};
use crate::session_offers::{
    BY_ID, BY_TICKET, Counted, Offer, connect, offer, requests, resumes, session, until_answered,
};

const MIB: usize = 1024 * 1024;

/// What a handshake may wait for the cache in these tests.
const LIMIT: Duration = Duration::from_millis(20);

/// How far the two medians may differ on a busy machine, although their visits alternate.
const NOISE: Duration = Duration::from_millis(200);

struct Scene {
    // The proxy ends before its files go.
    proxy: Proxy,
    cache: EvilCache,
    farm: Farm,
}

impl Scene {
    fn new() -> Self {
        Self::with_limit("50ms")
    }

    /// One whose handshakes wait for the cache no longer than that.
    fn with_limit(limit: &str) -> Self {
        let farm = Farm::new("web/shop");
        let cache = EvilCache::start(&farm);
        let mut config = config(&farm, cache.server());
        let cache_config = config.session_cache.as_mut().expect("configured");
        cache_config.lookup_timeout = limit.parse().expect("valid");
        let proxy = farm.start_with(config);
        wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
        wait_until_reachable(&proxy);
        Self { proxy, cache, farm }
    }

    fn session(&self, arguments: &[&str]) -> PathBuf {
        session(&self.farm, &self.proxy, arguments)
    }

    fn offer(&self, arguments: &[&str], file: &Path) -> Offer {
        offer(&self.farm, &self.proxy, arguments, file)
    }

    fn resumes(&self, file: &Path) {
        resumes(&self.farm, &self.proxy, &BY_ID, file);
    }

    /// How long a visit takes that may offer the session in `file`. A machine that is so busy that an answer overtakes the time
    /// limit resumes it.
    fn time(&self, way: &str, file: &Path) -> Duration {
        let began = Instant::now();
        let visit = connect(&self.farm, &self.proxy, "shop.test", &BY_ID, way, file);
        assert!(visit.served(), "{}", visit.output);
        began.elapsed()
    }

    fn recovers(&self, file: &Path) {
        self.cache.set(Conduct::Honest);
        // Stores of earlier visits would be counted as those of the next one.
        Counted::settles(&self.proxy);
        is_used_soon(|| self.offer(&BY_ID, file));
    }

    fn failures(&self) -> u64 {
        let outcomes = ["timeout", "lost", "garbled", "refused"];
        outcomes
            .iter()
            .map(|outcome| requests(&self.proxy, "get", outcome))
            .sum()
    }

    fn unreadable(&self, what: &str) -> u64 {
        let outcomes = ["not_authentic", "malformed"];
        let series = |outcome| format!("tlsfarm_proxy_{what}_offered_total{{outcome=\"{outcome}\"}}");
        outcomes
            .map(|outcome| self.proxy.metric(&series(outcome)))
            .iter()
            .sum()
    }
}

#[test]
fn malformed_replies_are_counted_misses_and_take_no_memory() {
    let scene = Scene::new();
    let file = scene.session(&BY_ID);
    scene.resumes(&file);
    for conduct in [Conduct::Garbage, Conduct::Endless, Conduct::Drip] {
        let (failures, resident) = (scene.failures(), scene.proxy.resident());
        scene.cache.set(conduct);
        for _ in 0..8 {
            assert_eq!(scene.offer(&BY_ID, &file), Offer::Unanswered, "{conduct:?}");
        }
        assert!(scene.failures() > failures, "{conduct:?} is not counted");
        let grown = scene.proxy.resident().saturating_sub(resident);
        assert!(
            grown < 8 * MIB,
            "{conduct:?} made the proxy grow by {grown} bytes"
        );
        scene.recovers(&file);
    }
    assert!(requests(&scene.proxy, "get", "garbled") > 0);
}

#[test]
fn forged_entries_are_counted_misses() {
    let scene = Scene::new();
    // There is always another entry that the cache can return instead.
    let file = scene.session(&BY_ID);
    scene.session(&BY_TICKET);
    for conduct in [Conduct::AnotherEntry, Conduct::Altered, Conduct::Invented] {
        let refused = |by: &[&str], file: &Path, what: &str| {
            let before = scene.unreadable(what);
            scene.cache.set(conduct);
            let offer = scene.offer(by, file);
            scene.cache.set(Conduct::Honest);
            if offer == Offer::Unanswered {
                return None;
            }
            assert_eq!(offer, Offer::Refused, "{conduct:?}");
            assert_eq!(scene.unreadable(what), before + 1, "{conduct:?}");
            Some(())
        };
        until_answered(&scene.proxy, "a lie about a session", || {
            refused(&BY_ID, &file, "session_ids")
        });
        until_answered(&scene.proxy, "a lie about a ticket", || {
            refused(&BY_TICKET, &scene.session(&BY_TICKET), "tickets")
        });
        // Connection and breaker are unaffected.
        scene.resumes(&file);
    }
}

/// Only the owner of an entry knows whether it was used. Each use has a key exchange of its own, so that a second use is
/// not a replay of data.
#[test]
fn single_use_depends_on_the_server_that_keeps_the_entries() {
    let scene = Scene::new();
    until_answered(&scene.proxy, "each use of a ticket", || {
        let file = scene.session(&BY_TICKET);
        let uses = [
            (Conduct::KeepsTaken, Offer::Resumed, "it is there"),
            (Conduct::KeepsTaken, Offer::Resumed, "it was given a second time"),
            (Conduct::Honest, Offer::Resumed, "it is still there"),
            (Conduct::Honest, Offer::Refused, "it was taken"),
        ];
        for (conduct, expected, why) in uses {
            scene.cache.set(conduct);
            let offer = scene.offer(&BY_TICKET, &file);
            if offer == Offer::Unanswered {
                scene.cache.set(Conduct::Honest);
                return None;
            }
            assert_eq!(offer, expected, "{why}");
        }
        Some(())
    });
}

#[test]
fn no_handshake_waits_for_a_slow_cache_beyond_the_limit() {
    let scene = Scene::with_limit("20ms");
    let file = scene.session(&BY_ID);
    // Even the shortest is longer than `LIMIT` and `NOISE` together.
    for delay in [500, 1000, 5000] {
        scene.cache.set(Conduct::Slow(Duration::from_millis(delay)));
        slow_is_bounded(&scene, &file, &format!("{delay} ms"));
    }
    scene.cache.set(Conduct::Silent);
    slow_is_bounded(&scene, &file, "silence");
}

fn slow_is_bounded(scene: &Scene, file: &Path, what: &str) {
    const AT_ONCE: usize = 24;
    const VISITS: usize = 9;
    let (began, unavailable) = (Instant::now(), requests(&scene.proxy, "get", "unavailable"));
    // Enough concurrent visits to open the breaker of each thread.
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| scene.time("-sess_in", file));
        }
    });
    let at_once = began.elapsed();
    // Visits that ask for nothing take turns with those that do, so that what else the machine does is the same for both.
    let fresh = scene.farm.dir.join("fresh");
    let mut times: Vec<[Duration; 2]> = (0..VISITS)
        .map(|_| [scene.time("-sess_out", &fresh), scene.time("-sess_in", file)])
        .collect();
    let [without, with] = [0, 1].map(|which| {
        times.sort_unstable_by_key(|pair| pair[which]);
        times[VISITS / 2][which]
    });
    println!(
        "{what}: {AT_ONCE} at once {at_once:?}, then a median of {with:?}; without a lookup {without:?}"
    );
    assert!(
        with < without + LIMIT + NOISE,
        "{what}: {with:?} instead of {without:?}"
    );
    assert!(
        requests(&scene.proxy, "get", "unavailable") > unavailable,
        "{what}: the breaker is open"
    );
    scene.recovers(file);
}

#[test]
fn a_cache_that_is_a_little_slow_is_used() {
    let scene = Scene::new();
    let file = scene.session(&BY_ID);
    scene.cache.set(Conduct::Slow(Duration::from_millis(10)));
    for _ in 0..10 {
        scene.resumes(&file);
    }
}

#[test]
fn sessions_pile_up_in_the_cache_and_not_in_the_proxy() {
    const HANDSHAKES: usize = 600;
    for conduct in [
        Conduct::Honest,
        Conduct::Silent,
        Conduct::Slow(Duration::from_secs(1)),
    ] {
        let scene = Scene::new();
        scene.cache.set(conduct);
        full_handshakes(&scene, HANDSHAKES);
        let before = scene.proxy.resident();
        full_handshakes(&scene, HANDSHAKES * 2);
        let grown = scene.proxy.resident().saturating_sub(before);
        assert!(grown < 4 * MIB, "{conduct:?}: {grown} bytes more");
    }
}

fn full_handshakes(scene: &Scene, count: usize) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        for _ in 0..count {
            // A client without a session.
            let client = Client::new(&scene.farm, Http::One);
            client.tls(scene.proxy.https).await.expect("a handshake");
        }
    });
}
