//! Choosing endpoints, and the pool with hyper's connections in it.

use std::future::Future;

use http::StatusCode;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::*;

const MOMENT: Duration = Duration::from_millis(1);

fn addresses(count: u16) -> Vec<SocketAddr> {
    (1..=count)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .collect()
}

/// The ports that are chosen when there is chance enough for each.
fn chosen(upstreams: &Upstreams, addresses: &[SocketAddr], tried: &[SocketAddr], now: Instant) -> Vec<u16> {
    let mut ports: Vec<u16> = (0..200)
        .filter_map(|_| upstreams.choose(addresses, tried, now))
        .map(|endpoint| endpoint.address.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn requests_spread_over_all_endpoints() {
    let upstreams = Upstreams::default();
    let addresses = addresses(5);
    for _ in 0..500 {
        let endpoint = upstreams.choose(&addresses, &[], Instant::now());
        let endpoint = endpoint.expect("there are some");
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
    }
    for address in &addresses {
        let taken = upstreams.endpoint(*address).in_flight.get();
        assert!((90..=110).contains(&taken), "{address} took {taken} of 500");
    }
}

#[test]
fn the_busier_of_two_is_never_chosen() {
    let upstreams = Upstreams::default();
    let addresses = addresses(2);
    for busy in [0, 1] {
        let busy = upstreams.endpoint(addresses[busy]);
        busy.in_flight.set(3);
        let other = 3 - busy.address.port();
        assert_eq!(chosen(&upstreams, &addresses, &[], Instant::now()), [other]);
        busy.in_flight.set(0);
    }
    assert_eq!(chosen(&upstreams, &addresses, &[], Instant::now()), [1, 2]);
}

#[test]
fn there_is_no_endpoint_without_addresses() {
    let upstreams = Upstreams::default();
    assert!(upstreams.choose(&[], &[], Instant::now()).is_none());
    assert_eq!(chosen(&upstreams, &addresses(1), &[], Instant::now()), [1]);
}

#[test]
fn tried_endpoints_are_not_tried_again() {
    let (upstreams, now) = (Upstreams::default(), Instant::now());
    let addresses = addresses(3);
    assert_eq!(chosen(&upstreams, &addresses, &addresses[1..2], now), [1, 3]);
    assert_eq!(chosen(&upstreams, &addresses, &addresses[..2], now), [3]);
    assert!(upstreams.choose(&addresses, &addresses, now).is_none());
}

#[test]
fn an_endpoint_that_failed_is_avoided_for_three_seconds_while_there_are_others() {
    let (upstreams, now) = (Upstreams::default(), Instant::now());
    let addresses = addresses(3);
    upstreams.failed(&upstreams.endpoint(addresses[0]), now);
    for later in [Duration::ZERO, AVOID - MOMENT] {
        assert_eq!(chosen(&upstreams, &addresses, &[], now + later), [2, 3]);
        assert_eq!(chosen(&upstreams, &addresses, &addresses[1..2], now + later), [3]);
        assert_eq!(
            chosen(&upstreams, &addresses, &addresses[1..], now + later),
            [1],
            "better a bad one than none"
        );
    }
    assert_eq!(chosen(&upstreams, &addresses, &[], now + AVOID), [1, 2, 3]);

    // The first endpoint is not avoided any longer, even while another one is.
    upstreams.failed(&upstreams.endpoint(addresses[1]), now + AVOID - MOMENT);
    assert_eq!(chosen(&upstreams, &addresses, &[], now + AVOID), [1, 3]);
    upstreams.failed(&upstreams.endpoint(addresses[0]), now + AVOID);
    upstreams.failed(&upstreams.endpoint(addresses[2]), now + AVOID);
    assert_eq!(
        chosen(&upstreams, &addresses, &[], now + AVOID),
        [1, 2, 3],
        "better a bad one than none"
    );
}

/// A connection to a backend that puts its number into its responses, each sent when the test says so.
struct Peer {
    backend: JoinHandle<()>,
    respond: Rc<Notify>,
}

/// A connection that is ready for a request.
async fn open_numbered(number: u16) -> (SendRequest<RequestBody>, Peer) {
    let (stream, mut backend) = tokio::io::duplex(4096);
    let respond = Rc::new(Notify::new());
    let asked = Rc::clone(&respond);
    let backend = spawn_local(async move {
        let mut request = Vec::new();
        while let Ok(byte) = backend.read_u8().await {
            request.push(byte);
            if request.ends_with(b"\r\n\r\n") {
                asked.notified().await;
                let response = format!("HTTP/1.1 {number} Number\r\nContent-Length: 0\r\n\r\n");
                backend.write_all(response.as_bytes()).await.expect("written");
            }
        }
    });
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
    spawn_local(connection);
    sender.ready().await.expect("open");
    (sender, Peer { backend, respond })
}

impl Peer {
    /// Closes the connection and waits until hyper has noticed.
    async fn close(&self, closed: impl Fn() -> bool) {
        self.backend.abort();
        while !closed() {
            tokio::task::yield_now().await;
        }
    }
}

/// Makes a connection respond; returns its number.
async fn number(mut sender: SendRequest<RequestBody>, peer: &Peer) -> StatusCode {
    peer.respond.notify_one();
    let response = sender.send_request(Request::new(RequestBody::default())).await;
    response.expect("a response").status()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(20), test)
            .await
            .expect("the test hangs");
    });
}

/// An endpoint with unused connections that answer with 200, 201 and so on, each used a moment after the one before.
async fn endpoint_with(upstreams: &Upstreams, count: u16, now: Instant) -> (Rc<Endpoint>, Vec<Peer>) {
    let endpoint = upstreams.endpoint(addresses(1)[0]);
    let mut peers = Vec::new();
    for index in 0..count {
        let (sender, peer) = open_numbered(200 + index).await;
        endpoint.keep(sender, now + MOMENT * index.into());
        peers.push(peer);
    }
    (endpoint, peers)
}

fn kept(endpoint: &Endpoint) -> usize {
    endpoint.idle.borrow().len()
}

#[test]
fn the_connection_that_was_used_last_is_used_first() {
    run(async {
        let now = Instant::now();
        let (endpoint, peers) = endpoint_with(&Upstreams::default(), 3, now).await;
        for index in [2, 1, 0] {
            let sender = endpoint.reuse(now + MOMENT * 3).expect("a connection");
            assert_eq!(number(sender, &peers[index]).await, 200 + index as u16);
        }
        assert!(endpoint.reuse(now).is_none());
    });
}

#[test]
fn a_connection_that_was_idle_too_long_is_not_reused() {
    run(async {
        let now = Instant::now();
        let (endpoint, peers) = endpoint_with(&Upstreams::default(), 2, now).await;
        let sender = endpoint.reuse(now + POOL_IDLE).expect("the younger one");
        assert_eq!(number(sender, &peers[1]).await, 201);
        assert!(endpoint.reuse(now + POOL_IDLE).is_none());
        assert_eq!(kept(&endpoint), 0, "the connection is closed");

        let (endpoint, _peers) = endpoint_with(&Upstreams::default(), 1, now).await;
        assert!(endpoint.reuse(now + POOL_IDLE - MOMENT).is_some());
    });
}

#[test]
fn a_closed_connection_is_neither_kept_nor_used() {
    run(async {
        let now = Instant::now();
        let (endpoint, peers) = endpoint_with(&Upstreams::default(), 2, now).await;
        peers[1]
            .close(|| endpoint.idle.borrow()[1].sender.is_closed())
            .await;
        let sender = endpoint.reuse(now).expect("the other one");
        assert_eq!(number(sender, &peers[0]).await, 200);
        assert_eq!(kept(&endpoint), 0);

        let (sender, peer) = open_numbered(200).await;
        peer.close(|| sender.is_closed()).await;
        endpoint.keep(sender, now);
        assert_eq!(kept(&endpoint), 0);
    });
}

#[test]
fn a_busy_connection_is_not_reused_until_it_is_ready() {
    run(async {
        let now = Instant::now();
        let (endpoint, peers) = endpoint_with(&Upstreams::default(), 1, now).await;
        let (mut sender, busy) = open_numbered(299).await;
        let response = sender.send_request(Request::new(RequestBody::default()));
        endpoint.keep(sender, now);
        let sender = endpoint.reuse(now).expect("the other one");
        assert_eq!(number(sender, &peers[0]).await, 200);
        assert!(endpoint.reuse(now).is_none());
        assert_eq!(kept(&endpoint), 1);

        busy.respond.notify_one();
        assert_eq!(response.await.expect("a response").status(), 299);
        while !endpoint.idle.borrow()[0].sender.is_ready() {
            tokio::task::yield_now().await;
        }
        let sender = endpoint.reuse(now).expect("now it is ready");
        assert_eq!(number(sender, &busy).await, 299);
    });
}

#[test]
fn no_more_than_64_unused_connections_are_kept() {
    run(async {
        let now = Instant::now();
        let (endpoint, _peers) = endpoint_with(&Upstreams::default(), 65, now).await;
        assert_eq!(kept(&endpoint), 64);
        drop(endpoint.reuse(now).expect("a connection"));
        endpoint.keep(open_numbered(299).await.0, now);
        assert_eq!(kept(&endpoint), 64);
    });
}

#[test]
fn sweeping_closes_what_is_old_or_closed() {
    run(async {
        let (upstreams, now) = (Upstreams::default(), Instant::now());
        let (endpoint, peers) = endpoint_with(&upstreams, 3, now).await;
        upstreams.sweep(now + POOL_IDLE - MOMENT);
        assert_eq!(kept(&endpoint), 3);
        upstreams.sweep(now + POOL_IDLE);
        assert_eq!(kept(&endpoint), 2);
        let [old, closed, _] = <[Peer; 3]>::try_from(peers).ok().expect("three");
        old.backend.await.expect("the connection has ended");
        closed
            .close(|| endpoint.idle.borrow()[0].sender.is_closed())
            .await;
        upstreams.sweep(now);
        assert_eq!(kept(&endpoint), 1);
    });
}

#[test]
fn sweeping_forgets_an_endpoint_with_nothing_to_remember() {
    run(async {
        let (upstreams, now) = (Upstreams::default(), Instant::now());
        let addresses = addresses(4);
        let [unused, busy, failed] = [1, 2, 3].map(|index| upstreams.endpoint(addresses[index]));
        let (_, _peers) = endpoint_with(&upstreams, 1, now).await;
        busy.in_flight.set(1);
        upstreams.failed(&failed, now);
        let known = || {
            let mut known: Vec<u16> = upstreams
                .endpoints
                .borrow()
                .keys()
                .map(SocketAddr::port)
                .collect();
            known.sort_unstable();
            known
        };
        assert_eq!(known(), [1, 2, 3, 4]);
        upstreams.sweep(now + AVOID - MOMENT);
        assert_eq!(known(), [1, 3, 4]);
        upstreams.sweep(now + AVOID);
        assert_eq!(known(), [1, 3]);
        upstreams.sweep(now + POOL_IDLE);
        assert_eq!(known(), [3]);
        busy.in_flight.set(0);
        upstreams.sweep(now);
        assert!(known().is_empty());
        drop(unused);
    });
}

#[test]
fn a_request_counts_from_connecting_on_and_returns_its_connection() {
    run(async {
        let metrics = HttpMetrics::register(&mut Registry::default());
        let limit = Duration::from_secs(10);
        let (endpoint, _peers) = endpoint_with(&Upstreams::default(), 1, Instant::now()).await;
        let first = Rc::clone(&endpoint)
            .connect(limit, &metrics)
            .await
            .expect("pooled");
        assert!(first.reused);
        assert_eq!((endpoint.in_flight.get(), kept(&endpoint)), (1, 0));
        first.release();
        assert_eq!((endpoint.in_flight.get(), kept(&endpoint)), (0, 1));

        let second = Rc::clone(&endpoint)
            .connect(limit, &metrics)
            .await
            .expect("pooled");
        drop(second);
        assert_eq!(
            (endpoint.in_flight.get(), kept(&endpoint)),
            (0, 0),
            "the connection is closed"
        );

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let endpoint = Upstreams::default().endpoint(listener.local_addr().expect("an address"));
        let fresh = Rc::clone(&endpoint)
            .connect(limit, &metrics)
            .await
            .expect("connected");
        assert!(!fresh.reused);
        assert_eq!(endpoint.in_flight.get(), 1);
        drop((fresh, listener));
        let refused = Rc::clone(&endpoint).connect(limit, &metrics).await;
        assert!(refused.is_err());
        assert_eq!(endpoint.in_flight.get(), 0);
    });
}
