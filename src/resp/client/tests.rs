use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::*;
use crate::runtime::test_dir::TestDir;

/// Reads one request whole; each is short enough to arrive at once.
async fn request(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let read = stream.read(&mut bytes).await.expect("readable");
    bytes.truncate(read);
    bytes
}

#[tokio::test]
async fn an_answer_after_the_time_limit_is_counted_as_late() {
    let dir = TestDir::new();
    let socket = dir.join("cache.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let (release, released) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        while request(&mut stream).await.ends_with(b"PING\r\n") {
            stream.write_all(b"+PONG\r\n").await.expect("written");
        }
        released.await.expect("the test goes on");
        stream.write_all(b"$-1\r\n").await.expect("written");
        stream
    });

    let mut registry = Registry::default();
    let metrics = ClientMetrics::register(&mut registry);
    let client = Client::start(&CacheServer::Unix(socket), Duration::from_millis(200), metrics);
    let late = || {
        let mut text = String::new();
        encode(&mut text, &registry).expect("encodes");
        text.contains("answers_late_total 1\n")
    };
    let outcome = timeout(Duration::from_secs(10), async {
        while !client.reachable() {
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(client.get(b"key").await, Err(CacheError::Timeout));
        assert!(!late(), "nothing has been answered yet");
        release.send(()).expect("the server waits");
        while !late() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    outcome.await.expect("in time");
    drop(server.await.expect("no panic"));
}
