//! Handshakes that fail: which alert the client gets, and what is counted.

use rustls::client::WebPkiServerVerifier;

use super::*;

fn alert(description: AlertDescription) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description.into()]
}

#[tokio::test]
async fn a_hello_that_cannot_be_served_gets_the_matching_alert() {
    let modern = || hello(client(&[&TLS12, &TLS13]), "shop.test");
    let old = || hello(client(&[&TLS12]), "shop.test");
    let speaking = |protocol: &[u8]| {
        let mut config = client(&[&TLS12]);
        config.alpn_protocols = vec![protocol.to_vec()];
        hello(config, "shop.test")
    };
    let groups = Edited::With(edit::GROUPS, vec![0, 2, 0x0a, 0x0a]);
    let ed25519 = || Edited::With(edit::SIGNATURE_SCHEMES, vec![0, 2, 8, 7]);
    let address = [&[0, 12, 0, 0, 9][..], b"127.0.0.1"].concat();
    for (what, bytes, description, reason) in [
        (
            "no name",
            hello(client(&[&TLS13]), "127.0.0.1"),
            AlertDescription::UnrecognisedName,
            "no_server_name",
        ),
        (
            "an unknown name",
            hello(client(&[&TLS13]), "other.test"),
            AlertDescription::UnrecognisedName,
            "unknown_server_name",
        ),
        (
            "an address in place of a name",
            edited(&modern(), &[Edited::With(edit::SERVER_NAME, address)]),
            AlertDescription::UnrecognisedName,
            "unknown_server_name",
        ),
        (
            "a host without a certificate",
            hello(client(&[&TLS13]), "bare.test"),
            AlertDescription::HandshakeFailure,
            "no_certificate",
        ),
        (
            "no hello",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            AlertDescription::DecodeError,
            "unreadable_hello",
        ),
        (
            "TLS 1.1",
            edited(&old(), &[Edited::Version(0x0302), Edited::Without(43)]),
            AlertDescription::ProtocolVersion,
            "incompatible",
        ),
        (
            "no cipher suite in common",
            edited(&modern(), &[Edited::UnknownSuites]),
            AlertDescription::HandshakeFailure,
            "incompatible",
        ),
        (
            "no group in common",
            edited(&modern(), &[groups]),
            AlertDescription::HandshakeFailure,
            "incompatible",
        ),
        (
            "no protocol in common",
            speaking(b"h3"),
            AlertDescription::NoApplicationProtocol,
            "incompatible",
        ),
        (
            "no signature scheme of the certificate, TLS 1.3",
            edited(&modern(), &[ed25519()]),
            AlertDescription::AccessDenied,
            "no_certificate",
        ),
        (
            "no signature scheme of the certificate, TLS 1.2",
            edited(&old(), &[ed25519()]),
            AlertDescription::AccessDenied,
            "no_certificate",
        ),
        (
            "an extension twice",
            edited(&modern(), &[Edited::Twice(0x5555)]),
            AlertDescription::IllegalParameter,
            "client_misbehaved",
        ),
    ] {
        let proxy = Proxy::new();
        assert_eq!(proxy.answer_to(&bytes).await, alert(description), "{what}");
        proxy.failed_once(reason);
    }
}

#[tokio::test]
async fn alpn_without_a_common_protocol_fails() {
    for version in [&TLS12, &TLS13] {
        let speaking = |protocols: &[&str]| {
            let mut config = client(&[version]);
            config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
            config
        };
        let proxy = Proxy::new();
        let mut client = connection(speaking(&["h3"]), "shop.test");
        let (accepted, ended) = proxy
            .meet(async |mut io| converse(&mut client, &mut io, |_, _| {}).await)
            .await;
        assert!(accepted.is_none());
        let alert = AlertDescription::NoApplicationProtocol;
        assert_eq!(ended, Err(TlsError::AlertReceived(alert)));
        proxy.failed_once("incompatible");
        let met = visit(&proxy, &Arc::new(speaking(&["h3", "http/1.1"])), "shop.test").await;
        assert!(met.is_some());
    }
}

/// The connection is not closed before the client has had the time to read, whoever refused its hello.
#[tokio::test]
async fn a_client_that_is_still_sending_gets_its_alert() {
    for bytes in [
        hello(client(&[&TLS13]), "other.test"),
        hello(client(&[&TLS12]), "strict.test"),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let proxy = Proxy::new();
        let (accepted, received) = proxy
            .meet(async |mut io| {
                io.write_all(&bytes).await.expect("taken");
                let mut received = [0; 7];
                io.read_exact(&mut received).await.expect("an alert");
                io.write_all(&[0; 50_000]).await.expect("taken, and thrown away");
                received
            })
            .await;
        assert!(accepted.is_none());
        assert_eq!(received[..6], [21, 3, 3, 0, 2, 2]);
    }
}

/// Lets a client speak until the proxy closes the connection. `alter` may change what it sends; the first is the hello.
async fn converse(
    client: &mut ClientConnection,
    io: &mut DuplexStream,
    mut alter: impl FnMut(usize, &mut Vec<u8>),
) -> Result<(), TlsError> {
    let mut sent = 0;
    loop {
        while client.wants_write() {
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).expect("memory takes it");
            }
            alter(sent, &mut flight);
            sent += 1;
            io.write_all(&flight).await.expect("taken");
        }
        let mut bytes = [0; 4096];
        let read = io.read(&mut bytes).await.expect("an end in good order");
        let mut bytes = &bytes[..read];
        if bytes.is_empty() {
            return Ok(());
        }
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).expect("room");
            let processed = client.process_new_packets();
            if let Err(error) = processed {
                // Its alert.
                let mut last = Vec::new();
                while client.wants_write() {
                    client.write_tls(&mut last).expect("memory takes it");
                }
                io.write_all(&last).await.expect("taken");
                assert!(until_closed(io).await.is_empty(), "no answer to an alert");
                return Err(error);
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_distrusts_the_certificate_is_counted_as_such() {
    for version in [&TLS12, &TLS13] {
        let proxy = Proxy::new();
        let mut distrustful = client(&[version]);
        let others = rcgen::generate_simple_self_signed(["other.test".into()]).expect("generated");
        let mut roots = RootCertStore::empty();
        roots.add(others.cert.der().clone()).expect("usable");
        let provider = Arc::new(default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().expect("a root certificate");
        distrustful.dangerous().set_certificate_verifier(verifier);
        let mut client = connection(distrustful, "shop.test");
        let (accepted, ended) = proxy
            .meet(async |mut io| converse(&mut client, &mut io, |_, _| {}).await)
            .await;
        assert!(accepted.is_none());
        assert!(matches!(ended, Err(TlsError::InvalidCertificate(_))), "{ended:?}");
        proxy.failed_once("client_alert");
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_gets_an_alert() {
    // What is altered in which message of the client, and the alert.
    type Alter = fn(usize, &mut Vec<u8>);
    let flip_last: Alter = |number, bytes| {
        if number > 0 {
            *bytes.last_mut().expect("not empty") ^= 1;
        }
    };
    let strip: Alter = |number, bytes| {
        if number == 0 {
            *bytes = edited(bytes, &[Edited::Without(edit::EXTENDED_MASTER_SECRET)]);
        }
    };
    let data: Alter = |number, bytes| {
        if number == 0 {
            bytes.extend([23, 3, 3, 0, 1, 7]);
        }
    };
    let nonsense: Alter = |number, bytes| {
        if number > 0 {
            *bytes = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        }
    };
    for (what, version, alter, description) in [
        (
            "an altered record, TLS 1.3",
            &TLS13,
            flip_last,
            AlertDescription::BadRecordMac,
        ),
        (
            "an altered record, TLS 1.2",
            &TLS12,
            flip_last,
            AlertDescription::BadRecordMac,
        ),
        (
            "a hello that was altered on its way",
            &TLS12,
            strip,
            AlertDescription::DecryptError,
        ),
        (
            "data in the midst of it",
            &TLS12,
            data,
            AlertDescription::UnexpectedMessage,
        ),
        (
            "no record, TLS 1.2",
            &TLS12,
            nonsense,
            AlertDescription::DecodeError,
        ),
        (
            "no record, TLS 1.3",
            &TLS13,
            nonsense,
            AlertDescription::DecodeError,
        ),
    ] {
        let proxy = Proxy::new();
        let mut client = connection(client(&[version]), "shop.test");
        let (accepted, ended) = proxy
            .meet(async |mut io| converse(&mut client, &mut io, alter).await)
            .await;
        assert!(accepted.is_none(), "{what}");
        assert_eq!(ended, Err(TlsError::AlertReceived(description)), "{what}");
        proxy.failed_once("client_misbehaved");
    }
}

/// rustls has no alert for it.
#[tokio::test]
async fn a_message_of_64_kib_is_refused_before_it_is_complete() {
    let proxy = Proxy::new();
    let mut client = connection(client(&[&TLS12]), "shop.test");
    let oversize = |number, bytes: &mut Vec<u8>| {
        if number > 0 {
            *bytes = vec![22, 3, 3, 0, 4, 16, 1, 0, 0];
        }
    };
    let (accepted, ended) = proxy
        .meet(async |mut io| converse(&mut client, &mut io, oversize).await)
        .await;
    assert!(accepted.is_none());
    assert_eq!(ended, Ok(()));
    proxy.failed_once("client_misbehaved");
}

/// rustls keeps 64 KiB of a message that is not whole, with the headers of its records.
#[tokio::test]
async fn a_message_in_too_many_records_is_refused() {
    let proxy = Proxy::new();
    let hello = hello(client(&[&TLS12]), "shop.test");
    let endless = [
        &[22, 3, 3, 0, 4, 16, 0, 0x7f, 0xff][..],
        &[22, 3, 3, 0, 1, 0].repeat(40_000),
    ]
    .concat();
    let (accepted, ()) = proxy
        .meet(async |mut io| {
            io.write_all(&hello).await.expect("taken");
            // The proxy may close before it has read everything.
            let (mut read, mut write) = tokio::io::split(io);
            let (_, _) = tokio::join!(write.write_all(&endless), async {
                let mut answer = Vec::new();
                let _ = read.read_to_end(&mut answer).await;
            });
        })
        .await;
    assert!(accepted.is_none());
    proxy.failed_once("client_misbehaved");
}

#[tokio::test]
async fn a_slow_handshake_times_out() {
    // Long enough to answer a hello on a busy machine.
    const LIMIT: Duration = Duration::from_secs(1);
    let wire = hello(client(&[&TLS13]), "shop.test");
    for (what, sent) in [
        ("silence", &[][..]),
        ("half a hello", &wire[..wire.len() / 2]),
        ("a hello and no more", &wire),
    ] {
        let proxy = Proxy::with(|config| config.timeouts.handshake = "1s".parse().expect("valid"));
        let begun = Instant::now();
        let answer = proxy.answer_to(sent).await;
        assert!(begun.elapsed() >= LIMIT, "{what}");
        assert_eq!(answer.is_empty(), sent.len() < wire.len(), "{what}");
        proxy.failed_once("timeout");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_as_such() {
    let wire = hello(client(&[&TLS13]), "shop.test");
    for (what, sent) in [
        ("at once", &[][..]),
        ("amid its hello", &wire[..wire.len() / 2]),
        ("after its hello", &wire),
    ] {
        let proxy = Proxy::new();
        let (accepted, ()) = proxy
            .meet(async |mut io| io.write_all(sent).await.expect("taken"))
            .await;
        assert!(accepted.is_none(), "{what}");
        proxy.failed_once("client_closed");
    }
}

#[test]
fn connection_errors_are_distinguished() {
    use io::ErrorKind;
    for (kind, failure) in [
        (ErrorKind::TimedOut, HandshakeFailure::Timeout),
        (ErrorKind::InvalidData, HandshakeFailure::ClientMisbehaved),
        (ErrorKind::ConnectionReset, HandshakeFailure::ClientClosed),
        (ErrorKind::BrokenPipe, HandshakeFailure::ClientClosed),
        (ErrorKind::UnexpectedEof, HandshakeFailure::ClientClosed),
    ] {
        assert_eq!(io_failure(&kind.into()), failure, "{kind:?}");
    }
}

#[test]
fn internal_errors_are_not_counted_as_client_errors() {
    for error in [
        TlsError::FailedToGetCurrentTime,
        TlsError::FailedToGetRandomBytes,
        TlsError::Other(rustls::OtherError(Arc::new(io::Error::other("a disk")))),
    ] {
        assert_eq!(tls_failure(&error), HandshakeFailure::Internal, "{error}");
    }
    assert_eq!(
        tls_failure(&TlsError::DecryptError),
        HandshakeFailure::ClientMisbehaved
    );
}
