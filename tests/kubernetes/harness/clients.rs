//! What speaks to a farm: OpenSSL's client, and a load tool.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{authority_file, run, run_within, scratch, signal, wait_for};

/// Longest time that one connection may take. A client that waits longer has not been served.
const LONGEST_CONNECTION: Duration = Duration::from_secs(20);

/// What OpenSSL's client saw of one connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handshake {
    /// The handshake ended well, with a certificate of that name which the tests' authority signed.
    pub complete: bool,
    pub resumed: bool,
    /// The page came with status 200.
    pub served: bool,
}

/// A TLS version as OpenSSL's client names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    Tls12,
    /// It resumes by session id only.
    Tls12WithoutTickets,
    Tls13,
}

/// Connects with OpenSSL's client and asks for `/`; saves the session to one file and offers that of another.
pub fn s_client(
    address: SocketAddr,
    hostname: &str,
    version: Version,
    save: Option<&Path>,
    offer: Option<&Path>,
) -> Handshake {
    let address = address.to_string();
    let mut args = vec!["s_client", "-connect", &address, "-ign_eof"];
    args.extend(["-servername", hostname]);
    args.extend(verifying(hostname));
    args.push(match version {
        Version::Tls12 | Version::Tls12WithoutTickets => "-tls1_2",
        Version::Tls13 => "-tls1_3",
    });
    if version == Version::Tls12WithoutTickets {
        args.push("-no_ticket");
    }
    if let Some(path) = save {
        args.extend(["-sess_out", path.to_str().expect("UTF-8")]);
    }
    if let Some(path) = offer {
        args.extend(["-sess_in", path.to_str().expect("UTF-8")]);
    }
    let request = format!("GET / HTTP/1.1\r\nHost: {hostname}\r\nConnection: close\r\n\r\n");
    let seen = run_within(LONGEST_CONNECTION, "openssl", &args, Some(&request));
    Handshake::read(&seen.unwrap_or_else(|error| error), version)
}

/// Options with which OpenSSL's client goes on only with a certificate of this name which the tests' authority signed.
fn verifying(hostname: &str) -> [&str; 5] {
    let authority = authority_file().to_str().expect("UTF-8");
    [
        "-CAfile",
        authority,
        "-verify_return_error",
        "-verify_hostname",
        hostname,
    ]
}

impl Handshake {
    /// Reads what OpenSSL's client printed. Lines must be what they are meant to be, since everything else is printed
    /// too: names, headers, the page.
    fn read(output: &str, version: Version) -> Self {
        let protocol = match version {
            Version::Tls12 | Version::Tls12WithoutTickets => "TLSv1.2",
            Version::Tls13 => "TLSv1.3",
        };
        let count = |wanted: &str| output.lines().filter(|line| *line == wanted).count();
        let agreed = |kind: &str| {
            let start = format!("{kind}, {protocol}, Cipher is ");
            let ciphers = output.lines().filter_map(|line| line.strip_prefix(&start));
            ciphers.filter(|cipher| *cipher != "(NONE)").count()
        };
        let (full, resumed) = (agreed("New"), agreed("Reused"));
        let complete = full + resumed == 1 && count("Verification: OK") == 1;
        Self {
            complete,
            resumed: complete && resumed == 1,
            served: complete && count("HTTP/1.1 200 OK") == 1,
        }
    }
}

/// A constant stream of HTTPS requests from a load tool, for as long as it lives.
pub struct Load {
    child: Child,
    results: PathBuf,
    rate: u32,
    begun: Instant,
}

impl Load {
    /// Starts `rate` requests a second to `hostname` at an address with a port, for at most `limit`: over connections that are kept, or
    /// each over a connection of its own.
    pub fn start(
        name: &str,
        hostname: &str,
        address: &str,
        rate: u32,
        keep_alive: bool,
        limit: Duration,
    ) -> Self {
        let results = scratch(name).join(format!("results-{keep_alive}.bin"));
        let child = Command::new("vegeta")
            .arg("attack")
            .args(["-timeout=10s", "-max-connections=32"])
            .arg(format!("-root-certs={}", authority_file().display()))
            .arg(format!("-keepalive={keep_alive}"))
            .arg(format!("-rate={rate}/s"))
            .arg(format!("-duration={}s", limit.as_secs()))
            .arg(format!("-connect-to={hostname}:443:{address}"))
            .arg(format!("-output={}", results.display()))
            .stdin(Stdio::piped())
            .spawn()
            .expect("the load tool is on the PATH of `tests/cluster/cluster env`");
        let mut load = Self {
            child,
            results,
            rate,
            begun: Instant::now(),
        };
        let target = format!("GET https://{hostname}/\n");
        load.child
            .stdin
            .take()
            .expect("piped")
            .write_all(target.as_bytes())
            .expect("the load tool reads targets");
        load
    }

    /// Lets the load come to its own end; returns the number of requests and the failures in words.
    pub fn finish(mut self) -> (u64, Vec<String>) {
        wait_for("the load to end", Duration::from_secs(60), || {
            self.child.try_wait().expect("our child")
        });
        self.report()
    }

    /// Ends the load; returns the number of requests and the failures in words. A load that fell behind its rate shows
    /// nothing, and is a fault of the test.
    pub fn stop(mut self) -> (u64, Vec<String>) {
        let due = self.begun.elapsed().as_secs() * u64::from(self.rate);
        signal(self.child.id(), "INT");
        // Requests in flight have ten seconds.
        wait_for("the load tool to end", Duration::from_secs(30), || {
            self.child.try_wait().expect("our child")
        });
        let (requests, failures) = self.report();
        assert!(
            requests >= due * 8 / 10,
            "failures: {failures:?}; {requests} requests were sent, {due} were due"
        );
        (requests, failures)
    }

    fn report(&self) -> (u64, Vec<String>) {
        let results = self.results.to_str().expect("UTF-8");
        let report =
            run("vegeta", &["report", "-type=json", results], None).unwrap_or_else(|error| panic!("{error}"));
        let report: Value = serde_json::from_str(&report).expect("JSON");
        let mut failures: Vec<String> = report["errors"]
            .as_array()
            .map(|errors| {
                errors
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default();
        for (code, count) in report["status_codes"].as_object().expect("codes") {
            if code != "200" {
                failures.push(format!("{count} answers with code {code}"));
            }
        }
        (report["requests"].as_u64().expect("a number"), failures)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

mod tests {
    use std::io::{BufRead as _, BufReader, Lines};
    use std::process::ChildStdout;

    use super::*;
    use crate::harness::{certificate, certificate_of_a_stranger};

    const NAME: &str = "shop.example.com";

    #[test]
    fn every_client_refuses_a_certificate_of_another_authority_or_of_another_name() {
        let good = certificate(&[NAME], 2000..2100);
        let strange = certificate_of_a_stranger(&[NAME]);
        let misnamed = certificate(&["bank.example.com"], 2000..2100);
        let expired = certificate(&[NAME], 2000..2001);
        for (kind, (certificate, key), accepted) in [
            ("good", good, true),
            ("strange", strange, false),
            ("misnamed", misnamed, false),
            ("expired", expired, false),
        ] {
            let server = Server::start(kind, &certificate, &key);
            for version in [Version::Tls12, Version::Tls13] {
                let seen = s_client(server.address, NAME, version, None, None);
                assert_eq!(seen.complete, accepted, "OpenSSL, a {kind} certificate: {seen:?}");
            }
            let address = server.address.to_string();
            let load = Load::start(kind, NAME, &address, 5, false, Duration::from_secs(1));
            let (requests, failures) = load.finish();
            assert_eq!(requests, 5);
            assert_eq!(
                failures.is_empty(),
                accepted,
                "the load tool, a {kind} certificate: {failures:?}"
            );
            let authority = authority_file().to_str().expect("UTF-8");
            let probe = [
                "probe",
                "--address",
                &address,
                "--server-name",
                NAME,
                "--mechanism",
                "tls13-ticket",
                "--ca-file",
                authority,
            ];
            let probed = run(env!("CARGO_BIN_EXE_tlsfarm"), &probe, None);
            assert_eq!(
                probed.is_ok(),
                accepted,
                "the probe, a {kind} certificate: {probed:?}"
            );
        }
    }

    #[test]
    fn a_handshake_is_read_from_whole_lines_only() {
        let lines = |kind: &str, status: &str| {
            format!(
                "CONNECTED(00000003)\n---\nVerification: OK\n---\n{kind}\n---\n{status}\r\n\r\nReused, at last\n"
            )
        };
        let read = |kind: &str, status: &str| {
            let seen = Handshake::read(&lines(kind, status), Version::Tls13);
            (seen.complete, seen.resumed, seen.served)
        };
        let full = "New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256";
        let resumed = "Reused, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256";
        let ok = "HTTP/1.1 200 OK";
        assert_eq!(read(full, ok), (true, false, true));
        assert_eq!(read(resumed, ok), (true, true, true));
        assert_eq!(
            read(resumed, "HTTP/1.1 503 Service Unavailable"),
            (true, true, false)
        );
        assert_eq!(read("New, (NONE), Cipher is (NONE)", ok), (false, false, false));
        assert_eq!(
            read("New, TLSv1.2, Cipher is ECDHE-ECDSA-AES128-GCM-SHA256", ok),
            (false, false, false)
        );
        assert_eq!(read(&format!("x-said: {resumed}"), ok), (false, false, false));
        assert_eq!(read(full, "x-said: HTTP/1.1 200 OK"), (true, false, false));
        let unverified = lines(resumed, ok).replace(": OK", " error: self-signed certificate");
        assert!(!Handshake::read(&unverified, Version::Tls13).complete);
    }

    /// OpenSSL's server with one certificate. Whatever it is asked for, it answers with status 200.
    struct Server {
        child: Child,
        address: SocketAddr,
        /// It ends when nobody reads what it prints.
        _printed: Lines<BufReader<ChildStdout>>,
    }

    impl Server {
        fn start(name: &str, certificate: &str, key: &str) -> Self {
            let file = scratch(&format!("server-{name}")).join("server.pem");
            std::fs::write(&file, [certificate, key].concat()).expect("written");
            let mut child = Command::new("openssl")
                .args(["s_server", "-accept", "127.0.0.1:0", "-WWW", "-cert"])
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("openssl is installed");
            let mut printed = BufReader::new(child.stdout.take().expect("piped")).lines();
            let address = printed
                .by_ref()
                .map_while(Result::ok)
                .find_map(|line| line.strip_prefix("ACCEPT ")?.parse().ok())
                .expect("the server prints its address or exits");
            Self {
                child,
                address,
                _printed: printed,
            }
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
