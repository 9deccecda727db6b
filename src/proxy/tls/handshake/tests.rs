use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore,
    SupportedProtocolVersion,
};
use tokio::io::{DuplexStream, duplex};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use self::edit::{Edited, edited};
use super::*;
use crate::config::ProxyConfig;
use crate::proxy::control::snapshot::fixtures::{certificate, config, snapshot};
use crate::proxy::resume::session_cache::SessionCacheMetrics;
use crate::ring::Ring;
use crate::ring::fixtures::{POLICY, secret};

mod budget;
mod edit;
mod failures;

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A proxy without its sockets.
struct Proxy {
    /// From where its next client comes.
    client: IpAddr,
    snapshot: Snapshot,
    keys: Arc<SharedKeys>,
    cache: SessionCache,
    metrics: ProxyMetrics,
    registry: Registry,
}

type Accepted = Option<(TlsStream<DuplexStream>, Arc<Host>)>;

impl Proxy {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let mut config = config();
        change(&mut config);
        let keys = Arc::new(SharedKeys::default());
        let now = Timestamp::now();
        keys.replace(&Ring::new(1, secret(), secret(), &POLICY, now), now);
        let mut registry = Registry::default();
        Self {
            client: Ipv4Addr::LOCALHOST.into(),
            snapshot: snapshot(config),
            keys,
            cache: SessionCache::new(SessionCacheMetrics::register(&mut registry)),
            metrics: ProxyMetrics::register(&mut registry),
            registry,
        }
    }

    /// What comes of a connection of this client, at either end.
    async fn meet<T>(&self, client: impl AsyncFnOnce(DuplexStream) -> T) -> (Accepted, T) {
        let (ours, theirs) = duplex(16 * 1024);
        let accepting = accept(
            ours,
            self.client,
            &self.snapshot,
            &self.keys,
            &self.cache,
            &self.metrics,
        );
        timeout(PATIENCE, async { tokio::join!(accepting, client(theirs)) })
            .await
            .expect("an end")
    }

    /// Everything that a client gets that sends these bytes and then listens.
    async fn answer_to(&self, bytes: &[u8]) -> Vec<u8> {
        let (accepted, answer) = self
            .meet(async |mut io| {
                io.write_all(bytes).await.expect("taken");
                until_closed(&mut io).await
            })
            .await;
        assert!(accepted.is_none());
        answer
    }

    /// Everything that a client gets that sends these bytes, says that no more will come, and then listens.
    async fn answer_to_no_more_than(&self, bytes: &[u8]) -> Vec<u8> {
        let (accepted, answer) = self
            .meet(async |mut io| {
                io.write_all(bytes).await.expect("taken");
                io.shutdown().await.expect("closed");
                until_closed(&mut io).await
            })
            .await;
        assert!(accepted.is_none());
        answer
    }

    /// A counter's series that are not zero.
    fn counted(&self, counter: &str) -> BTreeMap<String, u64> {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("text");
        let series = text.lines().filter_map(|line| {
            line.strip_prefix(counter)?
                .strip_prefix("_total{")?
                .split_once("} ")
        });
        series
            .map(|(labels, value)| (labels.to_owned(), value.parse().expect("a number")))
            .filter(|(_, value)| *value > 0)
            .collect()
    }

    /// That nothing failed so far but this, once.
    fn failed_once(&self, reason: &str) {
        let expected = BTreeMap::from([(format!("reason=\"{reason}\""), 1)]);
        assert_eq!(self.counted("handshake_failures"), expected);
        assert_eq!(self.counted("handshakes"), BTreeMap::new());
    }
}

async fn until_closed(io: &mut DuplexStream) -> Vec<u8> {
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.expect("an end in good order");
    answer
}

/// A client that trusts the proxy and keeps sessions.
fn client(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).expect("usable");
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .expect("supported")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn connection(config: ClientConfig, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("usable")
}

/// The hello of such a client.
fn hello(config: ClientConfig, name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    connection(config, name)
        .write_tls(&mut wire)
        .expect("memory takes it");
    wire
}

/// What came of a handshake, for the proxy and for the client.
struct Met {
    host: Arc<Host>,
    version: Option<ProtocolVersion>,
    kind: Option<HandshakeKind>,
}

/// A whole handshake, and the end of the connection, so that the client has all tickets.
async fn visit(proxy: &Proxy, config: &Arc<ClientConfig>, name: &'static str) -> Option<Met> {
    let connector = TlsConnector::from(Arc::clone(config));
    let name = ServerName::try_from(name).expect("a name");
    let (accepted, client) = proxy.meet(async |io| connector.connect(name, io).await).await;
    let (mut stream, host) = accepted?;
    let mut client = client.expect("a handshake");
    stream.shutdown().await.expect("closed");
    assert_eq!(client.read(&mut [0]).await.expect("an end in good order"), 0);
    let connection = stream.connection();
    Some(Met {
        host,
        version: connection.protocol_version(),
        kind: connection.handshake_kind(),
    })
}

#[tokio::test]
async fn a_tls13_only_host_refuses_tls12_while_another_host_serves_it() {
    let proxy = Proxy::new();
    let old = Arc::new(client(&[&TLS12]));
    let met = visit(&proxy, &old, "www.shop.test").await.expect("served");
    assert_eq!(
        (met.host.name.as_str(), met.version),
        ("shop", Some(ProtocolVersion::TLSv1_2))
    );
    let new = Arc::new(client(&[&TLS12, &TLS13]));
    for (name, host) in [("strict.test", "strict"), ("shop.test", "shop")] {
        let met = visit(&proxy, &new, name).await.expect("served");
        assert_eq!(
            (met.host.name.as_str(), met.version),
            (host, Some(ProtocolVersion::TLSv1_3))
        );
    }
    assert!(proxy.counted("handshake_failures").is_empty());

    let answer = proxy.answer_to(&hello(client(&[&TLS12]), "strict.test")).await;
    assert_eq!(
        answer,
        [21, 3, 3, 0, 2, 2, u8::from(AlertDescription::ProtocolVersion)]
    );
    let failed = BTreeMap::from([("reason=\"incompatible\"".to_owned(), 1)]);
    assert_eq!(proxy.counted("handshake_failures"), failed);
    let served = BTreeMap::from([
        ("version=\"1.2\",kind=\"full\"".to_owned(), 1),
        ("version=\"1.3\",kind=\"full\"".to_owned(), 2),
    ]);
    assert_eq!(proxy.counted("handshakes"), served);
}

#[tokio::test]
async fn a_returning_client_resumes_and_is_counted_as_resumed() {
    for (version, label) in [(&TLS12, "1.2"), (&TLS13, "1.3")] {
        let proxy = Proxy::new();
        let config = Arc::new(client(&[version]));
        for kind in [
            HandshakeKind::Full,
            HandshakeKind::Resumed,
            HandshakeKind::Resumed,
        ] {
            let met = visit(&proxy, &config, "shop.test").await.expect("served");
            assert_eq!(met.kind, Some(kind), "TLS {label}");
        }
        let served = BTreeMap::from([
            (format!("version=\"{label}\",kind=\"full\""), 1),
            (format!("version=\"{label}\",kind=\"resumed\""), 2),
        ]);
        assert_eq!(proxy.counted("handshakes"), served);
        let offered = BTreeMap::from([("outcome=\"ok\"".to_owned(), 2)]);
        assert_eq!(proxy.counted("tickets_offered"), offered, "TLS {label}");
    }
}

#[tokio::test]
async fn a_single_use_host_issues_no_tls12_ticket() {
    let proxy = Proxy::new();
    let config = Arc::new(client(&[&TLS12]));
    for _ in 0..2 {
        let met = visit(&proxy, &config, "once.test").await.expect("served");
        assert_eq!(met.kind, Some(HandshakeKind::Full));
    }
    assert_eq!(proxy.counted("tickets_issued"), BTreeMap::new());
    assert_eq!(proxy.counted("tickets_offered"), BTreeMap::new());
}

/// The part of a TLS 1.2 ServerHello that tells what the client may resume by.
struct Promise {
    session_id: Vec<u8>,
    ticket: bool,
}

/// RFC 7627: a session without extended master secret is worth nothing to whoever would resume it.
#[tokio::test]
async fn without_extended_master_secret_a_client_gets_neither_ticket_nor_session_id() {
    let proxy = Proxy::new();
    let promise = async |edits: &[Edited]| {
        let hello = edited(&hello(client(&[&TLS12]), "shop.test"), edits);
        promise(&proxy.answer_to_no_more_than(&hello).await)
    };
    let with = promise(&[]).await;
    assert!(with.ticket && with.session_id.is_empty());
    let without = promise(&[Edited::Without(edit::EXTENDED_MASTER_SECRET)]).await;
    assert!(!without.ticket && without.session_id.is_empty());
}

fn promise(answer: &[u8]) -> Promise {
    let hello = &answer[5 + 4..];
    let id = usize::from(hello[34]);
    let extensions = &hello[35 + id + 3..];
    let mut extensions = &extensions[2..2 + usize::from(u16::from_be_bytes([extensions[0], extensions[1]]))];
    let mut ticket = false;
    while let [high, low, long, length, rest @ ..] = extensions {
        ticket |= u16::from_be_bytes([*high, *low]) == 35;
        extensions = &rest[usize::from(u16::from_be_bytes([*long, *length]))..];
    }
    Promise {
        session_id: hello[35..35 + id].to_vec(),
        ticket,
    }
}

#[test]
fn a_handshake_fails_if_rustls_reads_another_server_name() {
    let hello = |name: Option<&str>| ClientHello {
        server_name: name.map(str::to_owned),
        ..ClientHello::default()
    };
    for (theirs, ours, same) in [
        (Some("shop.test"), Some("shop.test"), true),
        (Some("Shop.TEST."), Some("shop.test"), true),
        (None, None, true),
        (Some("blog.test"), Some("shop.test"), false),
        (Some("shop.test.test"), Some("shop.test"), false),
        (None, Some("127.0.0.1"), false),
        (Some("shop.test"), None, false),
    ] {
        assert_eq!(same_name(theirs, &hello(ours)), same, "{theirs:?} and {ours:?}");
    }
}
