//! Sessions that servers keep: nginx, whose ports share a cache or do not, and OpenSSL, which uses tickets up only when
//! it guards early data.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{OpenSsl, certificate, outcomes, probe_arguments, probed};
use crate::probe::output::{Output, Style};
use crate::probe::probe;
use crate::runtime::test_dir::TestDir;

/// nginx with two ports and TLS 1.2 without tickets.
struct Nginx {
    process: Child,
    addresses: [SocketAddr; 2],
}

impl Nginx {
    fn start(dir: &TestDir, caches: [&str; 2]) -> Self {
        let (chain, key) = files(dir);
        let addresses = free_addresses();
        let [first, second] = addresses.map(|address| address.to_string());
        let server = |address: &str, cache: &str| {
            format!(
                "server {{ listen {address} ssl; ssl_session_cache {cache}; location / {{ return 200 ok; }} }}"
            )
        };
        let servers = [server(&first, caches[0]), server(&second, caches[1])].concat();
        let config = dir.write(
            "nginx.conf",
            &format!(
                "daemon off; master_process off; pid nginx.pid; error_log stderr;
                events {{}}
                http {{
                    access_log off;
                    client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
                    ssl_certificate {chain}; ssl_certificate_key {key};
                    ssl_protocols TLSv1.2; ssl_session_tickets off;
                    {servers}
                }}"
            )
        );
        let process = Command::new("/usr/sbin/nginx")
            .args(["-p", dir.to_str().expect("UTF-8"), "-c", &config])
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed");
        let deadline = Instant::now() + Duration::from_secs(10);
        while addresses
            .iter()
            .any(|address| TcpStream::connect(address).is_err())
        {
            assert!(Instant::now() < deadline, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, addresses }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_addresses() -> [SocketAddr; 2] {
    let held = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound"));
    held.each_ref()
        .map(|listener| listener.local_addr().expect("bound"))
}

/// The files of a certificate and its key.
fn files(dir: &TestDir) -> (String, String) {
    let certificate = certificate();
    let chain = dir.write("chain.pem", &certificate.cert.pem());
    (
        chain,
        dir.write("key.pem", &certificate.signing_key.serialize_pem()),
    )
}

#[tokio::test]
async fn session_ids_resume_where_the_cache_is_shared() {
    let dir = TestDir::new();
    let nginx = Nginx::start(&dir, ["shared:sessions:1m"; 2]);
    let (clean, document) = probed(&nginx.addresses, &["--mechanisms=tls12-session-id,tls12-ticket"]).await;
    assert_eq!(outcomes(&document, "tls12-session-id"), ["resumed"; 4]);
    assert_eq!(
        outcomes(&document, "tls12-ticket"),
        ["noSession"; 4],
        "an id is not a ticket"
    );
    assert!(!clean);
}

#[tokio::test]
async fn session_ids_miss_where_each_server_has_its_own_cache() {
    let dir = TestDir::new();
    let nginx = Nginx::start(&dir, ["shared:first:1m", "shared:second:1m"]);
    let (clean, document) = probed(&nginx.addresses, &["--mechanism=tls12-session-id"]).await;
    assert!(!clean);
    assert_eq!(
        outcomes(&document, "tls12-session-id"),
        ["resumed", "missed", "missed", "resumed"]
    );
}

#[tokio::test]
async fn a_server_without_session_ids_is_distinguished_from_one_that_misses() {
    let dir = TestDir::new();
    let nginx = Nginx::start(&dir, ["off"; 2]);
    let (_, document) = probed(&nginx.addresses[..1], &["--mechanism=tls12-session-id"]).await;
    assert_eq!(outcomes(&document, "tls12-session-id"), ["noSession"]);
}

#[tokio::test]
async fn a_ticket_that_is_used_up_resumes_once() {
    let dir = TestDir::new();
    let (chain, key) = files(&dir);
    let server = OpenSsl::start(&chain, &key, &["-max_early_data", "16384"]);
    let (clean, document) = probed(&[server.address], &["--mechanism=tls13-single-use"]).await;
    assert!(clean, "{document}");
    assert_eq!(outcomes(&document, "tls13-single-use"), ["resumed"]);
    let trial = &document["matrices"][0]["fresh"][0];
    assert_eq!(trial["offeredAgainTo"], server.address.to_string());
}

#[tokio::test]
async fn a_ticket_that_is_good_for_ever_resumes_twice() {
    let dir = TestDir::new();
    let (chain, key) = files(&dir);
    let server = OpenSsl::start(&chain, &key, &[]);
    let (clean, document) = probed(&[server.address], &["--mechanism=tls13-single-use"]).await;
    assert!(!clean);
    assert_eq!(outcomes(&document, "tls13-single-use"), ["resumedTwice"]);
    assert_eq!(document["summary"]["resumedTwice"], 1);

    let args = probe_arguments(&[server.address], &["--mechanism=tls13-single-use"]);
    let mut out = Vec::new();
    probe(&args, Output::new(&mut out, Style::Plain))
        .await
        .expect("probed");
    let (text, address) = (String::from_utf8(out).expect("UTF-8"), server.address);
    let said =
        format!("resumed twice: session of {address} at {address}: resumed there and again at {address}");
    assert!(
        text.contains("TLS 1.3 single-use  0/1") && text.contains(&said),
        "{text}"
    );
}
