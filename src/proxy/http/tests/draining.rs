//! Shutting down without losing a request.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use super::http2;
use super::support::{Backend, Farm, run, status};

/// Short of the limits of idle connections and of the test.
const GRACE: Duration = Duration::from_millis(300);
const GET: &str = "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n";

#[test]
fn a_request_that_is_being_served_is_answered_and_closes_the_connection() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect(false);
        client
            .send("GET /held HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
            .await;
        backend.arrived.notified().await;
        farm.draining.cancel();
        tokio::task::yield_now().await;
        backend.release.notify_one();
        let response = client.rest().await;
        assert_eq!(status(&response), 200);
        assert!(response.contains("\r\nconnection: close\r\n"), "{response:?}");
        drop(client.stream);
        client.served.await.expect("served");
    });
}

#[test]
fn a_request_that_was_on_its_way_to_an_unused_connection_is_answered() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut used = farm.connect(false);
        used.send(GET).await;
        used.read_until("\r\n\r\nok").await;
        let mut fresh = farm.connect(false);

        farm.draining.cancel();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        for client in [&mut used, &mut fresh] {
            client.send(GET).await;
            let response = client.rest().await;
            assert_eq!(status(&response), 200, "{response:?}");
            assert!(response.contains("\r\nconnection: close\r\n"), "{response:?}");
        }
    });
}

#[test]
fn an_unused_connection_ends_without_a_byte() {
    run(async {
        let backend = Backend::start().await;
        let mut farm = Farm::new(&[backend.address]);
        farm.drain_grace = GRACE;
        let mut client = farm.connect(false);
        client.send(GET).await;
        client.read_until("\r\n\r\nok").await;
        // Idle this long before the drain: the grace period counts from its beginning.
        tokio::time::sleep(GRACE).await;
        let begun = Instant::now();
        farm.draining.cancel();
        assert_eq!(client.rest().await, "");
        assert!(begun.elapsed() >= GRACE, "closed after {:?}", begun.elapsed());
    });
}

#[test]
fn clients_under_load_move_to_another_proxy_without_a_failed_request() {
    run(async {
        let backend = Backend::start().await;
        let (old, new) = (Farm::new(&[backend.address]), Farm::new(&[backend.address]));
        let sent = Cell::new(0);
        let clients = (0..20).map(|_| async {
            let mut client = old.connect(false);
            let mut sent_to_new = None;
            while sent_to_new != Some(10) {
                client.send(GET).await;
                let response = client.read_until("\r\n\r\nok").await;
                assert_eq!(status(&response), 200, "{response:?}");
                sent.set(sent.get() + 1);
                if sent.get() == 300 {
                    old.draining.cancel();
                }
                sent_to_new = sent_to_new.map(|sent| sent + 1);
                if response.contains("\r\nconnection: close\r\n") {
                    assert_eq!(sent_to_new, None, "the new proxy does not drain");
                    client = new.connect(false);
                    sent_to_new = Some(0);
                }
            }
        });
        futures::future::join_all(clients).await;
        assert_eq!(backend.seen().len(), sent.get());
    });
}

#[test]
fn the_first_request_on_a_new_http2_connection_is_served_and_is_the_last() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let before = http2::connect(&farm).await;
        farm.draining.cancel();
        let after = http2::connect(&farm).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        for (mut sender, connection) in [before, after] {
            sender.ready().await.expect("open");
            let request = http2::get("https://shop.example.com/");
            let response = sender.send_request(request).await.expect("a response");
            assert_eq!(response.status(), 200);
            connection.await.expect("no panic").expect("an end in good order");
        }
    });
}

#[test]
fn an_http2_connection_that_never_brings_a_request_ends() {
    run(async {
        let mut farm = Farm::new(&[]);
        farm.drain_grace = GRACE;
        farm.draining.cancel();
        let begun = Instant::now();
        let (_sender, connection) = http2::connect(&farm).await;
        connection.await.expect("no panic").expect("an end in good order");
        assert!(begun.elapsed() >= GRACE, "closed after {:?}", begun.elapsed());
    });
}
