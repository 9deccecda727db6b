//! What a proxy logs of failures that others cause.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;
use tlsfarm::config::Backend;

use crate::harness::{Farm, Proxy, visit, wait_for};

/// The lines of the log with this message.
fn lines(proxy: &Proxy, message: &str) -> Vec<Value> {
    let log = proxy.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &Value| line["message"] == message).collect()
}

#[test]
fn failed_handshakes_are_one_line_with_a_count_and_their_reasons() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(proxy.https).expect("connected");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        let _ = stream.read(&mut [0]);
    }
    let series = "tlsfarm_proxy_handshake_failures_total{reason=\"unreadable_hello\"}";
    wait_for("the failures", || (proxy.metric(series) == 20).then_some(()));
    let line = wait_for("a line", || lines(&proxy, "TLS handshakes failed").pop());
    let count = line["count"].as_u64().expect("a number");
    assert!((1..=20).contains(&count), "{line}");
    assert_eq!(line["reasons"], format!("unreadable_hello={count}"));
    assert_eq!(line["level"], "INFO");
}

#[test]
fn a_backend_without_endpoints_is_named() {
    let farm = Farm::new("web/shop");
    let mut config = farm.config();
    config.hosts[0].routes[0].backend = Backend::Addresses(Vec::new());
    let proxy = farm.start_with(config);
    wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
    visit(&farm, proxy.https, "shop.test", &[]);
    let message = "requests failed because a backend had no endpoints";
    let line = wait_for("a line", || lines(&proxy, message).pop());
    assert_eq!(
        (&line["count"], &line["level"]),
        (&1.into(), &"WARN".into()),
        "{line}"
    );
}
