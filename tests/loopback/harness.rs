//! What all tests here need: a directory with the files of a farm, proxies that use them, a backend and clients.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use socket2::{Domain, Socket, Type};
use tlsfarm::api::{HttpMode, MinVersion, TicketKind};
use tlsfarm::config::{self, Backend, Listen, ProxyConfig, RouteConfig, TicketConfig, Timeouts};
use tlsfarm::report::ProxyReport;
use tlsfarm::ring::{KeySecret, Ring, RotationPolicy};

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const POLICY: RotationPolicy = RotationPolicy {
    rotation_interval: SignedDuration::from_hours(1),
    lifetime: SignedDuration::from_hours(4),
    max_unacked_wait: SignedDuration::from_mins(10),
};

/// Waits until `condition` gives something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The files of one farm: hosts `shop` and `blog`, each with a certificate, and a ring.
pub struct Farm {
    pub dir: PathBuf,
    name: String,
    backend: SocketAddr,
    authority: CertifiedIssuer<'static, KeyPair>,
    started: AtomicUsize,
}

impl Farm {
    pub fn new(name: &str) -> Self {
        static FARMS: AtomicUsize = AtomicUsize::new(0);
        let number = FARMS.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tlsfarm-loopback-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory of our own");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "authority of the tests");
        let key = KeyPair::generate().expect("generated");
        let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
        let farm = Self {
            dir,
            name: name.into(),
            backend: start_backend(),
            authority,
            started: AtomicUsize::new(0),
        };
        fs::write(farm.ca_file(), farm.authority.pem()).expect("written");
        for (host, names) in HOSTS {
            farm.put_certificate(host, &farm.issue(names));
        }
        farm.put_ring(&new_ring());
        farm
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    pub fn ring_file(&self) -> PathBuf {
        self.dir.join("ring.json")
    }

    pub fn certificate_files(&self, host: &str) -> [PathBuf; 2] {
        ["crt", "key"].map(|ending| self.dir.join(format!("{host}.{ending}")))
    }

    pub fn put_ring(&self, ring: &Ring) {
        put(&self.ring_file(), &ring.to_document());
    }

    /// A chain and its key for some names, valid now.
    pub fn issue(&self, names: &[&str]) -> [String; 2] {
        self.issue_until(names, Timestamp::now() + SignedDuration::from_hours(24 * 30))
    }

    pub fn issue_until(&self, names: &[&str], until: Timestamp) -> [String; 2] {
        self.sign(&KeyPair::generate().expect("generated"), names, until)
    }

    /// The same for a key of any kind.
    pub fn issue_with(&self, key: &KeyPair, names: &[&str]) -> [String; 2] {
        self.sign(key, names, Timestamp::now() + SignedDuration::from_hours(24 * 30))
    }

    fn sign(&self, key: &KeyPair, names: &[&str], until: Timestamp) -> [String; 2] {
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        let mut params = CertificateParams::new(names).expect("valid names");
        let time = |time: Timestamp| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(time.as_second().unsigned_abs())
        };
        params.not_before = time(until - SignedDuration::from_hours(24 * 60));
        params.not_after = time(until);
        let certificate = params.signed_by(key, &self.authority).expect("signed");
        [certificate.pem(), key.serialize_pem()]
    }

    pub fn put_certificate(&self, host: &str, pair: &[String; 2]) {
        for (file, text) in self.certificate_files(host).iter().zip(pair) {
            put(file, text.as_bytes());
        }
    }

    /// The configuration, but for the addresses to listen on.
    pub fn config(&self) -> ProxyConfig {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        ProxyConfig {
            version: config::VERSION,
            farm: self.name.clone(),
            listen: Listen {
                https: nowhere,
                http: Some(nowhere),
                admin: nowhere,
            },
            ring: self.ring_file(),
            tickets: TicketConfig {
                lifetime: "4h".parse().expect("valid"),
                max_age: "24h".parse().expect("valid"),
                tls12_lifetime: Some("2h".parse().expect("valid")),
                rotation_interval: Some("1h".parse().expect("valid")),
            },
            session_cache: None,
            http: HttpMode::Redirect,
            hosts: HOSTS.map(|(host, names)| self.host(host, names)).into(),
            trusted_proxies: Vec::new(),
            drain_period: "20s".parse().expect("valid"),
            timeouts: Timeouts {
                handshake: "2s".parse().expect("valid"),
                ..Timeouts::default()
            },
        }
    }

    fn host(&self, name: &str, hostnames: &[&str]) -> config::HostConfig {
        let [certificate, key] = self.certificate_files(name);
        config::HostConfig {
            name: name.into(),
            hostnames: hostnames.iter().map(|name| (*name).into()).collect(),
            min_version: MinVersion::TLS12,
            ticket_kind: TicketKind::Stateless,
            certificates: vec![config::CertificateConfig {
                name: format!("{name}-tls"),
                certificate,
                key,
            }],
            routes: vec![RouteConfig {
                path: "/".into(),
                backend: Backend::Addresses(vec![self.backend]),
            }],
        }
    }

    /// Starts a proxy and waits until it is ready.
    pub fn start(&self) -> Proxy {
        let proxy = self.start_with(self.config());
        wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
        proxy
    }

    /// Starts a proxy with another configuration and waits until its admin port answers.
    pub fn start_with(&self, config: ProxyConfig) -> Proxy {
        self.start_command(config, Command::new(env!("CARGO_BIN_EXE_tlsfarm")))
    }

    /// The same with room for so many open files only.
    pub fn start_with_files(&self, config: ProxyConfig, open_files: u32) -> Proxy {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("ulimit -n {open_files}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_tlsfarm"));
        self.start_command(config, shell)
    }

    /// The same by a command that takes what the program takes.
    pub fn start_command(&self, mut config: ProxyConfig, mut command: Command) -> Proxy {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let (https, http, admin) = (Reserved::new(), Reserved::new(), Reserved::new());
        config.listen = Listen {
            https: https.address,
            http: Some(http.address),
            admin: admin.address,
        };
        let config_file = self.dir.join(format!("proxy-{number}.json"));
        put_config(&config_file, &config);
        let log = self.dir.join(format!("proxy-{number}.log"));
        let child = command
            .args(["proxy", "--log-format", "json", "--config"])
            .arg(&config_file)
            .stderr(fs::File::create(&log).expect("created"))
            .spawn()
            .expect("started");
        let mut proxy = Proxy {
            https: https.address,
            http: http.address,
            config,
            config_file,
            child,
            admin: admin.address,
            log,
            _reserved: [https, http, admin],
        };
        // Wait for an answer: the admin port accepts connections before the traffic ports exist.
        wait_for("an answer of the admin port", || {
            let ended = proxy.child.try_wait().expect("our child");
            assert!(ended.is_none(), "the proxy ended: {}", proxy.log());
            (proxy.get("/healthz").0 == 200).then_some(())
        });
        proxy
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

const HOSTS: [(&str, &[&str]); 2] = [("shop", &["shop.test", "*.shop.test"]), ("blog", &["blog.test"])];

pub fn new_ring() -> Ring {
    let secret = || KeySecret::generate().expect("the system has randomness");
    Ring::new(1, secret(), secret(), &POLICY, Timestamp::now())
}

pub fn rotated(ring: Ring) -> Ring {
    let fresh = KeySecret::generate().expect("the system has randomness");
    ring.rotated(fresh, None, &POLICY, Timestamp::now())
}

/// Replaces a file in one step.
pub fn put(file: &Path, content: &[u8]) {
    let fresh = file.with_extension("new");
    fs::write(&fresh, content).expect("written");
    fs::rename(&fresh, file).expect("renamed");
}

pub fn put_config(file: &Path, config: &ProxyConfig) {
    put(file, &serde_json::to_vec(config).expect("serializes"));
}

/// A running proxy.
pub struct Proxy {
    pub https: SocketAddr,
    pub http: SocketAddr,
    pub config: ProxyConfig,
    pub config_file: PathBuf,
    pub admin: SocketAddr,
    child: Child,
    log: PathBuf,
    _reserved: [Reserved; 3],
}

impl Proxy {
    /// Asks the admin port; 0 stands for no answer.
    pub fn get(&self, path: &str) -> (u16, String) {
        get_page(self.admin, path)
    }

    pub fn report(&self) -> ProxyReport {
        let (status, body) = self.get("/status");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("a report")
    }

    /// The value of a series, as it stands in `/metrics`; 0 when there is none.
    pub fn metric(&self, series: &str) -> u64 {
        value_of(series, &self.get("/metrics").1)
    }

    pub fn signal(&self, signal: &str) {
        send_signal(&self.child, signal);
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the proxy", || {
            self.child.try_wait().expect("our child")
        })
    }

    /// Memory that it takes, in bytes.
    pub fn resident(&self) -> usize {
        resident(&self.child)
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_some()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log is readable")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if thread::panicking() {
            eprintln!("--- log of {}:\n{log}", self.https);
        } else {
            assert!(!log.contains("\"ERROR\"") && !log.contains("panicked"), "{log}");
        }
    }
}

/// Asks an admin port; 0 stands for no answer.
pub fn get_page(admin: SocketAddr, path: &str) -> (u16, String) {
    get_page_within(admin, path, PATIENCE)
}

/// The same, with a limit for each wait.
pub fn get_page_within(admin: SocketAddr, path: &str, limit: Duration) -> (u16, String) {
    let answer = || {
        let (head, body) = get_answer(admin, path, "", limit)?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body))
    };
    answer().unwrap_or_default()
}

/// Head and body of the answer of an admin port to a request with these header lines, each with its line end.
pub fn get_answer(admin: SocketAddr, path: &str, headers: &str, limit: Duration) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(admin).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n{headers}\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

/// The value of a series in a page of metrics; 0 when there is none.
pub fn value_of(series: &str, metrics: &str) -> u64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a whole number"))
}

/// Memory that a process takes, in bytes.
pub fn resident(child: &Child) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.expect("a number") * 1024
}

pub fn send_signal(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &child.id().to_string()])
        .status();
    assert!(sent.expect("kill runs").success());
}

/// A port that stays ours as long as this lives: bound, never listened on, and shared with one server alone.
pub struct Reserved {
    pub address: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("settable");
        socket.set_reuse_port(true).expect("settable");
        socket
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .expect("a free port");
        let address = socket
            .local_addr()
            .expect("bound")
            .as_socket()
            .expect("an address");
        Self {
            address,
            _socket: socket,
        }
    }
}

/// Every path that a backend of any test was asked for.
static PATHS_SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether a request for this path ever reached a backend.
pub fn backend_saw(path: &str) -> bool {
    PATHS_SEEN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .contains(path)
}

/// A backend that answers every request with `page of PATH` and keeps connections open.
fn start_backend() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve_backend(stream));
        }
    });
    address
}

fn serve_backend(mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).ok()? == 0 {
            return None;
        }
        let path = request.split(' ').nth(1)?.to_owned();
        let mut header = String::new();
        while reader.read_line(&mut header).ok()? > 2 {
            header.clear();
        }
        let page = format!("page of {path}");
        PATHS_SEEN
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path);
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}",
            page.len()
        )
        .ok()?;
    }
}

/// What OpenSSL's `s_client` saw.
pub struct Visit {
    pub reused: bool,
    pub output: String,
}

/// Fetches `/` with OpenSSL's `s_client`. Further arguments say which version to speak and which session to use.
pub fn visit(farm: &Farm, proxy: SocketAddr, name: &str, arguments: &[&str]) -> Visit {
    visit_with(farm, proxy, name, |client| client.args(arguments))
}

/// The same with anything that a command can be given.
pub fn visit_with(
    farm: &Farm,
    proxy: SocketAddr,
    name: &str,
    configure: impl FnOnce(&mut Command) -> &mut Command,
) -> Visit {
    // s_client would wait for ever for a silent server.
    let mut client = Command::new("timeout");
    client
        .args([&PATIENCE.as_secs().to_string(), "openssl"])
        .args(["s_client", "-ign_eof", "-verify_return_error", "-CAfile"])
        .arg(farm.ca_file())
        .args(["-connect", &proxy.to_string(), "-servername", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut client = configure(&mut client).spawn().expect("openssl is installed");
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    // The client may have exited already because it could not connect.
    let _ = client.stdin.take().expect("piped").write_all(request.as_bytes());
    let output = client.wait_with_output().expect("the process exits");
    let output = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Visit {
        reused: output.contains("\nReused, TLS"),
        output,
    }
}

impl Visit {
    /// Whether the page came; resumed or not.
    pub fn served(&self) -> bool {
        self.output.contains("page of /")
    }
}
