//! Connections that were accepted under a policy that has changed since.

use std::sync::Arc;

use rustls::ProtocolVersion;

use super::http2;
use super::support::{Backend, Farm, run, status};
use crate::api::MinVersion;
use crate::proxy::control::snapshot::fixtures::without_certificates;

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n";

/// Takes a configuration into use in which all hosts want at least this version.
fn reload(farm: &Farm, version: MinVersion) {
    let mut config = farm.snapshot.load().config.clone();
    for host in &mut config.hosts {
        host.min_version = version;
    }
    farm.snapshot.store(Arc::new(without_certificates(config)));
}

#[test]
fn a_connection_below_a_raised_minimum_version_ends_after_the_next_response() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect_as(Some(farm.tls(ProtocolVersion::TLSv1_2, false)));
        client.send(GET).await;
        client.read_until("\r\n\r\nok").await;
        reload(&farm, MinVersion::TLS13);
        client.send(GET).await;
        let response = client.rest().await;
        assert_eq!(status(&response), 200, "{response:?}");
        assert!(response.contains("\r\nconnection: close\r\n"), "{response:?}");
    });
}

#[test]
fn an_http2_connection_below_the_minimum_gets_goaway_and_its_answer() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let tls = farm.tls(ProtocolVersion::TLSv1_2, true);
        let (mut sender, connection) = http2::connect_as(&farm, tls).await;
        reload(&farm, MinVersion::TLS13);
        let response = sender.send_request(http2::get("https://shop.example.com/")).await;
        assert_eq!(response.expect("a response").status(), 200);
        connection.await.expect("no panic").expect("an end in good order");
    });
}

#[test]
fn connections_that_meet_the_new_minimum_version_stay_open() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        for (version, min_version) in [
            (ProtocolVersion::TLSv1_3, MinVersion::TLS13),
            (ProtocolVersion::TLSv1_2, MinVersion::TLS12),
        ] {
            reload(&farm, MinVersion::TLS12);
            let mut client = farm.connect_as(Some(farm.tls(version, false)));
            reload(&farm, min_version);
            for _ in 0..2 {
                client.send(GET).await;
                let response = client.read_until("\r\n\r\nok").await;
                assert!(!response.contains("connection: close"), "{response:?}");
            }
        }
    });
}
