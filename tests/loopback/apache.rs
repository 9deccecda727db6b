//! Three Apache httpd servers, each with a `tlsfarm cache` of its own beside it, in its default way of speaking Redis.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tlsfarm::config::{self, Backend, CacheConfig, CacheListen, Peers};

use crate::harness::{Farm, Reserved, Visit, put, visit, wait_for};

const HTTPD: &str = "/usr/sbin/apache2";
const MODULES: &str = "/usr/lib/apache2/modules";
const SERVER_NAME: &str = "cache.shop.web.tlsfarm";

/// Longer than any full handshake takes on a busy machine, and shorter than a client would call a stall.
const PROMPT: Duration = Duration::from_secs(2);

/// A session made at any server resumes at every one, in both versions of TLS.
#[test]
fn a_session_made_at_one_httpd_resumes_at_the_others() {
    let servers = HttpdFarm::start();
    for version in ["-tls1_2", "-tls1_3"] {
        for issuer in 0..3 {
            let session = servers.take_session(issuer, version);
            for resumer in 0..3 {
                let visit = servers.offer(resumer, version, &session);
                assert!(
                    visit.reused,
                    "{version} of {issuer} at {resumer}: {}",
                    visit.output
                );
                assert!(visit.served());
            }
        }
    }
}

/// A cache that hangs or is gone takes its own entries with it. No server waits for it but the one beside it.
#[test]
fn a_cache_that_hangs_or_is_gone_costs_the_other_httpds_full_handshakes_only() {
    let mut servers = HttpdFarm::start();
    // Among so many sessions each cache owns some: with three owners, one in 10^5 runs would have none for one of them.
    let sessions: Vec<PathBuf> = (0..30).map(|_| servers.take_session(0, "-tls1_2")).collect();

    servers.caches[2].signal("STOP");
    let resumed = servers.resumed_promptly(0, &sessions);
    assert!(
        (1..30).contains(&resumed),
        "the others' entries are there: {resumed} resumed"
    );

    servers.caches[2].signal("CONT");
    wait_for("all sessions to resume again", || {
        (servers.resumed_promptly(0, &sessions) == 30).then_some(())
    });

    servers.caches[2].kill();
    let resumed = servers.resumed_promptly(0, &sessions);
    assert!(
        (1..30).contains(&resumed),
        "the others' entries are there: {resumed} resumed"
    );
    // The httpd beside the dead cache: pages all the same.
    assert_eq!(servers.resumed_promptly(2, &sessions), 0);
}

struct HttpdFarm {
    farm: Farm,
    caches: Vec<Process>,
    httpds: Vec<(SocketAddr, Process)>,
    _reserved: Vec<Reserved>,
}

/// A process that ends with this.
struct Process(Child);

impl HttpdFarm {
    fn start() -> Self {
        assert!(
            Path::new(HTTPD).exists() && Path::new(MODULES).join("mod_socache_redis.so").exists(),
            "Apache httpd is missing: run tests/packages (Debian package apache2-bin)"
        );
        let farm = Farm::new("web/shop");
        let caches = farm.dir.join("cache");
        fs::create_dir_all(&caches).expect("created");
        let [certificate, key] = farm.issue(&[SERVER_NAME]);
        put(&caches.join("tls.crt"), certificate.as_bytes());
        put(&caches.join("tls.key"), key.as_bytes());

        let reserved: Vec<[Reserved; 4]> = (0..3).map(|_| [(); 4].map(|()| Reserved::new())).collect();
        let members: Vec<SocketAddr> = reserved.iter().map(|[_, peers, ..]| peers.address).collect();
        let mut servers = Self {
            farm,
            caches: Vec::new(),
            httpds: Vec::new(),
            _reserved: Vec::new(),
        };
        for (number, [redis, peers, admin, https]) in reserved.iter().enumerate() {
            let listen = CacheListen {
                unix: None,
                tcp: Some(redis.address),
                admin: admin.address,
            };
            let cache = servers.start_cache(number, listen, peers.address, &members);
            let httpd = servers.start_httpd(number, https.address, redis.address);
            servers.caches.push(cache);
            servers.httpds.push((https.address, httpd));
        }
        for ports in &reserved {
            for port in [&ports[0], &ports[1], &ports[3]] {
                wait_for("a listening port", || {
                    std::net::TcpStream::connect(port.address).ok()
                });
            }
        }
        servers._reserved = reserved.into_iter().flatten().collect();
        servers
    }

    fn start_cache(
        &self,
        number: usize,
        listen: CacheListen,
        peers: SocketAddr,
        members: &[SocketAddr],
    ) -> Process {
        let dir = self.farm.dir.join("cache");
        let config = CacheConfig {
            version: config::VERSION,
            listen,
            size_mib: 16,
            default_lifetime: "1h".parse().expect("valid"),
            encrypt_values: true,
            password: None,
            peers: Some(Peers {
                listen: peers,
                members: Backend::Addresses(members.to_vec()),
                server_name: SERVER_NAME.into(),
                certificate: dir.join("tls.crt"),
                key: dir.join("tls.key"),
                authority: self.farm.ca_file(),
                timeout: "20ms".parse().expect("valid"),
            }),
        };
        let file = dir.join(format!("{number}.json"));
        put(&file, &serde_json::to_vec(&config).expect("serializes"));
        let log = fs::File::create(dir.join(format!("{number}.log"))).expect("created");
        Process::start(
            Command::new(env!("CARGO_BIN_EXE_tlsfarm"))
                .args(["cache", "--config"])
                .arg(&file)
                .stderr(log),
        )
    }

    fn start_httpd(&self, number: usize, https: SocketAddr, redis: SocketAddr) -> Process {
        let dir = self.farm.dir.join(format!("httpd-{number}"));
        fs::create_dir_all(dir.join("pages")).expect("created");
        fs::write(dir.join("pages/index.html"), "page of /").expect("written");
        let [certificate, key] = self.farm.certificate_files("shop");
        let modules = ["mpm_event", "authz_core", "dir", "socache_redis", "ssl"]
            .map(|name| format!("LoadModule {name}_module {MODULES}/mod_{name}.so\n"))
            .concat();
        let (dir, certificate, key) = (dir.display(), certificate.display(), key.display());
        let text = format!(
            "{modules}
            ServerName shop.test
            Listen {https}
            PidFile {dir}/pid
            DefaultRuntimeDir {dir}
            ErrorLog {dir}/error.log
            DocumentRoot {dir}/pages
            StartServers 1
            SSLEngine on
            SSLCertificateFile {certificate}
            SSLCertificateKeyFile {key}
            SSLSessionCache redis:{redis}
            SSLSessionTickets off"
        );
        let file = self.farm.dir.join(format!("httpd-{number}.conf"));
        fs::write(&file, text).expect("written");
        Process::start(
            Command::new(HTTPD)
                .args(["-D", "FOREGROUND", "-f"])
                .arg(&file)
                .stderr(Stdio::null()),
        )
    }

    /// Makes a session at a server; gives the file that it is in.
    fn take_session(&self, issuer: usize, version: &str) -> PathBuf {
        let name = format!("session-{}", rand::random::<u64>());
        let file = self.farm.dir.join(name);
        let path = file.to_str().expect("UTF-8");
        let visit = visit(
            &self.farm,
            self.httpds[issuer].0,
            "shop.test",
            &[version, "-sess_out", path],
        );
        assert!(visit.served() && !visit.reused, "{}", visit.output);
        file
    }

    fn offer(&self, resumer: usize, version: &str, session: &Path) -> Visit {
        let session = session.to_str().expect("UTF-8");
        visit(
            &self.farm,
            self.httpds[resumer].0,
            "shop.test",
            &[version, "-sess_in", session],
        )
    }

    /// How many of these sessions resume at a server, which must serve every page without a stall.
    fn resumed_promptly(&self, resumer: usize, sessions: &[PathBuf]) -> usize {
        let resumes = |session: &&PathBuf| {
            let begun = Instant::now();
            let visit = self.offer(resumer, "-tls1_2", session);
            assert!(visit.served(), "{}", visit.output);
            let took = begun.elapsed();
            assert!(took < PROMPT, "{took:?}");
            visit.reused
        };
        sessions.iter().filter(resumes).count()
    }
}

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("started"))
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &self.0.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success());
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // Asked to end, httpd takes its children along. A stopped process hears of it when it goes on.
            self.signal("TERM");
            self.signal("CONT");
            let _ = self.0.wait();
        }
    }
}
