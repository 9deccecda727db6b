//! The probe against servers that are known to share their ticket keys, and against servers that are known not to.

mod stateful;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Parser;
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::kept::KeptSessions;
use super::output::{Output, Style};
use super::{Counts, Matrix, ProbeArgs, ProbeError, TrialOutcome, matrix, probe, target};
use crate::runtime::test_dir::TestDir;

const NAME: &str = "shop.example.com";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// `tlsfarm probe` on its own.
#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    probe: ProbeArgs,
}

fn arguments(more: &[&str]) -> Result<ProbeArgs, clap::Error> {
    Ok(CommandLine::try_parse_from([&["probe"], more].concat())?.probe)
}

fn probe_arguments(addresses: &[SocketAddr], more: &[&str]) -> ProbeArgs {
    let addresses: Vec<String> = addresses
        .iter()
        .map(|address| format!("--address={address}"))
        .collect();
    let mut all: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let name = format!("--server-name={NAME}");
    all.push(&name);
    all.extend(more);
    arguments(&all).expect("right usage")
}

/// Probes and returns whether all was clean, and the JSON document.
async fn probed(addresses: &[SocketAddr], more: &[&str]) -> (bool, Value) {
    let args = probe_arguments(addresses, more);
    let mut out = Vec::new();
    let clean = probe(&args, Output::new(&mut out, Style::Json))
        .await
        .expect("probed");
    (clean, serde_json::from_slice(&out).expect("a JSON document"))
}

/// The outcomes of one matrix, row by row.
fn outcomes(document: &Value, mechanism: &str) -> Vec<String> {
    let matrices = document["matrices"].as_array().expect("a list");
    let matrix = matrices
        .iter()
        .find(|matrix| matrix["mechanism"] == mechanism)
        .expect("probed");
    let fresh = matrix["fresh"].as_array().expect("a list");
    fresh
        .iter()
        .map(|trial| trial["outcome"].as_str().expect("a text").to_owned())
        .collect()
}

fn certificate() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed([NAME.to_owned()]).expect("generated")
}

/// What a test server does about resumption.
enum Tickets {
    /// Seals tickets by this ticketer; whoever else has it can open them.
    Shared(Arc<dyn ProducesTickets>),
    /// Gives no tickets but remembers TLS 1.2 sessions by id.
    Ids,
}

fn server_config(certificate: &CertifiedKey<KeyPair>, tickets: Tickets) -> ServerConfig {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .expect("a certificate and its key");
    match tickets {
        Tickets::Shared(ticketer) => {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.ticketer = ticketer;
        }
        Tickets::Ids => config.send_tls13_tickets = 0,
    }
    config
}

/// Serves until the test's runtime ends. The configuration may be swapped meanwhile.
async fn serve(config: Arc<ArcSwap<ServerConfig>>, response: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(config.load_full());
            tokio::spawn(async move {
                let mut tls = acceptor.accept(tcp).await?;
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(tls.read_u8().await?);
                }
                tls.write_all(response.as_bytes()).await?;
                tls.shutdown().await
            });
        }
    });
    address
}

async fn servers(configs: Vec<ServerConfig>, response: &'static str) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for config in configs {
        addresses.push(serve(Arc::new(ArcSwap::from_pointee(config)), response).await);
    }
    addresses
}

fn sharing(count: usize) -> Vec<ServerConfig> {
    let (certificate, ticketer) = (certificate(), Ticketer::new().expect("a ticketer"));
    let config = |_| server_config(&certificate, Tickets::Shared(ticketer.clone()));
    (0..count).map(config).collect()
}

/// OpenSSL's own server, which draws ticket keys of its own when it starts.
struct OpenSsl {
    process: Child,
    address: SocketAddr,
}

impl OpenSsl {
    fn start(certificate: &str, key: &str, more: &[&str]) -> Self {
        let mut process = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-cert",
                certificate,
                "-key",
                key,
                "-www",
            ])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        let accepting = stdout.lines().map_while(Result::ok).find_map(|line| {
            let address = line.strip_prefix("ACCEPT ")?;
            address.parse().ok()
        });
        let address = accepting.unwrap_or_else(|| {
            let errors = std::io::read_to_string(process.stderr.take().expect("piped"));
            panic!("openssl does not listen: {}", errors.expect("text"))
        });
        Self { process, address }
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn servers_that_share_ticket_keys_resume_everything() {
    let addresses = servers(sharing(3), OK).await;
    let (clean, document) = probed(&addresses, &[]).await;
    assert!(clean);
    assert_eq!(outcomes(&document, "tls12-ticket"), ["resumed"; 9]);
    assert_eq!(outcomes(&document, "tls13-ticket"), ["resumed"; 9]);
    assert_eq!(document["summary"]["resumed"], 18);
    let trial = &document["matrices"][0]["fresh"][1];
    assert_eq!(trial["issuer"], addresses[0].to_string());
    assert_eq!(trial["resumer"], addresses[1].to_string());
    assert_eq!(trial["resumerAnswer"]["httpStatus"], 200);
    assert!(
        trial["issuerAnswer"]["handshakeSeconds"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0)
    );
}

#[tokio::test]
async fn openssl_servers_with_keys_of_their_own_miss() {
    let (dir, certificate) = (TestDir::new(), certificate());
    let chain = dir.write("chain.pem", &certificate.cert.pem());
    let key = dir.write("key.pem", &certificate.signing_key.serialize_pem());
    let servers = [
        OpenSsl::start(&chain, &key, &[]),
        OpenSsl::start(&chain, &key, &[]),
    ];
    let addresses = servers.each_ref().map(|server| server.address);
    let (clean, document) = probed(&addresses, &[]).await;
    assert!(!clean);
    for mechanism in ["tls12-ticket", "tls13-ticket"] {
        assert_eq!(
            outcomes(&document, mechanism),
            ["resumed", "missed", "missed", "resumed"],
            "{mechanism}"
        );
    }
    assert_eq!(document["summary"]["missed"], 4);
}

#[tokio::test]
async fn a_server_without_tickets_is_distinguished_from_one_that_misses() {
    let mut configs = sharing(1);
    configs.push(server_config(&certificate(), Tickets::Ids));
    let (clean, document) = probed(&servers(configs, OK).await, &[]).await;
    assert!(!clean);
    // A ticket is not resumed even at the issuer, which would resume the session by its id.
    for mechanism in ["tls12-ticket", "tls13-ticket"] {
        assert_eq!(
            outcomes(&document, mechanism),
            ["resumed", "missed", "noSession", "noSession"],
            "{mechanism}"
        );
    }
}

#[tokio::test]
async fn connections_that_do_not_work_are_failures_with_a_cause() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let refused = closed.local_addr().expect("bound");
    drop(closed);
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let addresses = [refused, silent.local_addr().expect("bound")];
    let (clean, document) = probed(&addresses, &["--timeout=200ms", "--mechanism=tls13-ticket"]).await;
    assert!(!clean);
    let fresh = &document["matrices"][0]["fresh"];
    let why = |cell: usize| fresh[cell]["why"].as_str().unwrap_or_default().to_owned();
    assert_eq!(document["summary"]["failed"], 4);
    assert!(
        why(0).contains(&format!("{refused}: failed to connect")),
        "{}",
        why(0)
    );
    assert!(why(2).contains("TLS handshake failed: timed out"), "{}", why(2));
}

#[tokio::test]
async fn certificates_are_verified_only_when_asked_for() {
    let dir = TestDir::new();
    let (mine, other) = (certificate(), certificate());
    let mine_file = format!("--ca-file={}", dir.write("mine.pem", &mine.cert.pem()));
    let other_file = format!("--ca-file={}", dir.write("other.pem", &other.cert.pem()));
    let ticketer = Ticketer::new().expect("a ticketer");
    let addresses = servers(vec![server_config(&mine, Tickets::Shared(ticketer))], OK).await;
    assert!(probed(&addresses, &[&mine_file]).await.0);
    let (clean, document) = probed(&addresses, &[&other_file]).await;
    assert!(!clean);
    let why = document["matrices"][0]["fresh"][0]["why"].to_string();
    assert!(why.contains("certificate"), "{why}");

    let broken = format!("--ca-file={}", dir.write("broken.pem", "no certificate"));
    let args = probe_arguments(&addresses, &[&broken]);
    let error = probe(&args, Output::new(Vec::new(), Style::Json))
        .await
        .expect_err("refused");
    assert!(matches!(error, ProbeError::CaFile { .. }), "{error}");
}

#[tokio::test]
async fn a_resumed_session_with_a_failing_backend_is_not_clean() {
    let unavailable = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    let (clean, document) = probed(&servers(sharing(1), unavailable).await, &[]).await;
    assert!(!clean);
    assert_eq!(outcomes(&document, "tls13-ticket"), ["resumed"]);
    assert_eq!(document["summary"]["serverErrors"], 4);
}

/// The farm that `args` describe, and the means to probe it.
async fn prepared(args: &ProbeArgs) -> (super::Exchanger, Vec<target::TargetFarm>) {
    let exchanger = super::Exchanger {
        clients: super::clients(args).expect("clients"),
        path: args.path.clone(),
        timeout: Duration::from_secs(5),
    };
    let targets = super::targets(args).await.expect("addresses");
    (exchanger, targets.look().await.expect("addresses"))
}

fn older(matrices: &[Matrix]) -> Counts {
    Counts::of(matrices.iter().flat_map(|matrix| &matrix.older))
}

#[tokio::test]
async fn sessions_of_earlier_rounds_reveal_keys_dropped_too_soon() {
    let certificate = certificate();
    let with_key = |ticketer: &Arc<dyn ProducesTickets>| {
        Arc::new(server_config(&certificate, Tickets::Shared(ticketer.clone())))
    };
    let old = Ticketer::new().expect("a ticketer");
    let config = Arc::new(ArcSwap::new(with_key(&old)));
    let addresses = [serve(config.clone(), OK).await, serve(config.clone(), OK).await];
    let (exchanger, farms) = prepared(&probe_arguments(&addresses, &[])).await;
    let mut kept = KeptSessions::default();

    kept.begin(1, std::time::Instant::now());
    let first = matrix::round(&exchanger, &farms, Some(&mut kept)).await;
    assert_eq!(older(&first), Counts::default());

    kept.begin(2, std::time::Instant::now());
    let second = matrix::round(&exchanger, &farms, Some(&mut kept)).await;
    // Two mechanisms, two issuers, two resumers.
    assert_eq!((older(&second).offered, older(&second).resumed), (8, 8));

    config.store(with_key(&Ticketer::new().expect("a ticketer")));
    kept.begin(3, std::time::Instant::now());
    let third = matrix::round(&exchanger, &farms, Some(&mut kept)).await;
    assert_eq!((older(&third).offered, older(&third).missed), (8, 8));
    assert!(third.iter().all(|matrix| Counts::of(&matrix.fresh).is_clean()));
    let trial = &third[0].older[0];
    assert!(trial.earlier.as_ref().is_some_and(|earlier| earlier.round < 3));
}

#[tokio::test]
async fn a_removed_proxy_is_not_a_failure_and_its_sessions_still_resume() {
    let addresses = servers(sharing(2), OK).await;
    let (exchanger, mut farms) = prepared(&probe_arguments(&addresses, &[])).await;
    let mut kept = KeptSessions::default();
    kept.begin(1, std::time::Instant::now());
    matrix::round(&exchanger, &farms, Some(&mut kept)).await;

    let gone = farms[0].proxies.remove(0);
    kept.begin(2, std::time::Instant::now());
    let matrices = matrix::round(&exchanger, &farms, Some(&mut kept)).await;
    let of_gone = |matrix: &Matrix| {
        let resumed = matrix
            .older
            .iter()
            .filter(|trial| trial.outcome == TrialOutcome::Resumed);
        resumed.filter(|trial| trial.issuer == gone.name).count()
    };
    assert_eq!(matrices.iter().map(of_gone).collect::<Vec<_>>(), [1, 1]);

    // A proxy that is listed but refuses connections: a failure while it is ready, nothing when it is not.
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    farms[0].proxies[0].address = closed.local_addr().expect("bound");
    drop(closed);
    let mut matrices = matrix::round(&exchanger, &farms, None).await;
    matrix::excuse_gone(&mut matrices, &target::ids(&farms));
    assert!(
        matrices
            .iter()
            .all(|matrix| Counts::of(&matrix.fresh).failed == 1)
    );
    matrix::excuse_gone(&mut matrices, &target::ids(&[]));
    assert!(matrices.iter().all(|matrix| Counts::of(&matrix.fresh).gone == 1));
}

#[tokio::test]
async fn watching_ends_after_its_rounds_with_a_summary() {
    let addresses = servers(sharing(2), OK).await;
    let args = probe_arguments(&addresses, &["--watch", "--interval=0", "--count=4"]);
    let mut out = Vec::new();
    assert!(
        probe(&args, Output::new(&mut out, Style::Json))
            .await
            .expect("probed")
    );
    let text = String::from_utf8(out).expect("UTF-8");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line["type"].as_str()).collect();
    assert_eq!(kinds, ["round", "round", "round", "round", "summary"]);
    assert_eq!(lines[4]["fresh"]["resumed"], 32);
    assert_eq!(lines[4]["older"]["resumed"], 24);
    assert_eq!(lines[4]["older"]["missed"], 0);

    let mut out = Vec::new();
    assert!(
        probe(&args, Output::new(&mut out, Style::Plain))
            .await
            .expect("probed")
    );
    let text = String::from_utf8(out).expect("UTF-8");
    assert!(
        text.contains("round 4  2 proxies  fresh 8/8  older 8/8"),
        "{text}"
    );
    assert!(text.contains("4 rounds in"), "{text}");
}

#[test]
fn wrong_usage_is_refused() {
    let refused = |args: &[&str]| arguments(args).expect_err("refused").to_string();
    assert!(
        refused(&["shop", "--address=127.0.0.1:443", "--server-name=a.b"]).contains("cannot be used with")
    );
    assert!(refused(&["--address=localhost:https", "--server-name=a.b"]).contains("localhost:https"));
    assert!(refused(&["--server-name=a b"]).contains("DNS name"));
    assert!(refused(&["--count=3"]).contains("--watch"));
    assert!(refused(&["--path=index.html"]).contains("begins with /"));
    assert!(arguments(&["shop", "-n", "a,b", "--watch", "--interval=0"]).is_ok());
}

#[test]
fn a_single_target_name_is_the_server_name_and_otherwise_one_is_required() {
    let names = |args: &[&str]| {
        let names = super::server_names(&arguments(args).expect("valid"));
        names.map(|names| {
            names
                .iter()
                .map(|name| name.to_str().into_owned())
                .collect::<Vec<_>>()
        })
    };
    let of_name = names(&["--address=www.example.com", "--address=www.example.com:8443"]);
    assert_eq!(of_name.expect("one name"), ["www.example.com"]);
    let chosen = names(&["--address=www.example.com", "--server-name=shop.example.com"]);
    assert_eq!(chosen.expect("one name"), ["shop.example.com"]);
    for unclear in [
        &["--address=192.0.2.1"][..],
        &["--address=a.example.com", "--address=b.example.com"],
        &["--address=a.example.com", "--address=192.0.2.1"],
    ] {
        let error = names(unclear).expect_err("refused").to_string();
        assert!(error.contains("--server-name"), "{error}");
    }
}
