//! Files that change while a proxy runs, for the better and for the worse.

use std::fs;

use tlsfarm::report::ProxyReport;

use crate::harness::{Farm, Proxy, new_ring, put, put_config, rotated, visit, wait_for};

fn wait_for_report<T>(proxy: &Proxy, what: &str, look: impl Fn(&ProxyReport) -> Option<T>) -> T {
    wait_for(what, || look(&proxy.report()))
}

fn ring_problem(proxy: &Proxy, contains: &str) {
    wait_for_report(proxy, contains, |report| {
        report.ring.problem.as_ref()?.contains(contains).then_some(())
    });
}

fn serves(farm: &Farm, proxy: &Proxy, name: &str) {
    let visit = visit(farm, proxy.https, name, &[]);
    assert!(visit.served(), "{}", visit.output);
}

#[test]
fn a_bad_ring_leaves_the_last_good_one_in_use() {
    let farm = Farm::new("web/shop");
    let first = new_ring();
    let second = rotated(first.clone());
    farm.put_ring(&second);
    let proxy = farm.start();
    let session = farm.dir.join("session");
    let file = session.to_str().expect("a plain path");
    assert!(visit(&farm, proxy.https, "shop.test", &["-sess_out", file]).served());

    let whole = second.to_document();
    let failures = "tlsfarm_proxy_reload_failures_total{file=\"ring\"}";
    let spoil: [(&str, &dyn Fn()); 5] = [
        ("older than the loaded generation 2", &|| farm.put_ring(&first)),
        ("failed to parse", &|| {
            put(&farm.ring_file(), &whole[..whole.len() / 2])
        }),
        ("same generation 2", &|| farm.put_ring(&rotated(new_ring()))),
        ("missing", &|| fs::remove_file(farm.ring_file()).expect("removed")),
        ("too large", &|| put(&farm.ring_file(), &vec![b' '; 1 << 20])),
    ];
    for (number, (problem, spoil)) in (1..).zip(spoil) {
        spoil();
        ring_problem(&proxy, problem);
        let report = proxy.report();
        assert_eq!(report.ring.generation, Some(2));
        assert_eq!(report.ring.primary, Some(second.primary.id.to_string()));
        assert!(report.ready, "it goes on");
        assert_eq!(proxy.metric(failures), number);
        let again = visit(&farm, proxy.https, "shop.test", &["-sess_in", file]);
        assert!(again.reused && again.served(), "{problem}: {}", again.output);
    }
    farm.put_ring(&rotated(second));
    wait_for_report(&proxy, "the next ring", |report| {
        (report.ring.generation == Some(3) && report.ring.problem.is_none()).then_some(())
    });
}

#[test]
fn a_bad_configuration_leaves_the_last_good_one_in_use() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let before = proxy.report().config.fingerprint;
    put(&proxy.config_file, b"version: 1\nfarm: [");
    wait_for_report(&proxy, "the problem", |report| report.config.problem.clone());
    assert_eq!(proxy.report().config.fingerprint, before);
    assert_eq!(
        proxy.metric("tlsfarm_proxy_reload_failures_total{file=\"config\"}"),
        1
    );
    // New certificates are still loaded meanwhile, and the problem stays.
    farm.put_certificate("shop", &farm.issue(&["shop.test", "*.shop.test"]));
    wait_for("the certificate", || {
        (proxy.metric("tlsfarm_proxy_reloads_total{file=\"certificate\"}") == 3).then_some(())
    });
    assert!(proxy.report().config.problem.is_some());
    serves(&farm, &proxy, "shop.test");

    let mut config = proxy.config.clone();
    config.hosts[1].hostnames.push("news.test".into());
    put_config(&proxy.config_file, &config);
    let report = wait_for_report(&proxy, "the new configuration", |report| {
        (report.config.fingerprint != before).then(|| report.clone())
    });
    assert_eq!(report.config.problem, None);
    let served = visit(&farm, proxy.https, "blog.test", &[]);
    assert!(served.served(), "{}", served.output);
}

#[test]
fn hosts_come_and_go_without_a_restart() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let mut config = proxy.config.clone();
    let blog = config.hosts.pop().expect("two hosts");
    let with = config.hosts.clone();
    put_config(&proxy.config_file, &config);
    wait_for("the host to be gone", || {
        let visit = visit(&farm, proxy.https, "blog.test", &[]);
        visit.output.contains("unrecognized name").then_some(())
    });
    serves(&farm, &proxy, "shop.test");
    config.hosts = [with, vec![blog]].concat();
    put_config(&proxy.config_file, &config);
    wait_for("the host to be back", || {
        visit(&farm, proxy.https, "blog.test", &[]).served().then_some(())
    });
}

#[test]
fn volume_updates_by_the_kubelet_are_noticed() {
    let farm = Farm::new("web/shop");
    let volume = farm.dir.join("volume");
    let write = |version: &str, ring: &tlsfarm::ring::Ring| {
        fs::create_dir_all(volume.join(version)).expect("created");
        fs::write(volume.join(version).join("ring.json"), &*ring.to_document()).expect("written");
        std::os::unix::fs::symlink(version, volume.join("..new")).expect("linked");
        fs::rename(volume.join("..new"), volume.join("..data")).expect("swapped");
    };
    let first = new_ring();
    write("..1", &first);
    std::os::unix::fs::symlink("..data/ring.json", volume.join("ring.json")).expect("linked");
    let mut config = farm.config();
    config.ring = volume.join("ring.json");
    let proxy = farm.start_with(config);
    wait_for_report(&proxy, "the first ring", |report| {
        (report.ring.generation == Some(1)).then_some(())
    });
    write("..2", &rotated(first));
    wait_for_report(&proxy, "the second ring", |report| {
        (report.ring.generation == Some(2)).then_some(())
    });
}

#[test]
fn an_unusable_first_configuration_is_one_line_and_exit_code_2() {
    let farm = Farm::new("web/shop");
    let file = farm.dir.join("bad.json");
    for (content, line) in [(None, "failed to read"), (Some("version: 9"), "bad.json")] {
        if let Some(content) = content {
            fs::write(&file, content).expect("written");
        }
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tlsfarm"))
            .args(["proxy", "--config"])
            .arg(&file)
            .output()
            .expect("the process runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(line) && said.lines().count() == 1, "{said}");
    }
}
