//! Sessions made at one proxy are resumed at every other one, and nowhere else.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::{Farm, Proxy, Visit, new_ring, rotated, visit, visit_with, wait_for};
use crate::redis_server::Redis;
use crate::session_cache;
use crate::session_offers::{self, BY_ID};

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

struct Session<'a> {
    farm: &'a Farm,
    version: &'static str,
    file: PathBuf,
}

impl<'a> Session<'a> {
    /// Makes a session at `proxy`.
    fn at(proxy: &Proxy, farm: &'a Farm, version: &'static str) -> Self {
        let session = Self {
            farm,
            version,
            file: farm.dir.join(format!("session{version}-{}", proxy.https.port())),
        };
        let first = session.visit(proxy, "shop.test", "-sess_out");
        assert!(first.served() && !first.reused, "{}", first.output);
        session
    }

    fn offered_to(&self, proxy: &Proxy, name: &str) -> Visit {
        let visit = self.visit(proxy, name, "-sess_in");
        assert!(visit.served(), "{}", visit.output);
        visit
    }

    fn visit(&self, proxy: &Proxy, name: &str, session: &str) -> Visit {
        let file = self.file.to_str().expect("a plain path");
        visit(self.farm, proxy.https, name, &[self.version, session, file])
    }
}

#[test]
fn a_session_of_one_proxy_is_resumed_at_the_others() {
    let farm = Farm::new("web/shop");
    let proxies = [farm.start(), farm.start(), farm.start()];
    for version in VERSIONS {
        for issuer in &proxies {
            let session = Session::at(issuer, &farm, version);
            for proxy in &proxies {
                let again = session.offered_to(proxy, "shop.test");
                assert!(again.reused, "{version}: {}", again.output);
            }
        }
    }
    for proxy in &proxies {
        for version in ["1.2", "1.3"] {
            let series = format!("tlsfarm_proxy_handshakes_total{{version=\"{version}\",kind=\"resumed\"}}");
            assert_eq!(proxy.metric(&series), 3, "{version}");
        }
        assert_eq!(
            proxy.metric("tlsfarm_proxy_tickets_offered_total{outcome=\"ok\"}"),
            6
        );
    }
}

#[test]
fn the_first_connection_of_a_fresh_proxy_resumes() {
    let farm = Farm::new("web/shop");
    let issuer = farm.start();
    for version in VERSIONS {
        let session = Session::at(&issuer, &farm, version);
        let fresh = farm.start();
        assert!(session.offered_to(&fresh, "shop.test").reused, "{version}");
    }
}

#[test]
fn a_hello_that_has_to_be_repeated_resumes_too() {
    let farm = Farm::new("web/shop");
    let (a, b) = (farm.start(), farm.start());
    let session = Session::at(&a, &farm, "-tls1_3");
    let file = session.file.to_str().expect("a plain path");
    // A key share of a group that we lack, and then one that we have: HelloRetryRequest.
    let groups = ["-tls1_3", "-groups", "P-521:P-256", "-sess_in", file];
    let again = visit(&farm, b.https, "shop.test", &groups);
    assert!(again.served() && again.reused, "{}", again.output);
    assert!(again.output.contains("prime256v1"), "{}", again.output);
}

#[test]
fn another_name_host_or_farm_gets_a_full_handshake_and_the_page() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    // A farm that shares hosts, certificates and, by mistake, the ring.
    let mut config = farm.config();
    config.farm = "web/other".into();
    let other_farm = farm.start_with(config);
    for version in VERSIONS {
        let session = Session::at(&proxy, &farm, version);
        for name in ["blog.test", "www.shop.test"] {
            assert!(!session.offered_to(&proxy, name).reused, "{version} {name}");
        }
        assert!(!session.offered_to(&other_farm, "shop.test").reused, "{version}");
        assert!(session.offered_to(&proxy, "shop.test").reused, "{version}");
    }
    // The scope is the same, but TLS itself binds a session to its server name.
    assert_eq!(
        proxy.metric("tlsfarm_proxy_tickets_offered_total{outcome=\"declined\"}"),
        2
    );
    assert_eq!(
        proxy.metric("tlsfarm_proxy_tickets_offered_total{outcome=\"not_authentic\"}"),
        2
    );
}

#[test]
fn a_rotation_arrives_at_once_and_loses_no_session() {
    let farm = Farm::new("web/shop");
    let (a, b) = (farm.start(), farm.start());
    let mut ring = new_ring().reissued(2, jiff::Timestamp::now());
    let mut oldest = None;
    for _ in 0..3 {
        farm.put_ring(&ring);
        let written = Instant::now();
        for proxy in [&a, &b] {
            wait_for("the new generation", || {
                (proxy.report().ring.generation == Some(ring.generation)).then_some(())
            });
        }
        let took = written.elapsed();
        assert!(took < Duration::from_secs(1), "took {took:?}");
        let primary = a.report().ring.primary;
        assert_eq!(primary, Some(ring.primary.id.to_string()));
        if oldest.is_none() {
            oldest = Some(VERSIONS.map(|version| Session::at(&a, &farm, version)));
        }
        for session in oldest.iter().flatten() {
            assert!(session.offered_to(&b, "shop.test").reused, "{}", session.version);
        }
        ring = rotated(ring);
    }
    assert_eq!(
        b.metric("tlsfarm_proxy_tickets_offered_total{outcome=\"ok_previous\"}"),
        4
    );
}

/// A client of TLS 1.2 without extended master secret.
struct Without<'a> {
    farm: &'a Farm,
    config: PathBuf,
}

impl<'a> Without<'a> {
    fn new(farm: &'a Farm) -> Self {
        let config = farm.dir.join("no-ems.cnf");
        let text = "openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = no_ems\n\
                    [no_ems]\nOptions = -ExtendedMasterSecret\n";
        fs::write(&config, text).expect("written");
        Self { farm, config }
    }

    /// Gets the page, whatever else.
    fn visit(&self, proxy: &Proxy, arguments: &[&str]) -> Visit {
        let visit = visit_with(self.farm, proxy.https, "shop.test", |client| {
            client
                .arg("-tls1_2")
                .args(arguments)
                .env("OPENSSL_CONF", &self.config)
        });
        assert!(visit.served(), "{}", visit.output);
        visit
    }
}

#[test]
fn tls12_without_extended_master_secret_is_never_resumed() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    let client = Without::new(&farm);
    let first = client.visit(&proxy, &[]);
    assert!(
        first.output.contains("Extended master secret: no"),
        "{}",
        first.output
    );
    assert!(!first.output.contains("TLS session ticket:"), "{}", first.output);

    let session = Session::at(&proxy, &farm, "-tls1_2");
    let again = client.visit(
        &proxy,
        &["-sess_in", session.file.to_str().expect("a plain path")],
    );
    assert!(!again.reused, "{}", again.output);
    assert_eq!(
        proxy.metric("tlsfarm_proxy_tickets_offered_total{outcome=\"not_allowed\"}"),
        1
    );
}

/// RFC 7627 section 5 is about session ids as well: none is given out, none is looked up.
#[test]
fn a_session_id_without_extended_master_secret_is_neither_made_nor_looked_up() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxy = session_cache::start(&farm, redis.over_unix());
    let client = Without::new(&farm);
    let first = client.visit(&proxy, &["-no_ticket"]);
    assert!(first.output.contains("Session-ID: \n"), "{}", first.output);
    assert_eq!(redis.entries(), 0);

    let session = session_offers::session(&farm, &proxy, &BY_ID);
    let offered = ["-no_ticket", "-sess_in", session.to_str().expect("a plain path")];
    let again = client.visit(&proxy, &offered);
    assert!(!again.reused, "{}", again.output);
    for outcome in ["hit", "miss"] {
        assert_eq!(session_offers::requests(&proxy, "get", outcome), 0, "{outcome}");
    }
    let with = session_offers::connect(&farm, &proxy, "shop.test", &BY_ID, "-sess_in", &session);
    assert!(with.served() && with.reused, "{}", with.output);
    assert_eq!(session_offers::requests(&proxy, "get", "hit"), 1);
}

#[test]
fn tickets_below_tls13_can_be_switched_off() {
    let farm = Farm::new("web/shop");
    let mut config = farm.config();
    config.tickets.tls12_lifetime = None;
    let (with, without) = (farm.start(), farm.start_with(config));
    let session = Session::at(&with, &farm, "-tls1_2");
    assert!(!session.offered_to(&without, "shop.test").reused);
    let session = Session::at(&without, &farm, "-tls1_3");
    assert!(session.offered_to(&with, "shop.test").reused);
}

#[test]
fn without_a_ring_there_are_pages_but_no_tickets() {
    let farm = Farm::new("web/shop");
    fs::remove_file(farm.ring_file()).expect("removed");
    let proxy = farm.start_with(farm.config());
    assert_eq!(proxy.get("/readyz").0, 503);
    assert_eq!(proxy.get("/healthz").0, 200);
    assert_eq!(proxy.metric("tlsfarm_proxy_tickets_disabled"), 1);
    for version in VERSIONS {
        let session = farm.dir.join("none.session");
        let file = session.to_str().expect("a plain path");
        let visit = visit(&farm, proxy.https, "shop.test", &[version, "-sess_out", file]);
        assert!(visit.served(), "{}", visit.output);
        assert!(!visit.output.contains("TLS session ticket:"), "{}", visit.output);
    }
    farm.put_ring(&new_ring());
    wait_for("readiness", || (proxy.get("/readyz").0 == 200).then_some(()));
    for version in VERSIONS {
        let session = Session::at(&proxy, &farm, version);
        assert!(session.offered_to(&proxy, "shop.test").reused, "{version}");
    }
}
