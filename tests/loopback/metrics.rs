//! What proxies, caches and operators print on `/metrics`: in which format, whether Prometheus's own linter accepts it, and
//! that the page on metrics explains it.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::cache_peers::Caches;
use crate::harness::{Farm, PATIENCE, Reserved, get_answer, get_page, visit, wait_for};

const PROMETHEUS_ACCEPTS: &str = "Accept: application/openmetrics-text;version=1.0.0,\
     application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n";

#[test]
fn what_a_proxy_prints_is_sound_and_explained() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    assert!(visit(&farm, proxy.https, "shop.test", &[]).served());
    assert!(check(&proxy.get("/metrics").1) > 20);
}

#[test]
fn what_a_cache_prints_is_sound_and_explained() {
    let caches = Caches::start(1);
    assert!(check(&caches.all[0].get("/metrics").1) > 20);
}

#[test]
fn what_an_operator_prints_is_sound_and_explained() {
    let operator = LonelyOperator::start();
    // Most of the others appear with the first farm.
    assert!(check(&get_page(operator.admin, "/metrics").1) >= 4);
}

#[test]
fn the_format_is_the_one_that_the_client_asks_for() {
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
    input.write_all(page.as_bytes()).expect("it reads all");
    drop(input);
    let output = promtool.wait_with_output().expect("it ends");
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
        // For its directory.
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
