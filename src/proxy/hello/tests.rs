use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;

fn hello_of(name: &str, versions: &[&'static SupportedProtocolVersion]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .expect("supported")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = name.to_string().try_into().expect("a DNS name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("usable");
    let mut wire = Vec::new();
    client.write_tls(&mut wire).expect("memory takes it");
    wire
}

fn read(wire: &[u8]) -> Progress {
    HelloReader::default().feed(wire)
}

/// The same message in records of `size` bytes.
fn in_records_of(size: usize, wire: &[u8]) -> Vec<u8> {
    wire[RECORD_HEADER..]
        .chunks(size)
        .flat_map(|part| {
            let mut record = vec![HANDSHAKE, 3, 1, (part.len() >> 8) as u8, part.len() as u8];
            record.extend_from_slice(part);
            record
        })
        .collect()
}

fn as_rustls_reads(wire: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut rest = wire;
    while acceptor.read_tls(&mut rest).ok()? > 0 {
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(str::to_owned));
        }
    }
    None
}

#[test]
fn hellos_of_both_versions_are_understood() {
    let expected = Hello {
        server_name: Some("shop.example.com".into()),
        offers_tls13: true,
        extended_master_secret: true,
        session_id: None,
        ticket: Some(TicketOffer::Empty),
        single_use: None,
    };
    let wire = hello_of("Shop.example.com", &[&TLS12, &TLS13]);
    let Progress::Complete(hello) = read(&wire) else {
        panic!("unreadable");
    };
    assert!(hello.session_id.is_some(), "TLS 1.3 clients send a random one");
    let nameless = Hello {
        session_id: None,
        ..hello
    };
    assert_eq!(nameless, expected);
    let wire = hello_of("shop.example.com", &[&TLS12]);
    let expected = Hello {
        offers_tls13: false,
        ..expected
    };
    assert_eq!(read(&wire), Progress::Complete(expected));
    let Progress::Complete(nameless) = read(&hello_of("127.0.0.1", &[&TLS13])) else {
        panic!("unreadable");
    };
    assert_eq!(nameless.server_name, None);
}

/// The body of a hello with this session id and these extensions.
fn body(session_id: &[u8], extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut listed = Vec::new();
    for (kind, content) in extensions {
        listed.extend(kind.to_be_bytes());
        listed.extend((content.len() as u16).to_be_bytes());
        listed.extend_from_slice(content);
    }
    let length = (listed.len() as u16).to_be_bytes();
    let id_length = [session_id.len() as u8];
    [
        &[3; 34],
        &id_length[..],
        session_id,
        &[0, 2, 0x13, 1, 1, 0],
        &length,
        &listed,
    ]
    .concat()
}

fn identities(names: &[&[u8]]) -> Vec<u8> {
    let mut listed = Vec::new();
    for name in names {
        listed.extend((name.len() as u16).to_be_bytes());
        listed.extend_from_slice(name);
        listed.extend([0; 4]);
    }
    // No binders: they are none of our business.
    [&(listed.len() as u16).to_be_bytes()[..], &listed].concat()
}

#[test]
fn names_of_sessions_are_those_of_32_bytes() {
    for (length, expected) in [(0, None), (31, None), (32, Some([7; 32]))] {
        let hello = parse(&body(&vec![7; length], &[])).expect("readable");
        assert_eq!(hello.session_id, expected);
    }
    let single_use = |names: &[&[u8]]| {
        let content = identities(names);
        let hello = parse(&body(&[], &[(extension::PRE_SHARED_KEY, &content)]));
        hello.expect("readable").single_use
    };
    let stateless = [9; 256];
    assert_eq!(single_use(&[]), None);
    assert_eq!(single_use(&[&[1; 32], &[2; 32]]), Some([1; 32]));
    assert_eq!(single_use(&[&stateless, &[2; 32]]), Some([2; 32]));
    assert_eq!(single_use(&[&stateless, &stateless, &[3; 32]]), None);
    let cut = identities(&[&[1; 32]]);
    let cut = parse(&body(&[], &[(extension::PRE_SHARED_KEY, &cut[..20])]));
    assert_eq!(cut, None);
}

#[test]
fn a_ticket_is_told_from_the_wish_for_one() {
    let ticket = |extensions: &[(u16, &[u8])]| parse(&body(&[], extensions)).expect("readable").ticket;
    assert_eq!(ticket(&[]), None);
    assert_eq!(
        ticket(&[(extension::SESSION_TICKET, b"")]),
        Some(TicketOffer::Empty)
    );
    assert_eq!(
        ticket(&[(extension::SESSION_TICKET, b"t")]),
        Some(TicketOffer::Ticket)
    );
}

#[test]
fn fragmentation_at_any_boundary_changes_nothing() {
    let wire = hello_of("shop.example.com", &[&TLS12, &TLS13]);
    let whole = read(&wire);
    for cut in 0..wire.len() {
        let mut reader = HelloReader::default();
        assert_eq!(reader.feed(&wire[..cut]), Progress::Incomplete, "cut at {cut}");
        assert_eq!(reader.feed(&wire[cut..]), whole, "cut at {cut}");
    }
    for size in [1, 2, 3, 7, 100, 1000] {
        let mut reader = HelloReader::default();
        let records = in_records_of(size, &wire);
        let (last, first) = records.split_last().expect("not empty");
        for byte in first {
            assert_eq!(reader.feed(&[*byte]), Progress::Incomplete, "records of {size}");
        }
        assert_eq!(reader.feed(&[*last]), whole, "records of {size}");
        assert_eq!(reader.into_wire(), records);
    }
}

#[test]
fn a_hello_without_end_is_given_up_within_the_limit() {
    let endless = [
        HANDSHAKE,
        3,
        1,
        0,
        1,
        CLIENT_HELLO,
        HANDSHAKE,
        3,
        1,
        0,
        3,
        0,
        0x3f,
        0,
    ];
    let mut reader = HelloReader::default();
    assert_eq!(reader.feed(&endless), Progress::Incomplete);
    let mut sent = endless.len();
    while reader.feed(&[HANDSHAKE, 3, 1, 0, 1, 0]) == Progress::Incomplete {
        sent += 6;
    }
    assert!(sent <= MAX_WIRE, "{sent} bytes were taken");
    let announced = [HANDSHAKE, 3, 1, 0, 4, CLIENT_HELLO, 1, 0, 0];
    assert_eq!(read(&announced), Progress::Unreadable);
}

#[test]
fn what_is_no_hello_gets_an_alert() {
    for junk in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 70_000],
        &[HANDSHAKE, 3, 1, 0, 4, 2, 0, 0, 0],
    ] {
        assert_eq!(read(junk), Progress::Unreadable);
        let alert = refusal(junk);
        assert_eq!((alert.len(), alert[0], alert[5]), (7, 21, 2), "{alert:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(wire in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = read(&wire);
        let _ = refusal(&wire);
        let _ = parse(&wire);
    }

    #[test]
    fn altered_hellos_are_read_as_rustls_reads_them_or_not_at_all(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut wire = hello_of("shop.example.com", &[&TLS12, &TLS13]);
        for (place, byte) in changes {
            let place = place.index(wire.len());
            wire[place] = byte;
        }
        if let (Progress::Complete(ours), Some(theirs)) = (read(&wire), as_rustls_reads(&wire)) {
            let theirs = theirs.map(|name| name.trim_end_matches('.').to_ascii_lowercase());
            prop_assert!(theirs.is_none() || ours.server_name == theirs);
        }
    }
}
