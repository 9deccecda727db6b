//! No phase of a connection lasts for ever (G1 of the requirements).

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::support::{Backend, Farm, read_head, run, scripted, status};

const TIMEOUTS: &str = "tlsfarm_proxy_upstream_errors_total{kind=\"timeout\"}";

#[test]
fn a_head_must_come_in_time() {
    run(async {
        let farm = Farm::with(&[], "timeouts: {requestHead: 50ms}");
        let mut client = farm.connect(false);
        client.send("GET / HTTP/1.1\r\nHost: sh").await;
        let response = client.rest().await;
        assert_eq!(status(&response), 408, "{response:?}");
        assert!(
            response.ends_with("\r\n\r\ntimed out waiting for the request head\n"),
            "{response:?}"
        );
    });
}

#[test]
fn a_head_that_trickles_in_is_not_given_more_time() {
    run(async {
        let farm = Farm::with(&[], "timeouts: {requestHead: 100ms}");
        let client = farm.connect(false);
        let (mut reader, mut writer) = tokio::io::split(client.stream);
        let trickle = async {
            let mut pause = tokio::time::interval(std::time::Duration::from_millis(10));
            while writer.write_all(b"GET").await.is_ok() {
                pause.tick().await;
            }
        };
        let mut response = String::new();
        tokio::select! {
            () = trickle => {}
            read = tokio::io::AsyncReadExt::read_to_string(&mut reader, &mut response) => {
                read.expect("read");
            }
        }
        assert_eq!(status(&response), 408, "{response:?}");
    });
}

#[test]
fn an_unused_connection_ends() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::with(&[backend.address], "timeouts: {keepAlive: 50ms}");
        assert_eq!(farm.connect(false).rest().await, "");
        let mut client = farm.connect(false);
        client
            .send("GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
            .await;
        client.read_until("\r\n\r\nok").await;
        assert_eq!(client.rest().await, "");
    });
}

#[test]
fn a_request_body_must_keep_coming() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::with(&[backend.address], "timeouts: {bodyIdle: 50ms}");
        let response = farm
            .exchange("POST / HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 9\r\n\r\nabc")
            .await;
        assert_eq!(status(&response), 408, "{response:?}");
        assert!(
            response.ends_with("\r\n\r\ntimed out waiting for the request body\n"),
            "{response:?}"
        );
        assert!(backend.seen().is_empty());
    });
}

#[test]
fn a_backend_must_respond_in_time() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::with(&[backend.address], "timeouts: {responseHead: 50ms}");
        let response = farm
            .exchange("GET /held HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(status(&response), 504, "{response:?}");
        assert_eq!(farm.metric(TIMEOUTS).as_deref(), Some("1"));
    });
}

/// Reads all of a request with a body of `length` bytes, and then answers.
async fn patient_backend(length: usize) -> std::net::SocketAddr {
    scripted(move |_, mut stream| async move {
        read_head(&mut stream).await;
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_ok() {
            let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(response).await.expect("taken");
        }
    })
    .await
}

#[test]
fn an_upload_that_keeps_coming_may_take_longer_than_a_response() {
    run(async {
        let farm = Farm::with(&[patient_backend(16).await], "timeouts: {responseHead: 500ms}");
        let mut client = farm.connect(false);
        client
            .send("POST / HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 16\r\n\r\n")
            .await;
        let begun = Instant::now();
        for _ in 0..16 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            client.send("x").await;
        }
        assert_eq!(status(&client.read_until("\r\n\r\nok").await), 200);
        assert!(
            begun.elapsed() > Duration::from_millis(600),
            "no longer than the limit"
        );
        assert_eq!(farm.metric(TIMEOUTS), None);
    });
}

#[test]
fn a_stalled_upload_does_not_extend_the_wait_for_a_response() {
    run(async {
        let farm = Farm::with(&[patient_backend(9).await], "timeouts: {responseHead: 50ms}");
        let response = farm
            .exchange("PUT / HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 9\r\n\r\nabc")
            .await;
        assert_eq!(status(&response), 504, "{response:?}");
        assert!(
            response.ends_with("\r\n\r\nthe backend did not respond in time\n"),
            "{response:?}"
        );
        assert!(response.contains("\r\nconnection: close\r\n"), "{response:?}");
        assert_eq!(farm.metric(TIMEOUTS).as_deref(), Some("1"));
    });
}

#[test]
fn a_response_body_must_keep_coming() {
    run(async {
        let backend = scripted(|_, mut stream| async move {
            read_head(&mut stream).await;
            let part = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc";
            stream.write_all(part.as_bytes()).await.expect("written");
            // Waits until the proxy closes the connection.
            read_head(&mut stream).await;
        })
        .await;
        let farm = Farm::with(&[backend], "timeouts: {responseIdle: 50ms}");
        let response = farm
            .exchange("GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
            .await;
        assert!(response.ends_with("\r\n\r\nabc"), "{response:?}");
    });
}

#[test]
fn a_response_that_keeps_coming_may_take_longer_than_any_part_of_it() {
    const PARTS: usize = 6;
    run(async {
        let backend = scripted(|_, mut stream| async move {
            read_head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {PARTS}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("written");
            let mut parts = tokio::time::interval(std::time::Duration::from_millis(250));
            for _ in 0..PARTS {
                parts.tick().await;
                stream.write_all(b"x").await.expect("written");
            }
        })
        .await;
        let farm = Farm::with(&[backend], "timeouts: {responseIdle: 1s}");
        let response = farm
            .exchange("GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
            .await;
        assert!(response.ends_with("\r\n\r\nxxxxxx"), "{response:?}");
    });
}

#[test]
fn a_pipelined_head_is_timed_from_the_end_of_the_previous_response() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::with(&[backend.address], "timeouts: {requestHead: 1s}");
        let mut client = farm.connect(false);
        client
            .send("GET /held HTTP/1.1\r\nHost: shop.example.com\r\n\r\nGET / HT")
            .await;
        backend.arrived.notified().await;
        // Longer than the head limit, which only counts from now on.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        backend.release.notify_one();
        client.read_until("\r\n\r\nok").await;
        client.send("TP/1.1\r\nHost: shop.example.com\r\n\r\n").await;
        assert_eq!(status(&client.read_until("\r\n\r\nok").await), 200);
    });
}

/// A backend that sends for ever.
async fn endless() -> std::net::SocketAddr {
    scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n";
        let mut sent = stream.write_all(head.as_bytes()).await;
        while sent.is_ok() {
            sent = stream.write_all(&[b'x'; 4096]).await;
        }
    })
    .await
}

#[test]
fn a_client_must_take_its_response() {
    run(async {
        let farm = Farm::with(&[endless().await], "timeouts: {writeStall: 50ms}");
        let mut client = farm.connect(false);
        client
            .send("GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
            .await;
        client.served.await.expect("served");
    });
}

#[test]
fn an_http2_client_must_take_its_response() {
    run(async {
        let farm = Farm::with(&[endless().await], "timeouts: {writeStall: 50ms}");
        let (mut sender, connection) = super::http2::connect(&farm).await;
        let request = super::http2::get("https://shop.example.com/");
        // The body is kept but never read, so its flow-control window stays shut.
        let response = sender.send_request(request).await.expect("a response");
        connection.await.expect("joined").ok();
        drop(response);
    });
}

#[test]
fn an_unused_http2_connection_ends() {
    run(async {
        let farm = Farm::with(&[], "timeouts: {http2Idle: 50ms}");
        let (_sender, connection) = super::http2::connect(&farm).await;
        connection.await.expect("joined").expect("a clean end");
    });
}

/// Answers at once and goes on taking in the body.
async fn hasty_backend() -> std::net::SocketAddr {
    scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(response).await.expect("taken");
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await
}

const UPLOAD: &str = "POST / HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 9\r\n\r\nabc";

#[test]
fn a_body_that_stops_after_an_early_response_ends_the_connection() {
    run(async {
        let farm = Farm::with(&[hasty_backend().await], "timeouts: {keepAlive: 50ms}");
        let mut client = farm.connect(false);
        client.send(UPLOAD).await;
        let response = client.rest().await;
        assert_eq!(status(&response), 200, "{response:?}");
        client.served.await.expect("served");
    });
}

#[test]
fn draining_does_not_wait_for_a_body_that_stops_after_an_early_response() {
    run(async {
        let mut farm = Farm::new(&[hasty_backend().await]);
        farm.drain_grace = Duration::from_millis(50);
        let mut client = farm.connect(false);
        client.send(UPLOAD).await;
        client.read_until("\r\n\r\nok").await;
        farm.draining.cancel();
        assert_eq!(client.rest().await, "");
    });
}

#[test]
fn a_body_that_keeps_coming_after_an_early_response_is_let_through() {
    run(async {
        let farm = Farm::with(&[hasty_backend().await], "timeouts: {keepAlive: 200ms}");
        let mut client = farm.connect(false);
        client.send(UPLOAD).await;
        client.read_until("\r\n\r\nok").await;
        for _ in 0..5 {
            let pause = std::time::Duration::from_millis(80);
            let end = tokio::time::timeout(pause, client.stream.read_u8()).await;
            assert!(end.is_err(), "{end:?}");
            client.send("d").await;
        }
    });
}
