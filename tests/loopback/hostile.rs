//! Clients that send something else than a ClientHello, or send it badly.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::harness::{Farm, PATIENCE, Proxy, visit, wait_for};

/// The handshake limit of the farm's configuration, and a margin for a busy machine.
const LIMIT: Duration = Duration::from_secs(2);
const MARGIN: Duration = Duration::from_secs(4);

fn connect(proxy: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(proxy).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    stream
}

/// Everything that the proxy sends until it closes the connection.
fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    answer
}

fn hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("supported")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("usable");
    let mut wire = Vec::new();
    client.write_tls(&mut wire).expect("memory takes it");
    wire
}

fn failures(proxy: &Proxy, reason: &str) -> u64 {
    proxy.metric(&format!(
        "tlsfarm_proxy_handshake_failures_total{{reason=\"{reason}\"}}"
    ))
}

fn still_serves(farm: &Farm, proxy: &Proxy) {
    let visit = visit(farm, proxy.https, "shop.test", &[]);
    assert!(visit.served(), "{}", visit.output);
    wait_for("all other connections to be gone", || {
        (proxy.metric("tlsfarm_proxy_connections{port=\"https\"}") == 0).then_some(())
    });
}

#[test]
fn garbage_is_answered_with_an_alert_and_closed() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let noise: Vec<u8> = (0..64 * 1024u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    // A hello that never ends: one byte of it in each record.
    let endless = [
        &[22, 3, 1, 0, 4, 1, 0, 0x3f, 0xff][..],
        &[22, 3, 1, 0, 1, 0].repeat(11_000),
    ]
    .concat();
    let junk: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        &noise,
        &[0; 70_000],
        &endless,
    ];
    for (number, junk) in (1..).zip(junk) {
        let mut stream = connect(proxy.https);
        let begin = Instant::now();
        // The proxy may close before it has read everything.
        let _ = stream.write_all(junk);
        let answer = until_closed(&mut stream);
        assert_eq!((answer.len(), answer[0]), (7, 21), "{answer:?} is not an alert");
        assert!(begin.elapsed() < MARGIN);
        assert_eq!(failures(&proxy, "unreadable_hello"), number);
    }
    still_serves(&farm, &proxy);
}

#[test]
fn slow_and_unfinished_hellos_are_closed_within_the_limit() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let wire = hello("shop.test");

    let mut half = connect(proxy.https);
    half.write_all(&wire[..wire.len() / 2]).expect("taken");
    let mut silent = connect(proxy.https);
    let mut slow = connect(proxy.https);
    let mut after_hello = connect(proxy.https);
    after_hello.write_all(&wire).expect("taken");

    let begin = Instant::now();
    for byte in wire.iter().cycle() {
        // Fails as soon as the proxy has closed the connection.
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        assert!(
            begin.elapsed() < LIMIT + MARGIN,
            "a byte at a time goes on for ever"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    for stream in [&mut half, &mut silent, &mut after_hello] {
        until_closed(stream);
    }
    assert!(begin.elapsed() < LIMIT + MARGIN);
    assert_eq!(failures(&proxy, "timeout"), 4);

    let mut gone = connect(proxy.https);
    gone.write_all(&wire[..10]).expect("taken");
    gone.shutdown(Shutdown::Both).expect("open");
    wait_for("the failure to be counted", || {
        (failures(&proxy, "client_closed") == 1).then_some(())
    });
    still_serves(&farm, &proxy);
}

#[test]
fn a_hello_in_one_byte_records_is_understood() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let records: Vec<u8> = hello("shop.test")[5..]
        .iter()
        .flat_map(|byte| [22, 3, 1, 0, 1, *byte])
        .collect();
    let mut stream = connect(proxy.https);
    stream.write_all(&records).expect("taken");
    let mut record = [0; 6];
    stream.read_exact(&mut record).expect("an answer");
    assert_eq!((record[0], record[5]), (22, 2), "{record:?} is no ServerHello");
}

#[test]
fn unknown_and_missing_names_get_unrecognized_name() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    for (name, reason) in [
        ("other.test", "unknown_server_name"),
        ("a.b.shop.test", "unknown_server_name"),
        ("127.0.0.1", "no_server_name"),
    ] {
        let mut stream = connect(proxy.https);
        stream.write_all(&hello(name)).expect("taken");
        assert_eq!(until_closed(&mut stream), [21, 3, 3, 0, 2, 2, 112], "{name}");
        assert!(failures(&proxy, reason) > 0, "{name}");
    }
    let shouting = visit(&farm, proxy.https, "WWW.Shop.Test", &[]);
    assert!(shouting.served(), "{}", shouting.output);
    let refused = visit(&farm, proxy.https, "other.test", &[]);
    assert!(refused.output.contains("unrecognized name"), "{}", refused.output);
    still_serves(&farm, &proxy);
}

#[test]
fn many_random_names_make_no_metrics() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let series = |proxy: &Proxy| proxy.get("/metrics").1.lines().count();
    let names = |count: u32| (0..count).map(|n| format!("name-{n}.test"));
    for name in names(1) {
        let mut stream = connect(proxy.https);
        stream.write_all(&hello(&name)).expect("taken");
        until_closed(&mut stream);
    }
    let before = series(&proxy);
    for name in names(200) {
        let mut stream = connect(proxy.https);
        stream.write_all(&hello(&name)).expect("taken");
        until_closed(&mut stream);
    }
    assert_eq!(series(&proxy), before);
    assert!(!proxy.log().contains("name-"), "a client's word in the log");
}

#[test]
fn damaged_tickets_get_a_full_handshake_and_no_alert() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let file = farm.dir.join("session");
    let path = file.to_str().expect("a plain path");
    let primary = proxy.report().ring.primary.expect("a key that seals");
    let key_id = u128::from_str_radix(&primary, 16)
        .expect("hexadecimal")
        .to_be_bytes();
    for version in ["-tls1_2", "-tls1_3"] {
        let first = visit(&farm, proxy.https, "shop.test", &[version, "-sess_out", path]);
        assert!(first.served(), "{}", first.output);
        // The session file is PEM around DER, which holds the ticket as it is; it begins with the key's id.
        let pem = fs::read_to_string(&file).expect("written");
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(base64).expect("base64");
        let ticket = der
            .windows(16)
            .position(|part| part == key_id)
            .expect("a ticket of ours");
        for damaged in [ticket, ticket + 16, ticket + 100] {
            let mut der = der.clone();
            der[damaged] ^= 0x10;
            put_session(&file, &der);
            let again = visit(&farm, proxy.https, "shop.test", &[version, "-sess_in", path]);
            assert!(again.served() && !again.reused, "{version}: {}", again.output);
        }
    }
    let refused = |outcome| {
        proxy.metric(&format!(
            "tlsfarm_proxy_tickets_offered_total{{outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!((refused("unknown_key"), refused("not_authentic")), (2, 4));
}

fn put_session(file: &Path, der: &[u8]) {
    let base64 = STANDARD.encode(der);
    let lines: Vec<_> = base64
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    let kind = "SSL SESSION PARAMETERS";
    let pem = format!(
        "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
        lines.join("\n")
    );
    fs::write(file, pem).expect("written");
}
