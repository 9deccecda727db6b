//! What the command line does besides serving: checks, and what it prints.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tlsfarm::config::{CacheServer, RedisConfig, RedisTlsConfig, SessionCacheConfig};

use crate::harness::{Farm, put_config};

fn tlsfarm(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlsfarm"));
    command
        .args(arguments)
        .env_remove("POD_IP")
        .output()
        .expect("it runs")
}

/// Exit code, standard output and standard error of `--check`.
fn check(role: &str, config: &Path) -> (Option<i32>, String, String) {
    let output = tlsfarm(&[role, "--check", "--config", config.to_str().expect("UTF-8")]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn proxy_check_reports_problems_and_opens_no_port() {
    let farm = Farm::new("web/shop");
    let file = farm.dir.join("checked.json");
    let mut config = farm.config();
    // In use: a check must not need it.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    config.listen.https = taken.local_addr().expect("bound");
    put_config(&file, &config);
    let (code, said, complaints) = check("proxy", &file);
    assert_eq!((code, complaints.as_str()), (Some(0), ""), "{said}");
    assert!(said.contains("no problems found"), "{said}");

    fs::remove_file(&config.hosts[0].certificates[0].key).expect("removed");
    farm.put_certificate("blog", &farm.issue(&["else.test"]));
    fs::write(&config.ring, "{}").expect("written");
    let (code, said, complaints) = check("proxy", &file);
    assert_eq!((code, said.as_str()), (Some(2), ""), "{complaints}");
    for problem in ["shop-tls", "blog-tls", "ring"] {
        assert!(complaints.contains(problem), "{problem} is not in {complaints}");
    }
    assert!(complaints.lines().count() >= 3, "{complaints}");

    config.session_cache = Some(redis(&farm.dir));
    put_config(&file, &config);
    let (_, _, complaints) = check("proxy", &file);
    for missing in ["no-password", "no-ca.crt"] {
        assert!(complaints.contains(missing), "{missing} is not in {complaints}");
    }

    fs::write(&file, "version: 9").expect("written");
    let (code, _, complaints) = check("proxy", &file);
    assert_eq!((code, complaints.lines().count()), (Some(2), 1), "{complaints}");
}

/// A session cache whose files do not exist.
fn redis(dir: &Path) -> SessionCacheConfig {
    SessionCacheConfig {
        server: CacheServer::Redis(RedisConfig {
            address: "redis.test:6379".into(),
            tls: Some(RedisTlsConfig {
                authority: dir.join("no-ca.crt"),
                server_name: None,
                certificate: None,
                key: None,
            }),
            username: None,
            password: Some(dir.join("no-password")),
        }),
        session_id_lifetime: "2h".parse().expect("valid"),
        lookup_timeout: "5ms".parse().expect("valid"),
    }
}

#[test]
fn cache_check_reports_problems_and_opens_no_socket() {
    let farm = Farm::new("web/shop");
    let dir = farm.dir.display().to_string();
    let [certificate, key] = farm.issue(&["cache.test"]);
    let file = |name: &str, text: &str| fs::write(farm.dir.join(name), text).expect("written");
    file("peer.crt", &certificate);
    file("peer.key", &key);
    file("password", "secret\n");
    let config = farm.dir.join("cache.yaml");
    let text = format!(
        "{{version: 1, sizeMiB: 1, listen: {{unix: {dir}/c.sock, admin: '127.0.0.1:0'}}, password: {dir}/password, \
         peers: {{listen: '127.0.0.1:7443', members: {{addresses: ['127.0.0.1:7443']}}, serverName: cache.test, \
         certificate: {dir}/peer.crt, key: {dir}/peer.key, authority: {dir}/ca.crt}}}}"
    );
    fs::write(&config, text).expect("written");
    let (code, said, complaints) = check("cache", &config);
    assert_eq!((code, complaints.as_str()), (Some(0), ""), "{said}");
    assert!(!farm.dir.join("c.sock").exists(), "a check opened a socket");

    // Peers would refuse a certificate of another CA.
    let [foreign, key] = Farm::new("web/other").issue(&["cache.test"]);
    file("peer.crt", &foreign);
    file("peer.key", &key);
    let (code, _, complaints) = check("cache", &config);
    assert_eq!(code, Some(2), "{complaints}");
    assert!(complaints.contains("peers will refuse"), "{complaints}");

    file("password", "\n");
    file("peer.crt", "nonsense");
    file("peer.key", "nonsense");
    let (code, _, complaints) = check("cache", &config);
    assert_eq!(code, Some(2), "{complaints}");
    assert!(complaints.contains("password"), "{complaints}");
    assert!(complaints.contains("peer.crt"), "{complaints}");
    assert!(complaints.contains("peer.key"), "{complaints}");
    assert!(!complaints.contains("secret"), "{complaints}");
}

#[test]
fn a_closed_standard_output_ends_it_with_141_and_no_message() {
    for arguments in [&["crd"][..], &["completion", "bash"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let child = Command::new(env!("CARGO_BIN_EXE_tlsfarm"))
            .args(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let output = child.wait_with_output().expect("it ends");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), complaints.as_ref()),
            (Some(141), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn completion_and_man_pages_know_every_command() {
    let farm = Farm::new("web/shop");
    let script = tlsfarm(&["completion", "bash"]).stdout;
    let script = String::from_utf8(script).expect("UTF-8");
    let directory = farm.dir.join("man1");
    fs::create_dir(&directory).expect("created");
    let written = tlsfarm(&["man", directory.to_str().expect("UTF-8")]);
    assert!(written.status.success());
    for command in ["operator", "proxy", "cache", "probe", "crd", "completion", "man"] {
        assert!(script.split_whitespace().any(|word| word == command), "{command}");
        let page = fs::read_to_string(directory.join(format!("tlsfarm-{command}.1"))).expect("written");
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
    }
    let nowhere = tlsfarm(&["man", "/nowhere/at/all"]);
    let complaints = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert_eq!(nowhere.status.code(), Some(2), "{complaints}");
    assert!(complaints.contains("/nowhere/at/all"), "{complaints}");
}
