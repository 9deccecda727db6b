//! More connections than a proxy can hold, and the plain HTTP port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::harness::{Farm, PATIENCE, Proxy, visit, wait_for};

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.https).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    stream
}

fn open(proxy: &Proxy) -> u64 {
    proxy.metric("tlsfarm_proxy_connections{port=\"https\"}")
}

#[test]
fn past_the_cap_connections_are_closed_at_once_and_the_others_go_on() {
    let farm = Farm::new("web/shop");
    let mut config = farm.config();
    config.timeouts.handshake = "20s".parse().expect("valid");
    let proxy = farm.start_with_files(config, 300);
    let cap = (300 - 128) / 2;
    let mut held: Vec<_> = (0..cap).map(|_| connect(&proxy)).collect();
    wait_for("the cap", || (open(&proxy) == cap).then_some(()));

    let begin = Instant::now();
    let refused = connect(&proxy).read(&mut [0]);
    assert!(!matches!(refused, Ok(1..)), "{refused:?}");
    assert!(begin.elapsed().as_secs() < 2);
    let series = "tlsfarm_proxy_connections_refused_total{port=\"https\"}";
    assert_eq!(proxy.metric(series), 1);
    assert_eq!((open(&proxy), proxy.get("/readyz").0), (cap, 200));
    let line = "refused client connections at the connection limit";
    wait_for("a line in the log", || proxy.log().contains(line).then_some(()));

    held.clear();
    wait_for("room", || (open(&proxy) == 0).then_some(()));
    assert!(visit(&farm, proxy.https, "shop.test", &[]).served());
}

#[test]
fn without_file_descriptors_accepting_pauses_and_recovers() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start_with_files(farm.config(), 48);
    let begin = Instant::now();
    let crowd: Vec<_> = (0..100).map(|_| connect(&proxy)).collect();
    // Accepted connections end at the handshake limit, which frees descriptors for the next.
    for mut stream in crowd {
        let _ = stream.read(&mut [0]);
    }
    let most = (begin.elapsed().as_millis() / 100 + 2) as u64 * proxy_threads();
    let errors = proxy.metric("tlsfarm_proxy_accept_errors_total");
    assert!(
        (1..=most).contains(&errors),
        "{errors} errors where {most} pauses fit"
    );
    assert!(visit(&farm, proxy.https, "shop.test", &[]).served());
}

fn proxy_threads() -> u64 {
    // Each traffic thread has two listeners.
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64) * 2
}

#[test]
fn plain_http_is_redirected() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let mut stream = TcpStream::connect(proxy.http).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    let request = "GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert!(
        answer.to_lowercase().contains("location: https://shop.test/"),
        "{answer}"
    );
}
