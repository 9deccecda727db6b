//! What one thread stores at a time, against a cache that accepts everything and answers when the test says so.

use std::net::Ipv4Addr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::*;
use crate::api::MinVersion;
use crate::config::CacheServer;
use crate::resp::RequestDecoder;
use crate::runtime::test_dir::TestDir;

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

/// A handshake of TLS 1.3 gives two tickets.
const SESSIONS: usize = 2;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A cache that answers no `SET`, and nothing after one, before the test says so.
#[derive(Default)]
pub(in crate::proxy) struct Reluctant {
    /// How many it has taken.
    pub(in crate::proxy) taken: Cell<usize>,
    /// How often it was asked whether it is there.
    pub(in crate::proxy) pings: Cell<usize>,
    pub(in crate::proxy) answers: Notify,
}

impl Reluctant {
    pub(in crate::proxy) fn start(socket: &Path) -> Rc<Self> {
        let listener = UnixListener::bind(socket).expect("a socket of our own");
        let cache = Rc::<Self>::default();
        spawn_local(Rc::clone(&cache).serve(listener));
        cache
    }

    async fn serve(self: Rc<Self>, listener: UnixListener) {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let (mut kept, mut part) = (Vec::new(), [0; 4096]);
        let (mut owed, mut decoder) = (Vec::new(), RequestDecoder::default());
        loop {
            tokio::select! {
                () = self.answers.notified() => {
                    stream.write_all(&owed).await.expect("written");
                    owed.clear();
                }
                read = stream.read(&mut part) => {
                    let read = read.expect("readable");
                    if read == 0 {
                        return;
                    }
                    kept.extend_from_slice(&part[..read]);
                }
            }
            while let Some((request, length)) = decoder.decode(&kept).expect("well formed") {
                match request.get(0) {
                    Some(b"SET") => {
                        self.taken.set(self.taken.get() + 1);
                        owed.extend(b"+OK\r\n");
                    }
                    _ => {
                        self.pings.set(self.pings.get() + 1);
                        // Replies come in the order of the requests.
                        owed.extend(b"+PONG\r\n");
                        if owed == b"+PONG\r\n" {
                            stream.write_all(&owed).await.expect("written");
                            owed.clear();
                        }
                    }
                }
                kept.drain(..length);
            }
        }
    }
}

pub(in crate::proxy) fn sessions(count: usize) -> Vec<StoredSession> {
    let scope = Scope::new("web/shop", "shop", MinVersion::TLS13);
    let entry = |number: usize| StoredSession {
        key: CacheKey::new(CacheKind::SingleUse, &scope, &number.to_be_bytes()),
        sealed: vec![0; 200],
        lifetime: NEVER,
    };
    (0..count).map(entry).collect()
}

/// A configuration whose time limits no test reaches.
pub(in crate::proxy) fn patient(socket: &Path) -> config::SessionCacheConfig {
    config::SessionCacheConfig {
        server: CacheServer::Unix(socket.to_owned()),
        session_id_lifetime: "1h".parse().expect("valid"),
        lookup_timeout: crate::api::Duration::from_secs(NEVER.as_secs()),
    }
}

pub(in crate::proxy) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "timed out waiting for: {what}");
}

#[tokio::test]
async fn concurrent_stores_are_limited_and_no_handshake_waits() {
    const MORE: usize = 44;
    let dir = TestDir::new();
    let socket = dir.join("socket");
    let test = async {
        let server = Reluctant::start(&socket);
        let config = patient(&socket);
        let metrics = SessionCacheMetrics::default();
        let cache = SessionCache::new(metrics.clone());
        cache.follow(Some(&config));
        let puts = |outcome| {
            let operation = "put";
            let counter = metrics
                .requests
                .get_or_create(&RequestLabels { operation, outcome });
            usize::try_from(counter.get()).expect("few")
        };
        let store = async || {
            let stored = timeout(PATIENCE, cache.store(CLIENT, sessions(SESSIONS))).await;
            stored.expect("a handshake waits");
        };
        until("a connection", || {
            cache.client().is_some_and(|client| client.reachable())
        })
        .await;

        for handshake in 1..=MOST_STORING + MORE {
            store().await;
            let skipped = handshake.saturating_sub(MOST_STORING) * SESSIONS;
            assert_eq!(puts("skipped"), skipped, "after {handshake} handshakes");
        }
        let under_way = MOST_STORING * SESSIONS;
        until("the stores that were not skipped", || {
            server.taken.get() >= under_way
        })
        .await;
        assert_eq!((server.taken.get(), puts("stored")), (under_way, 0));

        server.answers.notify_one();
        until("room for more", || puts("stored") == under_way).await;
        store().await;
        until("one that is stored again", || {
            server.taken.get() == under_way + SESSIONS
        })
        .await;
        server.answers.notify_one();
        until("its answer", || puts("stored") == under_way + SESSIONS).await;
        assert_eq!(puts("skipped"), MORE * SESSIONS);
    };
    LocalSet::new().run_until(test).await;
}

#[test]
fn without_a_cache_no_client_is_over_budget() {
    let cache = SessionCache::new(SessionCacheMetrics::default());
    cache.budget.borrow_mut().spend(CLIENT, 1_000_000, Instant::now());
    assert_eq!(cache.room(CLIENT), StoreAllowance::NoCache);
}
