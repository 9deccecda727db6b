//! A session cache that lies, dawdles or says nothing: full handshakes, no error, no wait beyond the limit, no growth.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime;

use crate::client::{Client, Http};
use crate::evil_cache::{Conduct, EvilCache};
use crate::harness::{Farm, Proxy, wait_for};
use crate::session_cache::{BY_ID, BY_TICKET, config, connect, requests, session, wait_until_reachable};

const MIB: usize = 1024 * 1024;

/// What a handshake may wait for the cache in these tests.
const LIMIT: Duration = Duration::from_millis(20);

/// What medians of a busy machine differ by.
const NOISE: Duration = Duration::from_millis(30);

/// A cache that is back must be used within this time.
const RECOVERY: Duration = Duration::from_secs(5);

struct Scene {
    // The proxy ends before its files go.
    proxy: Proxy,
    cache: EvilCache,
    farm: Farm,
}

impl Scene {
    fn new() -> Self {
        let farm = Farm::new("web/shop");
        let cache = EvilCache::start(&farm);
        let mut config = config(&farm, cache.server());
        let cache_config = config.session_cache.as_mut().expect("it has one");
        cache_config.lookup_timeout = "20ms".parse().expect("valid");
        let proxy = farm.start_with(config);
        wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
        wait_until_reachable(&proxy);
        Self { proxy, cache, farm }
    }

    fn session(&self, arguments: &[&str]) -> PathBuf {
        session(&self.farm, &self.proxy, arguments)
    }

    /// Whether the session in `file` is resumed. The page comes in any case.
    fn offer(&self, arguments: &[&str], file: &Path) -> bool {
        let visit = connect(&self.farm, &self.proxy, "shop.test", arguments, "-sess_in", file);
        assert!(visit.served(), "{}", visit.output);
        visit.reused
    }

    /// The median time of visits that offer the session in `file`, and none of which resumes.
    fn median(&self, file: &Path, visits: usize) -> Duration {
        let mut times: Vec<_> = (0..visits)
            .map(|_| {
                let began = Instant::now();
                assert!(!self.offer(&BY_ID, file));
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[visits / 2]
    }

    fn recovers(&self, file: &Path) {
        self.cache.set(Conduct::Honest);
        let began = Instant::now();
        while !self.offer(&BY_ID, file) {
            let took = began.elapsed();
            assert!(took < RECOVERY, "the cache is back and not used after {took:?}");
        }
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
fn what_is_no_reply_is_a_miss_a_counter_and_no_growth() {
    let scene = Scene::new();
    let file = scene.session(&BY_ID);
    assert!(scene.offer(&BY_ID, &file));
    for conduct in [Conduct::Garbage, Conduct::Endless, Conduct::Drip] {
        let (failures, resident) = (scene.failures(), scene.proxy.resident());
        scene.cache.set(conduct);
        for _ in 0..8 {
            assert!(!scene.offer(&BY_ID, &file), "{conduct:?}");
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
fn a_lie_is_a_miss_and_a_counter() {
    let scene = Scene::new();
    let file = scene.session(&BY_ID);
    for conduct in [Conduct::AnotherEntry, Conduct::Altered, Conduct::Invented] {
        let single_use = scene.session(&BY_TICKET);
        let (ids, tickets) = (scene.unreadable("session_ids"), scene.unreadable("tickets"));
        scene.cache.set(conduct);
        assert!(!scene.offer(&BY_ID, &file), "{conduct:?}");
        assert!(!scene.offer(&BY_TICKET, &single_use), "{conduct:?}");
        assert_eq!(scene.unreadable("session_ids"), ids + 1, "{conduct:?}");
        assert_eq!(scene.unreadable("tickets"), tickets + 1, "{conduct:?}");
        scene.cache.set(Conduct::Honest);
        assert!(
            scene.offer(&BY_ID, &file),
            "the link and the breaker are as they were"
        );
    }
}

/// The owner of an entry decides who used it, and nobody else knows. Each use has a key exchange of its own, so that a
/// second one is no replay of data.
#[test]
fn single_use_is_as_good_as_the_server_that_keeps_the_entries() {
    let scene = Scene::new();
    let file = scene.session(&BY_TICKET);
    scene.cache.set(Conduct::KeepsTaken);
    assert!(scene.offer(&BY_TICKET, &file));
    assert!(scene.offer(&BY_TICKET, &file), "it was given a second time");
    scene.cache.set(Conduct::Honest);
    assert!(scene.offer(&BY_TICKET, &file));
    assert!(!scene.offer(&BY_TICKET, &file), "it was taken");
}

#[test]
fn no_handshake_waits_for_a_slow_cache_beyond_the_limit() {
    let scene = Scene::new();
    let unknown = scene.session(&BY_ID);
    scene.cache.forget_everything();
    let usual = scene.median(&unknown, 9);
    let file = scene.session(&BY_ID);
    for delay in [50, 500, 5000] {
        scene.cache.set(Conduct::Slow(Duration::from_millis(delay)));
        slow_is_bounded(&scene, &file, usual, &format!("{delay} ms"));
    }
    scene.cache.set(Conduct::Silent);
    slow_is_bounded(&scene, &file, usual, "silence");
}

fn slow_is_bounded(scene: &Scene, file: &Path, usual: Duration, what: &str) {
    let began = Instant::now();
    // As many at once as open the breaker of each thread.
    thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| assert!(!scene.offer(&BY_ID, file), "{what}"));
        }
    });
    let unavailable = requests(&scene.proxy, "get", "unavailable");
    let median = scene.median(file, 9);
    println!(
        "{what}: 24 at once {:?}, then a median of {median:?}; usual is {usual:?}",
        began.elapsed()
    );
    assert!(
        median < usual + LIMIT + NOISE,
        "{what}: {median:?} instead of {usual:?}"
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
    scene.cache.set(Conduct::Slow(LIMIT / 4));
    assert!((0..10).any(|_| scene.offer(&BY_ID, &file)));
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
            // A client that has never been here.
            let client = Client::new(&scene.farm, Http::One);
            client.tls(scene.proxy.https).await.expect("a handshake");
        }
    });
}
