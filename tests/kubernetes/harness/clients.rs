//! What speaks to a farm: OpenSSL's client, and a load tool.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{run, scratch};

/// What OpenSSL's client saw of one connection.
#[derive(Debug)]
pub struct Handshake {
    pub resumed: bool,
    pub served: bool,
}

/// A TLS version as OpenSSL's client names it.
#[derive(Clone, Copy, Debug)]
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
    let mut args = vec![
        "s_client",
        "-connect",
        &address,
        "-servername",
        hostname,
        "-ign_eof",
    ];
    args.push(match version {
        Version::Tls12 | Version::Tls12WithoutTickets => "-tls1_2",
        Version::Tls13 => "-tls1_3",
    });
    if matches!(version, Version::Tls12WithoutTickets) {
        args.push("-no_ticket");
    }
    if let Some(path) = save {
        args.extend(["-sess_out", path.to_str().expect("UTF-8")]);
    }
    if let Some(path) = offer {
        args.extend(["-sess_in", path.to_str().expect("UTF-8")]);
    }
    let request = format!("GET / HTTP/1.1\r\nHost: {hostname}\r\nConnection: close\r\n\r\n");
    let seen = run("openssl", &args, Some(&request)).unwrap_or_else(|error| error);
    Handshake {
        resumed: seen.contains("\nReused, "),
        served: seen.contains("HTTP/1.1 200"),
    }
}

/// A constant stream of HTTPS requests from a load tool, for as long as it lives.
pub struct Load {
    child: Child,
    results: PathBuf,
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
            .args(["-insecure", "-timeout=10s", "-max-connections=32"])
            .arg(format!("-keepalive={keep_alive}"))
            .arg(format!("-rate={rate}/s"))
            .arg(format!("-duration={}s", limit.as_secs()))
            .arg(format!("-connect-to={hostname}:443:{address}"))
            .arg(format!("-output={}", results.display()))
            .stdin(Stdio::piped())
            .spawn()
            .expect("the load tool is on the PATH of `tests/cluster/cluster env`");
        let mut load = Self { child, results };
        let target = format!("GET https://{hostname}/\n");
        load.child
            .stdin
            .take()
            .expect("piped")
            .write_all(target.as_bytes())
            .expect("the load tool reads targets");
        load
    }

    /// Ends the load; returns the number of requests and the failures in words.
    pub fn stop(mut self) -> (u64, Vec<String>) {
        let pid = self.child.id().to_string();
        let _ = run("kill", &["-INT", &pid], None);
        self.child.wait().expect("the load tool ends");
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
