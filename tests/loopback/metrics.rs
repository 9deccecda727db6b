//! What proxies, caches and operators print on `/metrics`: in which format, whether Prometheus's own linter accepts it, and
//! that the page on metrics explains it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use jiff::{SignedDuration, Timestamp};
use tlsfarm::ring::{KeySecret, Ring};

use crate::cache_peers::Caches;
use crate::harness::{
    Farm, PATIENCE, POLICY, Reserved, get_answer, get_page, put, put_config, visit, wait_for,
};

const PROMETHEUS_ACCEPTS: &str = "Accept: application/openmetrics-text;version=1.0.0,\
     application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n";

#[test]
fn the_metrics_of_a_proxy_are_valid_and_have_help_texts() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    assert!(visit(&farm, proxy.https, "shop.test", &[]).served());
    assert!(check(&proxy.get("/metrics").1) > 20);
}

#[test]
fn the_metrics_of_a_cache_are_valid_and_have_help_texts() {
    let caches = Caches::start(1);
    assert!(check(&caches.all[0].get("/metrics").1) > 20);
}

#[test]
fn the_metrics_of_an_operator_are_valid_and_have_help_texts() {
    let operator = LonelyOperator::start();
    // Most other metrics appear with the first farm.
    assert!(check(&get_page(operator.admin, "/metrics").1) >= 4);
}

#[test]
fn the_metrics_format_follows_the_accept_header() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let ask = |headers| get_answer(proxy.admin, "/metrics", headers, PATIENCE).expect("an answer");
    for headers in ["", "Accept: */*\r\n", "Accept: text/plain;version=0.0.4\r\n"] {
        let (head, page) = ask(headers);
        assert!(
            head.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
            "{headers}{head}"
        );
        assert!(page.contains("# TYPE tlsfarm_proxy_handshakes_total counter\n"));
        assert!(!page.contains("# EOF"));
    }
    let (head, page) = ask(PROMETHEUS_ACCEPTS);
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{head}"
    );
    assert!(page.contains("# TYPE tlsfarm_proxy_handshakes counter\n"));
    assert!(page.ends_with("\n# EOF\n"));
}

/// Alerts compare these.
#[test]
fn metrics_show_an_overdue_rotation_and_a_bad_file() {
    let farm = Farm::new("web/shop");
    let rotated_at = Timestamp::now() - SignedDuration::from_hours(5);
    let secret = || KeySecret::generate().expect("the system has randomness");
    let ring = Ring::new(1, secret(), secret(), &POLICY, rotated_at);
    farm.put_ring(&ring);
    let proxy = farm.start();
    let becomes = |series: &str, expected: u64| {
        let series = format!("tlsfarm_proxy_{series}");
        wait_for(&format!("{expected} in {series}"), || {
            (proxy.metric(&series) == expected).then_some(())
        });
    };
    let rotated = rotated_at.as_second().unsigned_abs();
    becomes("ring_rotated_timestamp_seconds", rotated);
    becomes("ring_rotation_interval_seconds", 3600);

    farm.put_ring(&ring.without_expired(Timestamp::now()));
    becomes("ring_generation", 2);
    becomes("ring_rotated_timestamp_seconds", rotated);
    assert!(proxy.metric("tlsfarm_proxy_ring_changed_timestamp_seconds") > rotated);

    let mut config = proxy.config.clone();
    config.tickets.rotation_interval = Some("6h".parse().expect("valid"));
    put_config(&proxy.config_file, &config);
    becomes("ring_rotation_interval_seconds", 6 * 3600);

    let faulty = |file: &str| format!("file_faults{{file=\"{file}\"}}");
    for file in ["config", "ring", "certificate"] {
        becomes(&faulty(file), 0);
    }
    let [certificate, _] = farm.certificate_files("blog");
    let files = [
        ("config", &proxy.config_file),
        ("ring", &farm.ring_file()),
        ("certificate", &certificate),
    ];
    for (kind, file) in files {
        let good = fs::read(file).expect("readable");
        put(file, b"nonsense");
        becomes(&faulty(kind), 1);
        put(file, &good);
        becomes(&faulty(kind), 0);
    }
}

#[test]
fn every_alert_is_tested_and_documented_like_its_metrics() {
    let rules = include_str!("../../deploy/prometheus/alerts.yaml");
    let tests = include_str!("../../deploy/prometheus/alerts_test.yaml");
    let documentation = include_str!("../../docs/metrics.md");
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.strip_prefix("  - alert: "))
        .collect();
    assert!(alerts.len() >= 10, "{alerts:?}");
    for alert in alerts {
        let fires = format!("alertname=\"{alert}\"");
        assert!(tests.contains(&fires), "no test has {alert} fire");
        let explained = format!("| {alert} | ");
        assert!(
            documentation.contains(&explained),
            "docs/metrics.md does not explain {alert}"
        );
        let page = format!("runbook: docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&page), "{alert} does not refer to the runbook");
    }
    let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = rules.split(|letter| !word(letter));
    let metrics: BTreeSet<&str> = words.filter(|name| name.starts_with("tlsfarm_")).collect();
    assert!(metrics.len() > 10, "{metrics:?}");
    for metric in metrics {
        assert!(
            documentation.contains(&format!("| `{metric}` |")),
            "an alert uses {metric}, which docs/metrics.md does not explain"
        );
    }
}

/// Has promtool check a page, and looks up each of its metrics in the documentation. Returns how many there are.
fn check(page: &str) -> usize {
    lint(page);
    let documentation = include_str!("../../docs/metrics.md");
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<&str> = types
        .map(|line| line.split_once(' ').expect("a name and a type").0)
        .collect();
    for name in &names {
        assert!(
            documentation.contains(&format!("| `{name}` |")),
            "docs/metrics.md does not explain {name}"
        );
        let help = format!("# HELP {name} ");
        let help = page.lines().find_map(|line| line.strip_prefix(&help));
        let help = help.unwrap_or_else(|| panic!("{name} has no help in {page}"));
        assert!(help.ends_with('.') && !help.ends_with(".."), "{name}: {help}");
    }
    names.len()
}

fn lint(page: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tests/packages installs promtool with Debian's prometheus");
    let mut input = promtool.stdin.take().expect("piped");
    input
        .write_all(page.as_bytes())
        .expect("promtool reads everything");
    drop(input);
    let output = promtool.wait_with_output().expect("the process exits");
    let complaints = [output.stdout, output.stderr].concat();
    let complaints = String::from_utf8_lossy(&complaints);
    assert!(
        output.status.success() && complaints.is_empty(),
        "{complaints}in {page}"
    );
}

/// An operator whose API server does not answer. It serves its pages all the same.
struct LonelyOperator {
    admin: SocketAddr,
    child: Child,
    _reserved: [Reserved; 2],
    _farm: Farm,
}

impl LonelyOperator {
    fn start() -> Self {
        // Only for its directory.
        let farm = Farm::new("web/shop");
        let [admin, nobody] = [Reserved::new(), Reserved::new()];
        let kubeconfig = farm.dir.join("kubeconfig");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, \
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}], users: [{{name: c, user: {{}}}}], \
             contexts: [{{name: c, context: {{cluster: c, user: c}}}}]}}",
            nobody.address
        );
        fs::write(&kubeconfig, text).expect("written");
        let child = Command::new(env!("CARGO_BIN_EXE_tlsfarm"))
            .args(["operator", "--proxy-image", "none", "--admin"])
            .arg(admin.address.to_string())
            .env("KUBECONFIG", kubeconfig)
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let operator = Self {
            admin: admin.address,
            child,
            _reserved: [admin, nobody],
            _farm: farm,
        };
        wait_for("an answer of the operator", || {
            (get_page(operator.admin, "/healthz").0 == 200).then_some(())
        });
        operator
    }
}

impl Drop for LonelyOperator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
