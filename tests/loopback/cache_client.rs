//! The client of a cache against Debian's redis-server, and against servers that do their worst.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tlsfarm::config::{CacheServer, RedisConfig, RedisTlsConfig};
use tlsfarm::resp::breaker::BreakerState;
use tlsfarm::resp::client::{CacheError, Client, ClientMetrics};
use tokio::runtime;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::cache_peers::Caches;
use crate::harness::{Farm, PATIENCE, wait_for};
use crate::redis_server::Redis;

/// Generous, because it bounds nothing here that is expected to happen.
const NEVER: Duration = Duration::from_secs(10);

/// What a handshake waits at most.
const LIMIT: Duration = Duration::from_millis(50);

/// Within this time a server that is back is asked again: a trial or a new connection comes once a second.
const BACK_IN_USE: Duration = Duration::from_secs(5);

/// What a machine that is busy may add to a time limit.
const SLACK: Duration = Duration::from_secs(1);

#[test]
fn redis_over_a_socket_tcp_and_tls_keeps_takes_and_forgets() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &["--requirepass", "open sesame"]);
    fs::write(farm.dir.join("password"), "open sesame\n").expect("written");
    fs::write(farm.dir.join("username"), "default").expect("written");
    let client_certificate = farm.certificate_files("shop");
    let with = |address: SocketAddr, tls: Option<RedisTlsConfig>, username: Option<PathBuf>| {
        CacheServer::Redis(RedisConfig {
            address: format!("localhost:{}", address.port()),
            tls,
            username,
            password: Some(farm.dir.join("password")),
        })
    };
    let [certificate, key] = client_certificate.map(Some);
    let tls = RedisTlsConfig {
        authority: farm.ca_file(),
        server_name: Some("blog.test".into()),
        certificate,
        key,
    };
    for server in [
        with(redis.tcp, None, None),
        with(redis.tcp, None, Some(farm.dir.join("username"))),
        with(redis.tcp, None, Some(farm.dir.join("there is no such file"))),
        with(redis.tls, Some(tls), None),
    ] {
        local(async {
            let client = Client::start(&server, NEVER, ClientMetrics::default());
            let value = b"\r\n$-1\r\n binary".as_slice();
            assert_eq!(client.get(b"key").await, Ok(None));
            assert_eq!(client.put(b"key", value, NEVER).await, Ok(()));
            assert!(client.reachable() && client.problem().is_none());
            let found = client.get(b"key").await.expect("answered");
            assert_eq!(found.as_deref().map(Vec::as_slice), Some(value));
            let taken = client.take(b"key").await.expect("answered");
            assert_eq!(taken.as_deref().map(Vec::as_slice), Some(value));
            assert_eq!(client.take(b"key").await, Ok(None));

            let brief = Duration::from_millis(30);
            client.put(b"key", value, brief).await.expect("stored");
            eventually("an end to its lifetime", async || {
                client.get(b"key").await == Ok(None)
            })
            .await;
        });
    }
}

#[test]
fn entries_of_dead_owners_do_not_block_the_others() {
    const KEYS: u32 = 90;
    let mut caches = Caches::start(3);
    caches.wait_until_linked();
    for gone in &mut caches.all[1..] {
        gone.kill();
    }
    local(async {
        let server = CacheServer::Unix(caches.all[0].unix.clone());
        let client = Client::start(&server, NEVER, ClientMetrics::default());
        let (mut stored, mut refused) = (0, 0);
        // Stores only, like many new clients: the answers are all that the client learns about the cache.
        for key in (0..KEYS).map(u32::to_be_bytes) {
            match client.put(&key, b"session", NEVER).await {
                Ok(()) => stored += 1,
                Err(CacheError::Refused(why)) => {
                    assert_eq!(why, "ERR the cache that owns this key does not answer");
                    refused += 1;
                }
                Err(other) => panic!("after {stored} stored and {refused} refused: {other}"),
            }
        }
        // Two of three are gone. Chance goes beyond either bound in less than one run of 10^6.
        assert!(
            stored >= 10 && refused >= 38,
            "{stored} stored, {refused} refused"
        );
        assert!(client.reachable(), "{:?}", client.problem());
    });
}

#[test]
fn concurrent_requests_get_their_own_answers() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    local(async {
        let client = Client::start(&redis.over_unix(), NEVER, ClientMetrics::default());
        let tasks: Vec<_> = (0..500u32)
            .map(|number| {
                let client = client.clone();
                tokio::task::spawn_local(async move {
                    let bytes = number.to_be_bytes();
                    client.put(&bytes, &bytes, NEVER).await.expect("stored");
                    let found = client.take(&bytes).await.expect("answered");
                    assert_eq!(found.as_deref().map(Vec::as_slice), Some(bytes.as_slice()));
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("its own answer");
        }
    });
}

#[test]
fn a_wrong_password_is_reported_until_it_is_corrected() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &["--requirepass", "open sesame"]);
    local(async {
        let client = Client::start(&redis.over_unix(), LIMIT, ClientMetrics::default());
        eventually("a problem", async || client.problem().is_some()).await;
        let problem = client.problem().expect("a problem");
        assert!(problem.contains("NOAUTH"), "{problem}");
    });
    let file = farm.dir.join("password");
    fs::write(&file, "wrong").expect("written");
    let server = CacheServer::Redis(RedisConfig {
        address: redis.tcp.to_string(),
        tls: None,
        username: None,
        password: Some(file.clone()),
    });
    local(async {
        let client = Client::start(&server, LIMIT, ClientMetrics::default());
        eventually("a problem", async || client.problem().is_some()).await;
        let problem = client.problem().expect("a problem");
        assert!(
            problem.contains("WRONGPASS") && !problem.contains("sesame"),
            "{problem}"
        );
        assert_eq!(client.get(b"key").await, Err(CacheError::Unavailable));
        fs::write(&file, "open sesame").expect("written");
        eventually("an end of the problem", async || client.reachable()).await;
        assert_eq!(client.problem(), None);
        assert_eq!(client.get(b"key").await, Ok(None));
    });
}

#[test]
fn an_untrusted_server_gets_no_requests() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let other = Farm::new("web/other");
    let tls = |authority, name: &str| {
        CacheServer::Redis(RedisConfig {
            address: redis.tls.to_string(),
            tls: Some(RedisTlsConfig {
                authority,
                server_name: Some(name.into()),
                certificate: None,
                key: None,
            }),
            username: None,
            password: None,
        })
    };
    for server in [
        tls(other.ca_file(), "blog.test"),
        tls(farm.ca_file(), "shop.test"),
        tls(farm.dir.join("missing"), "blog.test"),
    ] {
        local(async {
            let client = Client::start(&server, LIMIT, ClientMetrics::default());
            eventually("a problem", async || client.problem().is_some()).await;
            assert!(!client.reachable());
        });
    }
}

#[test]
fn a_server_that_dies_costs_nobody_time_and_is_used_again_within_two_seconds() {
    let farm = Farm::new("web/shop");
    let mut redis = Redis::start(&farm, &[]);
    local(async {
        let client = Client::start(&redis.over_unix(), LIMIT, ClientMetrics::default());
        eventually("a connection", async || client.reachable()).await;
        redis.kill();
        breaker_opens(&client, 0, "a dead server").await;
        redis.start_again();
        let began = Instant::now();
        eventually("an answer", async || client.get(b"key").await.is_ok()).await;
        assert!(
            began.elapsed() < Duration::from_secs(2) + SLACK,
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn a_server_that_hangs_opens_the_breaker_and_is_used_again_when_it_goes_on() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    local(async {
        let client = Client::start(&redis.over_unix(), LIMIT, ClientMetrics::default());
        eventually("a connection", async || client.reachable()).await;
        redis.signal("STOP");
        let began = Instant::now();
        assert_eq!(client.get(b"key").await, Err(CacheError::Timeout));
        assert!(began.elapsed() >= LIMIT && began.elapsed() < LIMIT + SLACK);
        breaker_opens(&client, 1, "a server that hangs").await;
        let began = Instant::now();
        assert_eq!(client.get(b"key").await, Err(CacheError::Unavailable));
        assert!(began.elapsed() < SLACK, "an open breaker answers at once");
        assert!(client.problem().is_some());
        redis.signal("CONT");
        let began = Instant::now();
        eventually("an answer", async || client.get(b"key").await.is_ok()).await;
        assert!(
            began.elapsed() < Duration::from_secs(2) + SLACK,
            "{:?}",
            began.elapsed()
        );
        assert_eq!(client.problem(), None);
    });
}

#[test]
fn a_late_answer_is_not_given_to_another_request() {
    // Answers each request with its last word, but the request for `first` only when allowed to.
    let allowed = Arc::new(AtomicBool::new(false));
    let allow = Arc::clone(&allowed);
    let server = Evil::start(move |stream| {
        let mut replies = stream.try_clone().expect("cloned");
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        while let Some(count) = lines.next() {
            let words: usize = count[1..].parse().expect("an array");
            let last = lines.by_ref().take(words * 2).last().expect("a word");
            if last == "first" {
                wait_for("the end of a silence", || {
                    allowed.load(Ordering::Relaxed).then_some(())
                });
            }
            let reply = match last.as_str() {
                "PING" => "+PONG\r\n".into(),
                key => format!("${}\r\n{key}\r\n", key.len()),
            };
            let _ = replies.write_all(reply.as_bytes());
        }
    });
    local(async {
        let client = Client::start(&server.address(), LIMIT, ClientMetrics::default());
        eventually("a connection", async || client.reachable()).await;
        assert_eq!(client.get(b"first").await, Err(CacheError::Timeout));
        // This request has to wait for the answer to the first.
        assert!(client.get(b"second").await.is_err());
        allow.store(true, Ordering::Relaxed);
        let (mut number, began) = (0, Instant::now());
        eventually("an answer", async || {
            number += 1;
            assert!(began.elapsed() < BACK_IN_USE, "no answer since it speaks again");
            let key = format!("key {number}").into_bytes();
            match client.get(&key).await {
                Ok(found) => {
                    assert_eq!(found.as_deref(), Some(&key));
                    true
                }
                // On a busy machine the late answer may come so late that the breaker opens or the connection is given up.
                Err(CacheError::Timeout | CacheError::Unavailable | CacheError::Lost) => false,
                Err(error) => panic!("{error}"),
            }
        })
        .await;
    });
}

#[test]
fn a_misbehaving_server_causes_timely_errors_and_closes_one_connection() {
    type Misdeed = fn(&mut TcpStream);
    let misdeeds: [(&str, Misdeed, &str); 8] = [
        (
            "garbage",
            |stream| drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
            "garbled",
        ),
        (
            "a length of 1 GiB",
            |stream| drop(stream.write_all(b"$1073741824\r\n")),
            "garbled",
        ),
        (
            "an array",
            |stream| drop(stream.write_all(b"*1\r\n$1\r\na\r\n")),
            "garbled",
        ),
        (
            "the wrong kind",
            |stream| drop(stream.write_all(b":1\r\n")),
            "garbled",
        ),
        (
            "an error",
            |stream| drop(stream.write_all(b"-LOADING in a while\r\n")),
            "refused",
        ),
        (
            "a slow drip",
            |stream| {
                for byte in b"$60\r\n".iter().chain([b'a'; 60].iter()) {
                    if stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    thread::sleep(LIMIT / 5);
                }
            },
            "timeout",
        ),
        ("silence", |stream| drop(stream.read(&mut [0; 64])), "timeout"),
        (
            "half a reply",
            |stream| drop(stream.write_all(b"$50\r\nabc")),
            "lost",
        ),
    ];
    for (what, misdeed, kind) in misdeeds {
        let server = Evil::start(move |mut stream| {
            greet(&mut stream);
            read_request(&mut stream);
            misdeed(&mut stream);
        });
        local(async {
            let client = Client::start(&server.address(), LIMIT, ClientMetrics::default());
            eventually(what, async || client.reachable()).await;
            let began = Instant::now();
            let error = client.get(b"key").await.expect_err(what);
            assert!(began.elapsed() < LIMIT + SLACK, "{what}: {:?}", began.elapsed());
            assert_eq!(error.kind(), kind, "{what}");
            breaker_opens(&client, 1, what).await;
        });
    }
}

#[test]
fn a_server_that_takes_connections_and_says_nothing_is_not_reachable() {
    let server = Evil::start(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    local(async {
        let client = Client::start(&server.address(), LIMIT, ClientMetrics::default());
        let began = Instant::now();
        assert_eq!(client.get(b"key").await, Err(CacheError::Timeout));
        assert!(began.elapsed() < LIMIT + SLACK);
        eventually("a problem", async || client.problem().is_some()).await;
        assert_eq!(client.get(b"key").await, Err(CacheError::Unavailable));
    });
}

#[test]
fn the_connection_ends_with_the_last_clone() {
    let (ended, ending) = std::sync::mpsc::channel();
    let server = Evil::start(move |mut stream| {
        greet(&mut stream);
        let _ = ended.send(stream.read(&mut [0; 64]).unwrap_or(0));
    });
    local(async {
        let client = Client::start(&server.address(), LIMIT, ClientMetrics::default());
        eventually("a connection", async || client.reachable()).await;
        drop(client.clone());
        assert!(ending.try_recv().is_err());
        drop(client);
        let mut read = None;
        eventually("the end", async || {
            read = ending.try_recv().ok();
            read.is_some()
        })
        .await;
        assert_eq!(read, Some(0));
    });
}

/// Runs as a traffic thread of a proxy does.
fn local(test: impl Future<Output = ()>) {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

/// At most five requests reach a server that does not answer properly, including those that were `asked` before. All of
/// them fail in time.
async fn breaker_opens(client: &Client, mut asked: u32, what: &str) {
    eventually("an open breaker", async || {
        let began = Instant::now();
        let error = client.get(b"key").await.expect_err(what);
        assert!(began.elapsed() < LIMIT + SLACK, "{what}: {:?}", began.elapsed());
        asked += u32::from(error != CacheError::Unavailable);
        assert!(asked <= 5, "{what}: {asked} requests were made");
        client.breaker() != BreakerState::Closed
    })
    .await;
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A server that answers the first request properly and then misbehaves as given, on each connection.
struct Evil(SocketAddr);

impl Evil {
    fn start(serve: impl Fn(TcpStream) + Send + Clone + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, serve) = (stream.expect("accepted"), serve.clone());
                stream.set_read_timeout(Some(PATIENCE)).expect("set");
                thread::spawn(move || serve(stream));
            }
        });
        Self(address)
    }

    fn address(&self) -> CacheServer {
        CacheServer::Redis(RedisConfig {
            address: self.0.to_string(),
            tls: None,
            username: None,
            password: None,
        })
    }
}

fn greet(stream: &mut TcpStream) {
    read_request(stream);
    let _ = stream.write_all(b"+PONG\r\n");
}

/// Some bytes of a request, which is all that is asked of these servers.
fn read_request(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0; 256]);
}
