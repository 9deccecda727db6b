//! Apache httpd servers, each with a cache beside it that they take for a Redis.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cache_peers::Caches;
use crate::cache_process::Cache;
use crate::harness::{Farm, Reserved, Visit, send_signal, visit, wait_for};

const HTTPD: &str = "/usr/sbin/apache2";
const MODULES: &str = "/usr/lib/apache2/modules";

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

/// A farm of such httpds in Kubernetes. What it says of httpd and of the cache's probe is what is tested here.
const MANIFEST: &str = include_str!("../../deploy/apache-httpd.yaml");

/// Longer than a full handshake takes on a busy machine and a cache waits for another, shorter than what people call a
/// stall.
const PROMPT: Duration = Duration::from_secs(2);

/// While all caches are there, at most one lookup of so many may be late. With one gone it is every third.
const LATE_ONE_OF: u64 = 10;

#[test]
fn a_session_made_at_one_httpd_resumes_at_the_others() {
    let servers = Servers::start("10s");
    for version in VERSIONS {
        for issuer in &servers.httpds {
            let session = servers.take_session(issuer, version);
            for resumer in &servers.httpds {
                let visit = servers.offer(resumer, version, &session);
                assert!(visit.reused && visit.served(), "{version}: {}", visit.output);
            }
        }
    }
}

#[test]
fn a_cache_that_hangs_or_is_gone_costs_other_httpds_full_handshakes_only() {
    let mut servers = Servers::start("250ms");
    // Enough for each cache to own some, except in one run of 10^5.
    let sessions: Vec<PathBuf> = (0..30)
        .map(|_| servers.take_session(&servers.httpds[0], "-tls1_2"))
        .collect();
    let resumed = |servers: &Servers, at: usize| servers.resumed_promptly(&servers.httpds[at], &sessions);
    // Counts lookups whose owner did not answer in time, as can happen on a busy machine.
    let (mut lookups, mut late) = (0, 0);
    let mut all_resume = |servers: &Servers| {
        let unavailable = servers.unavailable();
        let missed = (sessions.len() - resumed(servers, 0)) as u64;
        assert!(
            missed <= servers.unavailable() - unavailable,
            "{missed} did not resume"
        );
        lookups += sessions.len() as u64;
        late += missed;
    };
    all_resume(&servers);

    servers.caches.all[2].signal("STOP");
    let while_it_hangs = resumed(&servers, 0);
    assert!(
        (1..sessions.len()).contains(&while_it_hangs),
        "{while_it_hangs} resumed"
    );

    servers.caches.all[2].signal("CONT");
    servers.caches.wait_until_linked();
    all_resume(&servers);
    assert!(
        late * LATE_ONE_OF <= lookups,
        "{late} of {lookups} lookups were late"
    );

    servers.caches.all[2].kill();
    let without_it = resumed(&servers, 0);
    assert!((1..sessions.len()).contains(&without_it), "{without_it} resumed");
    // The httpd of the killed cache asks no other cache, and still serves.
    assert_eq!(resumed(&servers, 2), 0);
}

#[test]
fn the_liveness_probe_sees_a_cache_that_hangs_and_its_restart_frees_httpd() {
    let mut servers = Servers::start("250ms");
    let probe = LivenessProbe::of_the_manifest();
    assert!(probe.succeeds(&servers.caches.all[0]));
    let session = servers.take_session(&servers.httpds[1], "-tls1_2");

    servers.caches.all[0].signal("STOP");
    thread::scope(|scope| {
        // httpd waits for its cache, however long.
        let client = scope.spawn(|| servers.offer(&servers.httpds[0], "-tls1_2", &session));
        for _ in 0..probe.failure_threshold {
            assert!(!probe.succeeds(&servers.caches.all[0]));
        }
        servers.caches.all[0].signal("KILL");
        let visit = client.join().expect("a visit");
        assert!(visit.served(), "{}", visit.output);
    });
    servers.caches.all[0].wait();
    assert_eq!(servers.resumed_promptly(&servers.httpds[0], &[session]), 0);

    servers.caches.all[0].start_again();
    assert!(probe.succeeds(&servers.caches.all[0]));
    servers.caches.wait_until_linked();
    // httpd asks a Redis that it has lost once in five seconds; until then it stores nothing.
    let session = wait_for("a session of that httpd that is stored", || {
        let stored = servers.stored();
        let session = servers.take_session(&servers.httpds[0], "-tls1_2");
        (servers.stored() > stored).then_some(session)
    });
    let unavailable = servers.unavailable();
    let visit = servers.offer(&servers.httpds[1], "-tls1_2", &session);
    assert!(visit.served(), "{}", visit.output);
    assert!(
        visit.reused || servers.unavailable() > unavailable,
        "{}",
        visit.output
    );
}

/// Three httpds and their caches.
struct Servers {
    httpds: [Httpd; 3],
    caches: Caches,
}

/// A running httpd.
struct Httpd {
    https: Reserved,
    process: Child,
}

impl Servers {
    /// Caches wait for each other so long.
    fn start(timeout: &str) -> Self {
        let caches = Caches::start_with_timeout(3, timeout);
        caches.wait_until_linked();
        let httpds = [0, 1, 2].map(|number| {
            let dir = caches.farm.dir.join(format!("httpd-{number}"));
            Httpd::start(&caches.farm, &dir, caches.all[number].tcp)
        });
        Self { httpds, caches }
    }

    /// Makes a session at an httpd; gives the file that it is in.
    fn take_session(&self, issuer: &Httpd, version: &str) -> PathBuf {
        let file = self
            .caches
            .farm
            .dir
            .join(format!("session-{}", rand::random::<u64>()));
        let visit = self.visit(issuer, &[version, "-sess_out"], &file);
        assert!(visit.served() && !visit.reused, "{}", visit.output);
        file
    }

    fn offer(&self, resumer: &Httpd, version: &str, session: &Path) -> Visit {
        self.visit(resumer, &[version, "-sess_in"], session)
    }

    /// How often a cache got no answer of another in time.
    fn unavailable(&self) -> u64 {
        let commands = ["get", "set", "del", "expire", "ttl"];
        let series = commands
            .map(|command| format!("requests_total{{command=\"{command}\",outcome=\"unavailable\"}}"));
        self.sum(&series)
    }

    /// Values that clients stored.
    fn stored(&self) -> u64 {
        self.sum(&["requests_total{command=\"set\",outcome=\"stored\"}".into()])
    }

    fn sum(&self, series: &[String]) -> u64 {
        let of = |cache: &Cache| series.iter().map(|series| cache.metric(series)).sum::<u64>();
        self.caches.all.iter().map(of).sum()
    }

    /// How many of these sessions resume at an httpd, which has to serve every page without a stall.
    fn resumed_promptly(&self, resumer: &Httpd, sessions: &[PathBuf]) -> usize {
        let resumes = |session: &&PathBuf| {
            let begun = Instant::now();
            let visit = self.offer(resumer, "-tls1_2", session);
            let took = begun.elapsed();
            assert!(visit.served() && took < PROMPT, "{took:?}: {}", visit.output);
            visit.reused
        };
        sessions.iter().filter(resumes).count()
    }

    fn visit(&self, httpd: &Httpd, arguments: &[&str], session: &Path) -> Visit {
        let session = session.to_str().expect("UTF-8");
        let arguments = [arguments, &[session]].concat();
        visit(&self.caches.farm, httpd.https.address, "shop.test", &arguments)
    }
}

impl Httpd {
    /// Starts one whose files are in `dir` and whose sessions are in the Redis at `redis`.
    fn start(farm: &Farm, dir: &Path, redis: SocketAddr) -> Self {
        assert!(
            Path::new(HTTPD).exists(),
            "{HTTPD} is missing: tests/packages installs Debian's apache2-bin"
        );
        let https = Reserved::new();
        fs::create_dir_all(dir.join("pages")).expect("created");
        fs::write(dir.join("pages/index.html"), "page of /").expect("written");
        let [certificate, key] = farm.certificate_files("shop");
        let config = dir.join("httpd.conf");
        let text = configuration(&[
            // Debian's httpd has these built in.
            ("LoadModule unixd_module modules/mod_unixd.so", ""),
            ("LoadModule log_config_module modules/mod_log_config.so", ""),
            (" modules/", &format!(" {MODULES}/")),
            (
                "ServerName shop.example.com",
                "ServerName shop.test\nStartServers 1",
            ),
            ("Listen 8443", &format!("Listen {}", https.address)),
            (
                "DocumentRoot /usr/local/apache2/htdocs",
                &format!("DocumentRoot {}/pages", dir.display()),
            ),
            (
                "ServerRoot /usr/local/apache2",
                &format!("ServerRoot {}", dir.display()),
            ),
            (
                "PidFile /tmp/httpd.pid",
                &format!("PidFile {}/pid", dir.display()),
            ),
            (
                "DefaultRuntimeDir /tmp",
                &format!("DefaultRuntimeDir {}", dir.display()),
            ),
            (
                "ErrorLog /proc/self/fd/2",
                &format!("ErrorLog {}/error.log", dir.display()),
            ),
            ("/etc/shop/tls.crt", &certificate.display().to_string()),
            ("/etc/shop/tls.key", &key.display().to_string()),
            ("redis:127.0.0.1:6379", &format!("redis:{redis}")),
        ]);
        fs::write(&config, text).expect("written");
        let process = Command::new(HTTPD)
            .args(["-D", "FOREGROUND", "-f"])
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let httpd = Self { https, process };
        wait_for("an httpd that listens", || {
            TcpStream::connect(httpd.https.address).ok()
        });
        httpd
    }
}

impl Drop for Httpd {
    fn drop(&mut self) {
        // On SIGTERM, httpd ends its children too.
        send_signal(&self.process, "TERM");
        let _ = self.process.wait();
    }
}

/// The configuration of the manifest with what is different here.
fn configuration(differences: &[(&str, &str)]) -> String {
    let config = object("ConfigMap")["data"]["httpd.conf"].clone();
    let text = config.as_str().expect("text").to_owned();
    differences.iter().fold(text, |text, (there, here)| {
        assert!(
            text.contains(there),
            "the manifest says nothing of {there}: {text}"
        );
        text.replace(there, here)
    })
}

/// The object of this kind in the manifest.
fn object(kind: &str) -> Value {
    let documents = MANIFEST.split("\n---\n");
    let mut objects = documents.map(|text| serde_saphyr::from_str::<Value>(text).expect("YAML"));
    objects
        .find(|object| object["kind"] == kind)
        .expect("it is there")
}

/// How the kubelet asks a cache whether it works.
struct LivenessProbe {
    path: String,
    timeout: Duration,
    failure_threshold: u64,
}

impl LivenessProbe {
    fn of_the_manifest() -> Self {
        let cache = object("Deployment")["spec"]["template"]["spec"]["initContainers"][0].clone();
        let probe = &cache["livenessProbe"];
        assert_eq!(probe["httpGet"]["port"], "cache-admin", "{cache}");
        let number = |field: &str| probe[field].as_u64().expect("a number");
        Self {
            path: probe["httpGet"]["path"].as_str().expect("a path").into(),
            timeout: Duration::from_secs(number("timeoutSeconds")),
            failure_threshold: number("failureThreshold"),
        }
    }

    fn succeeds(&self, cache: &Cache) -> bool {
        let (status, _) = cache.get_within(&self.path, self.timeout);
        (200..400).contains(&status)
    }
}
