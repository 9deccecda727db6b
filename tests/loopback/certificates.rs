//! Certificates that are missing, wrong or expired: what is shown for their host, and that other hosts go on.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use tlsfarm::api::Reason;
use tlsfarm::report::Problem;

use crate::harness::{Farm, Proxy, visit, visit_with, wait_for};

const NAMES: [&str; 2] = ["shop.test", "*.shop.test"];

fn problem(proxy: &Proxy, host: &str) -> Option<Problem> {
    let reports = proxy.report().certificates;
    reports
        .into_iter()
        .filter(|report| report.host == host)
        .find_map(|report| report.problem)
}

fn wait_for_problem(proxy: &Proxy, reason: Reason) -> Problem {
    wait_for("the problem", || {
        problem(proxy, "shop").filter(|problem| problem.reason == reason)
    })
}

fn serves(farm: &Farm, proxy: &Proxy, name: &str) -> bool {
    visit(farm, proxy.https, name, &[]).served()
}

fn two_days() -> SignedDuration {
    SignedDuration::from_hours(48)
}

#[test]
fn a_bad_first_certificate_costs_its_own_host_only_and_recovers() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let good = farm.issue(&NAMES);
    let [certificate, key] = farm.certificate_files("shop");
    let spoil: [(Reason, &dyn Fn()); 4] = [
        (Reason::CertificateMissing, &|| {
            fs::remove_file(&certificate).expect("removed");
        }),
        (Reason::CertificateMissing, &|| {
            fs::remove_file(&key).expect("removed")
        }),
        (Reason::KeyMismatch, &|| {
            let [_, other] = farm.issue(&NAMES);
            farm.put_certificate("shop", &[good[0].clone(), other]);
        }),
        (Reason::CertificateInvalid, &|| {
            farm.put_certificate("shop", &["nonsense".into(), good[1].clone()]);
        }),
    ];
    for (reason, spoil) in spoil {
        spoil();
        // A proxy that starts now has nothing to fall back on.
        let fresh = farm.start();
        let said = wait_for_problem(&fresh, reason).message;
        assert!(
            said.contains("\"shop\"") && said.contains("\"shop-tls\""),
            "{said}"
        );
        let refused = visit(&farm, fresh.https, "shop.test", &[]);
        assert!(refused.output.contains("handshake failure"), "{}", refused.output);
        assert!(serves(&farm, &fresh, "blog.test"));
        // A running proxy keeps the last good pair and reports the problem.
        assert!(
            wait_for_problem(&proxy, reason)
                .message
                .contains("keeping the previous one")
        );
        assert!(serves(&farm, &proxy, "shop.test"));

        farm.put_certificate("shop", &good);
        for proxy in [&proxy, &fresh] {
            wait_for("recovery", || problem(proxy, "shop").is_none().then_some(()));
            assert!(serves(&farm, proxy, "shop.test"));
        }
    }
}

#[test]
fn a_certificate_for_another_name_is_reported_and_does_not_replace_a_good_one() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    farm.put_certificate("shop", &farm.issue(&["other.test"]));
    wait_for_problem(&proxy, Reason::NameMismatch);
    let visit = visit_with(&farm, proxy.https, "shop.test", |client| {
        client.args(["-verify_hostname", "shop.test"])
    });
    assert!(visit.served(), "{}", visit.output);

    farm.put_certificate("shop", &farm.issue(&["shop.test"]));
    let said = wait_for("the uncovered name", || {
        problem(&proxy, "shop").filter(|problem| problem.message.contains("*.shop.test"))
    });
    assert_eq!(said.reason, Reason::NameMismatch);
    assert!(serves(&farm, &proxy, "blog.test"));
}

#[test]
fn an_expired_certificate_is_served_without_tickets_until_it_is_renewed() {
    let farm = Farm::new("web/shop");
    farm.put_certificate("shop", &farm.issue_until(&NAMES, Timestamp::now() - two_days()));
    let proxy = farm.start();
    let said = wait_for_problem(&proxy, Reason::CertificateExpired).message;
    assert!(said.contains("expired at"), "{said}");
    for version in ["-tls1_2", "-tls1_3"] {
        // The client verifies at a time when the certificate was valid.
        let then = (Timestamp::now() - two_days() * 2).as_second().to_string();
        let visit = visit(&farm, proxy.https, "shop.test", &[version, "-attime", &then]);
        assert!(visit.served(), "{}", visit.output);
        assert!(!visit.output.contains("TLS session ticket:"), "{}", visit.output);
    }
    farm.put_certificate("shop", &farm.issue(&NAMES));
    wait_for("recovery", || problem(&proxy, "shop").is_none().then_some(()));
    assert!(serves(&farm, &proxy, "shop.test"));
    assert!(serves(&farm, &proxy, "blog.test"));
}

#[test]
fn tickets_end_with_the_certificate_and_survive_its_renewal() {
    let farm = Farm::new("web/shop");
    let minutes = SignedDuration::from_mins(30);
    farm.put_certificate("shop", &farm.issue_until(&NAMES, Timestamp::now() + minutes));
    let proxy = farm.start();
    let session = farm.dir.join("session");
    let file = session.to_str().expect("a plain path");
    let first = visit(&farm, proxy.https, "shop.test", &["-tls1_3", "-sess_out", file]);
    let hint = first.output.lines().find_map(|line| {
        let seconds = line.trim().strip_prefix("TLS session ticket lifetime hint: ")?;
        seconds.split(' ').next()?.parse::<i64>().ok()
    });
    let hint = hint.unwrap_or_else(|| panic!("no ticket: {}", first.output));
    assert!((1500..=1800).contains(&hint), "{hint} seconds");

    farm.put_certificate("shop", &farm.issue(&NAMES));
    wait_for("the new certificate", || {
        (proxy.metric("tlsfarm_proxy_reloads_total{file=\"certificate\"}") == 3).then_some(())
    });
    let again = visit(&farm, proxy.https, "shop.test", &["-tls1_3", "-sess_in", file]);
    assert!(again.reused && again.served(), "{}", again.output);
}

#[test]
fn the_client_gets_the_kind_of_certificate_that_it_can_verify() {
    let farm = Farm::new("web/shop");
    let mut config = farm.config();
    let ed25519 = farm.issue_with(
        &rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("generated"),
        &NAMES,
    );
    farm.put_certificate("shop-ed25519", &ed25519);
    let [certificate, key] = farm.certificate_files("shop-ed25519");
    config.hosts[0].certificates.insert(
        0,
        tlsfarm::config::CertificateConfig {
            name: "shop-ed25519".into(),
            certificate,
            key,
        },
    );
    let proxy = farm.start_with(config);
    for (algorithms, kind) in [("ed25519", "ED25519"), ("ECDSA+SHA256", "ECDSA")] {
        let visit = visit(
            &farm,
            proxy.https,
            "shop.test",
            &["-sigalgs", &format!("{algorithms}:ECDSA+SHA384")],
        );
        assert!(visit.served(), "{}", visit.output);
        assert!(
            visit
                .output
                .to_uppercase()
                .contains(&format!("PEER SIGNATURE TYPE: {kind}")),
            "{}",
            visit.output
        );
    }
}
