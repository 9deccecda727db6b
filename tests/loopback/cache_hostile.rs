//! Bad input to a cache: an error or a closed connection, bounded memory, a metric.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::cache_process::Cache;
use crate::harness::{PATIENCE, wait_for};

const MIB: usize = 1 << 20;

fn connect(cache: &Cache) -> TcpStream {
    let stream = TcpStream::connect(cache.tcp).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    stream
}

/// What comes back until the connection is closed, whether in good order or not.
fn answers_until_closed(cache: &Cache, input: &[u8]) -> String {
    let mut stream = connect(cache);
    // The cache may have closed the connection before it read everything.
    let _ = stream.write_all(input);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8(answer).expect("text")
}

fn works(cache: &Cache) -> bool {
    let mut stream = connect(cache);
    let mut answer = [0; 7];
    stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"+PONG\r\n"
}

#[test]
fn a_malformed_request_is_an_error_and_closes_the_connection() {
    let cache = Cache::start();
    let before = cache.resident();
    let nested = "*1\r\n".repeat(10 * 1024);
    let requests: [(&[u8], &str); 7] = [
        (nested.as_bytes(), "expected '$', got '*'"),
        (b"*1\r\n$1073741824\r\n", "invalid bulk length"),
        (b"*1000000\r\n", "invalid multibulk length"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (&[b'x'; 100_000], "too big inline request"),
        (&[0xff; 8192], "too big inline request"),
        (b"*1\r\n$4\r\nPINGPING\r\n", "expected end of line"),
    ];
    for (number, (request, error)) in (1..).zip(requests) {
        let answer = answers_until_closed(&cache, request);
        // A reset, caused by unread input, may discard the error.
        assert!(answer.is_empty() || answer.contains(error), "{answer:?}");
        assert_eq!(cache.metric("protocol_errors_total"), number);
    }
    let answer = answers_until_closed(&cache, b"PING\r\n*1\r\n*1\r\n");
    assert!(answer.starts_with("+PONG\r\n-ERR Protocol error"), "{answer:?}");
    assert!(works(&cache));
    assert!(cache.resident() < before + 8 * MIB);
}

#[test]
fn a_value_over_the_limit_is_an_error_and_the_connection_goes_on() {
    let cache = Cache::start();
    let mut stream = connect(&cache);
    for length in [4097, 16 * 1024, 64 * 1024] {
        write!(stream, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${length}\r\n").expect("taken");
        stream.write_all(&vec![b'v'; length]).expect("taken");
        stream.write_all(b"\r\nEXISTS k\r\n").expect("taken");
        let expected = "-ERR the value is longer than 4096 bytes\r\n:0\r\n";
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).expect("answered");
        assert_eq!(String::from_utf8_lossy(&answer), expected);
    }
    let longer = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", 64 * 1024 + 1);
    assert!(answers_until_closed(&cache, longer.as_bytes()).contains("invalid bulk length"));
}

#[test]
fn a_slow_client_gets_its_answer() {
    let cache = Cache::start();
    let mut stream = connect(&cache);
    stream.set_nodelay(true).expect("settable");
    for byte in b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n" {
        stream.write_all(&[*byte]).expect("taken");
    }
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).expect("answered");
    assert_eq!(&answer, b"+OK\r\n$5\r\nvalue\r\n");
    assert_eq!(cache.metric("protocol_errors_total"), 0);
}

#[test]
fn ten_thousand_idle_connections_take_little_memory_and_stay_open() {
    const IDLE: usize = 10_000;
    let cache = Cache::start();
    let before = cache.resident();
    let mut crowd: Vec<TcpStream> = Vec::new();
    for _ in 0..IDLE {
        let mut stream = connect(&cache);
        // Each connection sends one whole request and is then idle.
        stream.write_all(b"PING\r\n").expect("taken");
        crowd.push(stream);
    }
    for stream in &mut crowd {
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).expect("answered");
    }
    assert_eq!(cache.metric("connections{from=\"client\"}"), IDLE as u64);
    let each = cache.resident().saturating_sub(before) / IDLE;
    assert!(each < 4096, "{each} bytes for each idle connection");
    println!("{each} bytes for each idle connection");
    assert!(works(&cache));
    for stream in crowd.iter_mut().step_by(100) {
        stream.write_all(b"PING\r\n").expect("taken");
        stream.read_exact(&mut [0; 7]).expect("still connected");
    }
}

#[test]
fn unfinished_requests_are_bounded_in_total() {
    let cache = Cache::start();
    let before = cache.resident();
    let mut unfinished = b"*2\r\n$4\r\nECHO\r\n$65536\r\n".to_vec();
    unfinished.resize(60_000, b'x');
    let mut crowd: Vec<TcpStream> = (0..1000).map(|_| connect(&cache)).collect();
    for stream in &mut crowd {
        // Those that come when memory is full are closed.
        let _ = stream.write_all(&unfinished);
    }
    wait_for("connections that were crowded out", || {
        (cache.metric("connections_crowded_out_total") > 100).then_some(())
    });
    let taken = cache.resident().saturating_sub(before);
    assert!(taken < 48 * MIB, "{taken} bytes");
    assert!(works(&cache));
}

#[test]
fn a_client_that_reads_no_replies_is_not_served_further() {
    let cache = Cache::start();
    let before = cache.resident();
    let mut stream = connect(&cache);
    let value = vec![b'v'; 4096];
    stream
        .write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4096\r\n")
        .expect("taken");
    stream.write_all(&value).expect("taken");
    stream.write_all(b"\r\n").expect("taken");
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .expect("settable");
    let requests = b"GET k\r\n".repeat(10_000);
    let mut sent = 0;
    // 400 MB of replies for 700 KB of requests, were they all answered.
    let full = loop {
        match stream.write(&requests[sent % requests.len()..]) {
            Ok(written) => sent += written,
            Err(error) => break error.kind(),
        }
        assert!(sent < 256 * MIB, "the cache never stops reading");
    };
    assert_eq!(full, ErrorKind::WouldBlock);
    let taken = cache.resident().saturating_sub(before);
    assert!(taken < 8 * MIB, "{taken} bytes");
    assert!(works(&cache));
    // Once they are taken all of them come.
    stream.set_nonblocking(false).expect("settable");
    let mut answers = vec![0; 5 + (sent / 7) * (7 + 4096 + 2)];
    stream.read_exact(&mut answers).expect("every answer");
}

#[test]
fn past_the_most_connections_the_newest_are_closed() {
    let cache = Cache::start_with_files(228);
    let mut crowd: Vec<TcpStream> = (0..100).map(|_| connect(&cache)).collect();
    for stream in &mut crowd {
        stream.write_all(b"PING\r\n").expect("taken");
        stream.read_exact(&mut [0; 7]).expect("answered");
    }
    assert_eq!(answers_until_closed(&cache, b"PING\r\n"), "");
    assert_eq!(cache.metric("connections_refused_total{from=\"client\"}"), 1);
    drop(crowd);
    wait_for("room for one more", || works(&cache).then_some(()));
}
