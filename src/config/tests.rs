use super::*;

const EXAMPLE: &str = r#"
version: 1
farm: web/shop
listen: {https: "[::]:8443", http: "[::]:8080", admin: "[::]:9090"}
ring: /etc/tlsfarm/ring/ring.json
tickets: {lifetime: 4h, maxAge: 24h, tls12Lifetime: 2h}
drainPeriod: 25s
hosts:
- name: shop
  hostnames: [shop.example.com, "*.shop.example.com"]
  certificates: [{name: shop-tls, certificate: tls.crt, key: tls.key}]
  routes:
  - {path: /, backend: {service: {name: web, port: 8080, portName: http}}}
  - {path: /static, backend: {addresses: ["127.0.0.1:8000"]}}
"#;

#[test]
fn a_hand_written_file_is_read_and_survives_json() {
    let config = ProxyConfig::parse(EXAMPLE).expect("valid");
    assert_eq!(config.timeouts.handshake.as_secs(), 10);
    let json = serde_json::to_string(&config).expect("serializes");
    assert_eq!(ProxyConfig::parse(&json).expect("valid"), config);
}

#[test]
fn faults_are_named() {
    let refused = |from: &str, to: &str| {
        ProxyConfig::parse(&EXAMPLE.replacen(from, to, 1))
            .expect_err("refused")
            .to_string()
    };
    assert!(refused("version: 1", "version: 9").contains("version 9"));
    assert!(refused("hostnames: [shop.example.com,", "hostnames: [Shop.example.com,").contains("lower-case"));
    for name in [
        "*.*.example.com",
        "*",
        "a.*.example.com",
        "shop.example.com.",
        "sh op",
        "",
        "10.0.0.1",
    ] {
        let refusal = refused("\"*.shop.example.com\"", &format!("{name:?}"));
        assert!(refusal.contains("DNS name"), "{name:?}: {refusal}");
    }
    assert!(refused("\"*.shop.example.com\"", "shop.example.com").contains("used by two hosts"));
    assert!(refused("farm:", "frm:").contains("frm"));
    assert!(refused("lifetime: 4h", "lifetime: 4 hours").contains("4 hours"));
    let timeouts = "timeouts: {bodyIdle: 1s, http2Idle: 0s}\nhosts:";
    assert!(refused("hosts:", timeouts).contains("http2Idle"));
    assert!(refused("path: /,", "path: x,").contains("begin with /"));
    assert!(refused("hostnames:", "ticketKind: SingleUse\n  hostnames:").contains("sessionCache"));
    let slow = "sessionCache: {server: {unix: a}, sessionIdLifetime: 1h, lookupTimeout: 51ms}\nhosts:";
    assert!(refused("hosts:", slow).contains("50ms"));
    assert!(refused("path: /,", "path: '/*',").contains("without wildcards"));
    assert!(refused("http: \"[::]:8080\"", "http: \"[::]:8443\"").contains("different addresses"));
    assert!(refused("admin: \"[::]:9090\"", "admin: \"[::]:8443\"").contains("different addresses"));
    for address in ["redis", "redis:99999", "redis:0"] {
        let redis = format!(
            "sessionCache: {{server: {{redis: {{address: {address:?}}}}}, sessionIdLifetime: 1h}}\nhosts:"
        );
        assert!(
            refused("hosts:", &redis).contains("a host and a port"),
            "{address}"
        );
    }
}

/// The example with one change: refused with these words, or accepted.
fn changed(from: &str, to: &str) -> Result<ProxyConfig, String> {
    assert!(EXAMPLE.contains(from), "{from}");
    ProxyConfig::parse(&EXAMPLE.replacen(from, to, 1)).map_err(|error| error.to_string())
}

#[test]
fn bounds_are_inclusive() {
    for field in ["lifetime: 4h", "maxAge: 24h"] {
        let name = field.split(':').next().expect("a name");
        assert!(changed(field, &format!("{name}: 168h")).is_ok(), "{name}");
        let refusal = changed(field, &format!("{name}: 169h")).expect_err("refused");
        assert!(refusal.contains("at most 168h"), "{refusal}");
    }
    let lookup = |timeout: &str| {
        let cache =
            format!("sessionCache: {{server: {{unix: a}}, sessionIdLifetime: 1h, lookupTimeout: {timeout}}}");
        changed("hosts:", &format!("{cache}\nhosts:"))
    };
    assert!(lookup("1ms").is_ok() && lookup("50ms").is_ok());
    for timeout in ["0s", "51ms", "1s"] {
        let refusal = lookup(timeout).expect_err("refused");
        assert!(refusal.contains("between 1ms and 50ms"), "{refusal}");
    }
}

#[test]
fn no_time_limit_can_be_switched_off() {
    for limit in [
        "handshake",
        "requestHead",
        "bodyIdle",
        "keepAlive",
        "http2Idle",
        "writeStall",
        "connect",
        "responseHead",
        "responseIdle",
    ] {
        let refusal = changed("hosts:", &format!("timeouts: {{{limit}: 0s}}\nhosts:")).expect_err("refused");
        assert!(refusal.starts_with(&format!("invalid {limit} of ")), "{refusal}");
    }
}

#[test]
fn a_host_needs_names_certificates_and_routes_and_a_farm_needs_a_host() {
    let certificates = "certificates: [{name: shop-tls, certificate: tls.crt, key: tls.key}]";
    let hostnames = "hostnames: [shop.example.com, \"*.shop.example.com\"]";
    let routes = &EXAMPLE[EXAMPLE.find("routes:").expect("there")..];
    for (from, to) in [
        (hostnames, "hostnames: []"),
        (certificates, "certificates: []"),
        (routes, "routes: []"),
    ] {
        let refusal = changed(from, to).expect_err("refused");
        assert!(
            refusal.contains("hostnames, certificates and routes must not be empty"),
            "{refusal}"
        );
    }
    let hosts = &EXAMPLE[EXAMPLE.find("hosts:").expect("there")..];
    let refusal = changed(hosts, "hosts: []").expect_err("refused");
    assert!(refusal.contains("must have at least one entry"), "{refusal}");
}

#[test]
fn hosts_must_not_share_a_name_or_a_host_name() {
    let with_second = |name: &str, hostname: &str| {
        let second = format!(
            "- name: {name}\n  hostnames: [{hostname}]\n  certificates: [{{name: c, certificate: c, key: k}}]\n  \
                 routes: [{{path: /, backend: {{addresses: [\"127.0.0.1:1\"]}}}}]\n"
        );
        ProxyConfig::parse(&format!("{EXAMPLE}{second}")).map_err(|error| error.to_string())
    };
    assert!(with_second("blog", "blog.example.com").is_ok());
    assert!(
        with_second("shop.example.com", "shop").is_ok(),
        "names of hosts are no host names"
    );
    let refusal = with_second("shop", "blog.example.com").expect_err("refused");
    assert!(refusal.contains("\"shop\" is used by two hosts"), "{refusal}");
    let refusal = with_second("blog", "shop.example.com").expect_err("refused");
    assert!(
        refusal.contains("\"shop.example.com\" is used by two hosts"),
        "{refusal}"
    );
}

#[test]
fn single_use_tickets_are_accepted_with_a_session_cache() {
    let cached = EXAMPLE
        .replacen("hostnames:", "ticketKind: SingleUse\n  hostnames:", 1)
        .replacen(
            "hosts:",
            "sessionCache: {server: {unix: a}, sessionIdLifetime: 1h}\nhosts:",
            1,
        );
    let config = ProxyConfig::parse(&cached).expect("valid");
    let cache = config.session_cache.expect("there is one");
    assert_eq!(cache.lookup_timeout, Duration::from_millis(5), "by default");
}

#[test]
fn fingerprints_are_short_stable_and_differ_between_files() {
    assert_eq!(fingerprint(b""), "e3b0c44298fc1c14");
    assert_ne!(fingerprint(b"a"), fingerprint(b"b"));
}
