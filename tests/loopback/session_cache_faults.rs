//! A session cache that dies, stops or loses its memory while clients keep coming: nobody is refused, handshakes soon wait
//! for it no longer, and it is used again when it is back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tlsfarm::config::CacheServer;
use tokio::runtime;
use tokio::time::{interval, timeout};

use crate::cache_process::Cache;
use crate::client::{Answer, Client};
use crate::harness::{Farm, PATIENCE, Proxy, new_ring, wait_for};
use crate::redis_server::Redis;
use crate::session_cache::{start, wait_until_reachable};
use crate::session_offers::{
    BY_ID, BY_TICKET, Counted, Offer, is_refused, offer, requests, resumes, session, until_answered,
    use_ticket,
};

/// Within this time nobody asks a cache any more that does not answer.
const OPEN_WITHIN: Duration = Duration::from_secs(1);

/// What a busy machine adds to that.
const NOISE: Duration = Duration::from_secs(1);

/// So many may have waited by then: five open a breaker, and others have asked meanwhile.
const FEW: u64 = 40;

/// A cache that is back is used within this time.
const RECOVERY: Duration = Duration::from_secs(5);

/// Long enough for two trials, which come each second.
const TWO_TRIALS: Duration = Duration::from_millis(2500);

#[test]
fn handshakes_stop_asking_a_killed_cache_and_ask_its_replacement() {
    let mut scene = Scene::start();
    scene.cache.kill();
    scene.nobody_asks_soon();
    scene.nobody_waits();
    scene.cache.start_again();
    scene.sessions_are_resumed_soon();
    scene.load.finish();
}

#[test]
fn handshakes_stop_asking_a_hanging_cache_and_ask_again_when_it_recovers() {
    let scene = Scene::start();
    scene.cache.signal("STOP");
    scene.nobody_asks_soon();
    scene.nobody_waits();
    scene.cache.signal("CONT");
    scene.sessions_are_resumed_soon();
    scene.load.finish();
}

#[test]
fn a_cache_that_lost_everything_costs_a_full_handshake_for_each_session() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxy = start(&farm, redis.over_unix());
    let sessions = [&BY_ID[..], &BY_TICKET].map(|by| (by, session(&farm, &proxy, by)));
    redis.command("FLUSHALL");
    for (by, file) in &sessions {
        is_refused(&farm, &proxy, by, file);
    }
    let file = session(&farm, &proxy, &BY_ID);
    resumes(&farm, &proxy, &BY_ID, &file);
    use_ticket(&farm, &proxy, &proxy);
}

#[test]
fn a_restored_backup_makes_used_tickets_valid_once_more() {
    let farm = Farm::new("web/shop");
    let mut redis = Redis::start(&farm, &[]);
    let proxy = start(&farm, redis.over_unix());
    let use_it = |file: &Path, why: &str| {
        let offer = offer(&farm, &proxy, &BY_TICKET, file);
        assert_ne!(offer, Offer::Refused, "{why}");
        offer == Offer::Resumed
    };
    let file = until_answered(&proxy, "using it", || {
        let file = session(&farm, &proxy, &BY_TICKET);
        // A backup from before the ticket was used.
        redis.command("SAVE");
        use_it(&file, "nothing was restored yet").then_some(file)
    });
    is_refused(&farm, &proxy, &BY_TICKET, &file);
    until_answered(&proxy, "using it again", || {
        redis.kill();
        redis.start_again();
        wait_until_reachable(&proxy);
        use_it(&file, "what the copy holds counts as unused").then_some(())
    });
    is_refused(&farm, &proxy, &BY_TICKET, &file);

    // Dropping the keys from before the backup makes the tickets invalid for good.
    redis.kill();
    redis.start_again();
    wait_until_reachable(&proxy);
    let mut ring = new_ring();
    ring.generation = 1000;
    farm.put_ring(&ring);
    wait_for("the other ring", || {
        (proxy.report().ring.generation == Some(1000)).then_some(())
    });
    let before = Counted::of(&proxy);
    is_refused(&farm, &proxy, &BY_TICKET, &file);
    let counted = proxy.metric("tlsfarm_proxy_tickets_offered_total{outcome=\"unknown_key\"}");
    // Unless the one lookup that takes the entry was not answered.
    assert!(
        counted == 1 || Counted::of(&proxy).unanswered > before.unanswered,
        "no key of the ring opens it"
    );
}

struct Scene {
    load: Load,
    // The proxy ends before its files go.
    proxy: Proxy,
    cache: Cache,
    _farm: Farm,
}

impl Scene {
    fn start() -> Self {
        let farm = Farm::new("web/shop");
        let cache = Cache::start();
        let proxy = start(&farm, CacheServer::Unix(cache.unix.clone()));
        let load = Load::start(&farm, &proxy);
        wait_for("sessions to be resumed", || {
            (requests(&proxy, "get", "hit") > 20).then_some(())
        });
        let missed = requests(&proxy, "get", "miss");
        let not_stored = Counted::of(&proxy).not_stored;
        assert!(
            missed <= not_stored * load.clients,
            "{missed} sessions were not found, and {not_stored} not stored"
        );
        Self {
            load,
            proxy,
            cache,
            _farm: farm,
        }
    }

    /// Each traffic thread has lost its connection or opened its breaker.
    fn nobody_asks_soon(&self) {
        let (began, waited) = (Instant::now(), self.waited());
        wait_for("handshakes that do not ask", || {
            // The control thread has a connection of its own, which only probes and may take longer to fail.
            let state = |state| format!("tlsfarm_proxy_session_cache_breakers{{state=\"{state}\"}}");
            let none = self.proxy.metric("tlsfarm_proxy_session_cache_reachable") == 0;
            (none || self.proxy.metric(&state("closed")) <= 1).then_some(())
        });
        let took = began.elapsed();
        println!("nobody asks after {took:?}");
        assert!(took < OPEN_WITHIN + NOISE, "took {took:?}");
        let waited = self.waited() - waited;
        assert!(waited <= FEW, "{waited} handshakes waited");
    }

    /// Handshakes go on, none of them waits for an answer of the cache, and trials do not change that.
    fn nobody_waits(&self) {
        // Lookups that were already waiting have timed out.
        self.load.goes_on(4 * self.load.clients);
        let (waited, known) = (self.waited(), requests(&self.proxy, "get", "unavailable"));
        let until = Instant::now() + TWO_TRIALS;
        while Instant::now() < until {
            self.load.goes_on(10);
        }
        assert_eq!(self.waited(), waited, "handshakes wait for a cache that is away");
        let known = requests(&self.proxy, "get", "unavailable") - known;
        assert!(known >= 10, "{known} sessions were offered and not asked for");
    }

    /// Requests that were sent, or might have been, and brought nothing.
    fn waited(&self) -> u64 {
        let of = |operation| {
            ["timeout", "lost"]
                .iter()
                .map(move |outcome| requests(&self.proxy, operation, outcome))
        };
        of("get").chain(of("put")).sum()
    }

    fn sessions_are_resumed_soon(&self) {
        let (began, hits) = (Instant::now(), requests(&self.proxy, "get", "hit"));
        wait_for("sessions to be resumed again", || {
            (requests(&self.proxy, "get", "hit") > hits).then_some(())
        });
        let took = began.elapsed();
        println!("sessions are resumed again after {took:?}");
        assert!(took < RECOVERY, "the cache is back and was not used for {took:?}");
    }
}

/// Clients that come again and again, offer a session id, and fetch a page.
struct Load {
    clients: u64,
    served: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(farm: &Farm, proxy: &Proxy) -> Self {
        const CLIENTS: u64 = 8;
        const PAUSE: Duration = Duration::from_millis(50);
        let (client, proxy) = (Client::by_session_id(farm), proxy.https);
        let (served, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, end) = (Arc::clone(&served), Arc::clone(&stop));
        let come_again = async move || {
            let mut pause = interval(PAUSE);
            while !end.load(Ordering::Relaxed) {
                pause.tick().await;
                let visit = async {
                    let mut connection = client.connect(proxy).await.expect("a handshake");
                    connection.ask().await
                };
                let answer = timeout(PATIENCE, visit).await.expect("a page in time");
                assert!(matches!(answer, Answer::Page | Answer::LastPage), "{answer:?}");
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let clients = (0..CLIENTS).map(|_| come_again());
            runtime
                .expect("a runtime")
                .block_on(futures::future::join_all(clients));
        });
        Self {
            clients: CLIENTS,
            served,
            stop,
            thread,
        }
    }

    /// So many clients more are served.
    fn goes_on(&self, clients: u64) {
        let before = self.served.load(Ordering::Relaxed);
        wait_for("clients to be served", || {
            assert!(!self.thread.is_finished(), "a client was not served");
            (self.served.load(Ordering::Relaxed) >= before + clients).then_some(())
        });
    }

    /// Ends it; all clients have been served.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("all clients were served");
    }
}
