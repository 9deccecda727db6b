//! Driving a real cluster as its users do: with kubectl, helm, OpenSSL and a load tool.
//!
//! `make test` starts the cluster, loads the images and sets the environment. Without it every test here fails at once.

mod audit;
mod certificates;
mod clients;
mod helm;
mod metrics;
mod operator;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use audit::{Followed, audit_logs, writes_of};
pub use certificates::{authority_file, certificate, certificate_of_a_stranger};
pub use clients::{Handshake, Load, Version, s_client};
pub use metrics::Metrics;
pub use operator::{operator_process, replace_operator, signal};

/// The image that `make image` built and `make cluster` loaded.
pub fn image() -> String {
    std::env::var("TLSFARM_TEST_IMAGE")
        .expect("run these tests through `make test`: TLSFARM_TEST_IMAGE is not set")
}

/// Held by tests that bring an operator for their own namespace, and taken by those whose operator serves all namespaces.
static OPERATORS: RwLock<()> = RwLock::new(());

/// Waits until no other test's operator runs, and keeps others from starting.
pub fn only_operator() -> RwLockWriteGuard<'static, ()> {
    OPERATORS.write().unwrap_or_else(PoisonError::into_inner)
}

/// More than the longest `--timeout` of any command here.
const LONGEST_COMMAND: Duration = Duration::from_secs(420);

/// Runs a command to its end and returns what it printed, or its failure in words.
pub fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<String, String> {
    run_within(LONGEST_COMMAND, program, args, input)
}

/// The same for at most `limit`; a command that takes longer has failed.
pub fn run_within(
    limit: Duration,
    program: &str,
    args: &[&str],
    input: Option<&str>,
) -> Result<String, String> {
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", &limit.as_secs_f64().to_string(), program])
        .args(args)
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    if let Some(input) = input {
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // The program may close its input early; its exit code shows why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().expect("the command ends");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    Err(format!(
        "{program} {}: {}\n{stdout}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Calls `check` until it returns something, at most for `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, check: impl FnMut() -> Option<T>) -> T {
    happens(limit, check).unwrap_or_else(|| panic!("timed out after {limit:?} waiting for {what}"))
}

/// The same, and nothing when it does not happen in time.
pub fn happens<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let found = check();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// The process with this word on its command line and this variable, `NAME=value`, in its environment. All nodes'
/// processes are this machine's.
pub fn process(word: &str, variable: &str) -> Option<u32> {
    let has = |file: PathBuf, wanted: &str| {
        // The process may have ended by now.
        let read = std::fs::read(file).unwrap_or_default();
        read.split(|byte| *byte == 0)
            .any(|part| part == wanted.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").expect("there is /proc");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .find(|process| {
            let dir = PathBuf::from(format!("/proc/{process}"));
            has(dir.join("cmdline"), word) && has(dir.join("environ"), variable)
        })
}

/// A namespace of a test's own, which enforces the Pod Security level `restricted` and goes when the test ends well.
pub struct Namespace {
    pub name: &'static str,
    _turn: Option<Turn>,
}

/// A test's right to run an operator, held for as long as its namespace.
enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Namespace {
    /// Recreates the namespace, with an operator of its own that watches only it, and a backend.
    pub fn with_operator(name: &'static str) -> Self {
        Self::for_operator(name).with_defaults()
    }

    /// The same while no other test's operator runs, for what must be quick on a small machine.
    pub fn with_operator_alone(name: &'static str) -> Self {
        let turn = Turn::Alone {
            _guard: only_operator(),
        };
        Self::create_in(turn, name).with_defaults()
    }

    /// Recreates the namespace, for an operator that the test installs itself.
    pub fn for_operator(name: &'static str) -> Self {
        let guard = OPERATORS.read().unwrap_or_else(PoisonError::into_inner);
        Self::create_in(Turn::Shared { _guard: guard }, name)
    }

    fn create_in(turn: Turn, name: &'static str) -> Self {
        Self {
            _turn: Some(turn),
            ..Self::create(name)
        }
    }

    fn with_defaults(self) -> Self {
        self.helm("install", "");
        self.deploy_backend();
        self
    }

    /// Recreates the namespace.
    pub fn create(name: &'static str) -> Self {
        let gone = run(
            "kubectl",
            &["delete", "namespace", name, "--ignore-not-found", "--wait"],
            None,
        );
        gone.unwrap_or_else(|error| panic!("{error}"));
        let namespace = Self { name, _turn: None };
        namespace.apply(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }));
        namespace
    }

    pub fn delete(self) {
        self.kubectl(&["delete", "namespace", self.name, "--wait"]);
    }

    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        run("kubectl", &[&["--namespace", self.name], args].concat(), None)
    }

    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_apply(&self, object: &Value) -> Result<String, String> {
        let text = object.to_string();
        run(
            "kubectl",
            &["--namespace", self.name, "apply", "-f", "-"],
            Some(&text),
        )
    }

    pub fn apply(&self, object: &Value) {
        self.try_apply(object).unwrap_or_else(|error| panic!("{error}"));
    }

    /// An object as JSON; none when it does not exist.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let text = self.kubectl(&["get", kind, name, "--ignore-not-found", "--output", "json"]);
        (!text.trim().is_empty()).then(|| serde_json::from_str(&text).expect("kubectl prints JSON"))
    }

    pub fn list(&self, kind: &str, selector: &str) -> Vec<Value> {
        let text = self.kubectl(&["get", kind, "--selector", selector, "--output", "json"]);
        let list: Value = serde_json::from_str(&text).expect("kubectl prints JSON");
        list["items"].as_array().expect("a list has items").clone()
    }

    /// The ready, non-terminating proxies of a farm: pod name and TLS address, sorted by name.
    pub fn proxies(&self, farm: &str) -> Vec<(String, SocketAddr)> {
        let mut proxies: Vec<_> = self
            .list("pods", &format!("tlsfarm.dev/farm={farm}"))
            .iter()
            .filter(|pod| {
                pod["metadata"]["deletionTimestamp"].is_null() && condition_of(pod, "Ready").0 == "True"
            })
            .map(|pod| {
                let address = format!(
                    "{}:8443",
                    pod["status"]["podIP"]
                        .as_str()
                        .expect("a ready pod has an address")
                );
                (
                    pod["metadata"]["name"].as_str().expect("named").to_owned(),
                    address.parse().expect("an address"),
                )
            })
            .collect();
        proxies.sort();
        proxies
    }

    /// Status, reason and message of one of a farm's conditions.
    pub fn condition(&self, farm: &str, type_: &str) -> (String, String, String) {
        self.get("tlsfarm", farm)
            .map(|farm| condition_of(&farm, type_))
            .unwrap_or_default()
    }

    /// Waits until a condition has this status and reason; returns its message.
    pub fn wait_condition(&self, farm: &str, type_: &str, status: &str, reason: &str) -> String {
        self.wait_condition_for(farm, type_, status, reason, Duration::from_secs(90))
    }

    pub fn wait_condition_for(
        &self,
        farm: &str,
        type_: &str,
        status: &str,
        reason: &str,
        limit: Duration,
    ) -> String {
        let mut last = Default::default();
        let deadline = Instant::now() + limit;
        loop {
            let found = self.condition(farm, type_);
            if found.0 == status && found.1 == reason {
                return found.2;
            }
            if Instant::now() > deadline {
                let described = self.kubectl(&["describe", "tlsfarm", farm]);
                panic!(
                    "{type_} of {farm} did not become {status}/{reason} within {limit:?}, last {last:?}\n{described}"
                );
            }
            last = found;
            thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn wait_ready(&self, farm: &str) {
        self.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &format!("tlsfarm/{farm}"),
            "--timeout=120s",
        ]);
    }

    /// The farm's cluster IP, once connections to it arrive.
    ///
    /// A farm is ready a moment before kube-proxy has programmed it. What is sent to the cluster IP then is lost for good:
    /// conntrack remembers it as a connection that is not translated, and all its repeats go the same way to nowhere.
    pub fn service_address(&self, farm: &str) -> String {
        let service = self
            .get("service", &format!("{farm}-proxy"))
            .expect("the farm has a Service");
        let address = service["spec"]["clusterIP"]
            .as_str()
            .expect("the Service has an address")
            .to_owned();
        let https = SocketAddr::new(address.parse().expect("an address"), 443);
        wait_for("connections to the cluster IP", Duration::from_secs(60), || {
            TcpStream::connect_timeout(&https, Duration::from_millis(500)).ok()
        });
        address
    }

    pub fn ring_generation(&self, farm: &str) -> u64 {
        self.get("tlsfarm", farm)
            .and_then(|farm| farm["status"]["ring"]["generation"].as_u64())
            .unwrap_or_default()
    }

    /// Asks for a rotation and waits until every ready proxy has acknowledged it; returns how long that took.
    pub fn rotate(&self, farm: &str, request: &str) -> Duration {
        let before = self.ring_generation(farm);
        let start = Instant::now();
        self.kubectl(&[
            "annotate",
            "--overwrite",
            "tlsfarm",
            farm,
            &format!("tlsfarm.dev/rotate={request}"),
        ]);
        wait_for("the rotation to be acknowledged", Duration::from_secs(60), || {
            let farm = self.get("tlsfarm", farm)?;
            let rotated = farm["status"]["ring"]["generation"].as_u64()? > before;
            (rotated && condition_of(&farm, "KeysSynced").0 == "True").then_some(())
        });
        start.elapsed()
    }

    /// A Deployment and Service `web` that answer with what they were asked.
    pub fn deploy_backend(&self) {
        let text = std::fs::read_to_string(repository().join("deploy/demo/web.yaml"))
            .expect("the demo has a backend");
        run(
            "kubectl",
            &["--namespace", self.name, "apply", "-f", "-"],
            Some(&text),
        )
        .unwrap_or_else(|e| panic!("{e}"));
    }

    /// A Secret with a fresh certificate for `hostnames`.
    pub fn create_certificate(&self, secret: &str, hostnames: &[&str]) {
        let (certificate, key) = certificate(hostnames, 2000..2100);
        self.apply_certificate(secret, &certificate, &key);
    }

    pub fn apply_certificate(&self, secret: &str, certificate: &str, key: &str) {
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": secret},
            "stringData": {"tls.crt": certificate, "tls.key": key},
        }));
    }
}

/// A farm `name` with one host per entry: `(host, hostname)`, each with the Secret `<host>-tls` and the backend `web`.
pub fn farm(name: &str, replicas: u32, hosts: &[(&str, &str)]) -> Value {
    let hosts: Vec<_> = hosts
        .iter()
        .map(|(host, hostname)| {
            json!({
                "name": host,
                "hostnames": [hostname],
                "tls": {"certificateRefs": [{"name": format!("{host}-tls")}]},
                "routes": [{"path": "/", "backend": {"service": "web", "port": 8080}}],
            })
        })
        .collect();
    json!({
        "apiVersion": "tlsfarm.dev/v1alpha1",
        "kind": "TLSFarm",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "hosts": hosts, "service": {"type": "ClusterIP"}},
    })
}

/// The lines of the probe's tables that say what share of the sessions was resumed.
pub fn shares(probed: &str) -> BTreeSet<&str> {
    probed.lines().filter(|line| line.ends_with(" %")).collect()
}

/// Status, reason and message of an object's condition.
pub fn condition_of(object: &Value, type_: &str) -> (String, String, String) {
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    conditions
        .iter()
        .find(|condition| condition["type"] == type_)
        .map(|c| (text(&c["status"]), text(&c["reason"]), text(&c["message"])))
        .unwrap_or_default()
}

/// An empty directory of a test's own.
pub fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("tlsfarm-test-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("created");
    dir
}

/// The project's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
