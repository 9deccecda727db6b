//! The cache as Redis's own clients see it, and as a process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::{Connection, FromRedisValue, Value};

use crate::cache_process::Cache;
use crate::harness::{PATIENCE, wait_for};

/// Runs a tool of Debian's package redis-tools.
fn tool(name: &str, arguments: &[&str]) -> Output {
    let output = Command::new(name).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{name}: {error}; apt-get install redis-tools"))
}

fn cli(cache: &Cache, arguments: &[&str]) -> String {
    let port = cache.tcp.port().to_string();
    let output = tool(
        "redis-cli",
        &[&["-p", &port, "--no-auth-warning"], arguments].concat(),
    );
    String::from_utf8(output.stdout)
        .expect("text")
        .trim_end()
        .to_owned()
}

fn connect(url: &str) -> Connection {
    redis::Client::open(url)
        .and_then(|client| client.get_connection())
        .expect("connected")
}

fn ask<T: FromRedisValue>(connection: &mut Connection, words: &[&[u8]]) -> Result<T, String> {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command.query(connection).map_err(|error| error.to_string())
}

#[derive(Clone, Debug)]
enum Step {
    Get(u8),
    Take(u8),
    Set(u8, Vec<u8>, Option<u32>, bool),
    Delete(Vec<u8>),
    Exists(Vec<u8>),
    Expire(u8, i32),
    TimeLeft(u8),
    Echo(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0u8..8;
    let value = || vec(any::<u8>(), 0..300);
    prop_oneof![
        key().prop_map(Step::Get),
        key().prop_map(Step::Take),
        (key(), value(), proptest::option::of(1000u32..5000), any::<bool>())
            .prop_map(|(key, value, lifetime, new)| Step::Set(key, value, lifetime, new)),
        vec(key(), 1..5).prop_map(Step::Delete),
        vec(key(), 1..5).prop_map(Step::Exists),
        (key(), prop_oneof![Just(-1), 1000i32..5000]).prop_map(|(key, lifetime)| Step::Expire(key, lifetime)),
        key().prop_map(Step::TimeLeft),
        value().prop_map(Step::Echo),
    ]
}

/// Values and lifetimes, as the cache should have them.
type Model = BTreeMap<u8, (Vec<u8>, u32)>;

fn check(connection: &mut Connection, model: &mut Model, run: u32, step: Step) -> Result<(), TestCaseError> {
    let name = |key: u8| format!("{run}:{key}").into_bytes();
    let names = |keys: &[u8]| keys.iter().copied().map(name).collect::<Vec<_>>();
    let number = |connection: &mut Connection, command: &[u8], names: &[Vec<u8>]| {
        let words: Vec<&[u8]> = std::iter::once(command)
            .chain(names.iter().map(Vec::as_slice))
            .collect();
        ask::<i64>(connection, &words)
    };
    match step {
        Step::Get(key) => {
            let found: Option<Vec<u8>> = ask(connection, &[b"GET", &name(key)]).expect("answered");
            prop_assert_eq!(found.as_ref(), model.get(&key).map(|(value, _)| value));
        }
        Step::Take(key) => {
            let found: Option<Vec<u8>> = ask(connection, &[b"GETDEL", &name(key)]).expect("answered");
            prop_assert_eq!(found, model.remove(&key).map(|(value, _)| value));
        }
        Step::Set(key, value, lifetime, only_new) => {
            let seconds = lifetime.map(|lifetime| lifetime.to_string()).unwrap_or_default();
            let name = name(key);
            let mut words: Vec<&[u8]> = vec![b"SET", &name, &value];
            if lifetime.is_some() {
                words.extend([b"EX".as_slice(), seconds.as_bytes()]);
            }
            if only_new {
                words.push(b"NX");
            }
            let stored: Option<String> = ask(connection, &words).expect("answered");
            let expected = !(only_new && model.contains_key(&key));
            prop_assert_eq!(stored.is_some(), expected);
            if expected {
                model.insert(key, (value, lifetime.unwrap_or(3600)));
            }
        }
        Step::Delete(keys) => {
            let deleted = keys.iter().filter(|key| model.remove(key).is_some()).count();
            prop_assert_eq!(number(connection, b"DEL", &names(&keys)), Ok(deleted as i64));
        }
        Step::Exists(keys) => {
            let there = keys.iter().filter(|key| model.contains_key(key)).count();
            prop_assert_eq!(number(connection, b"EXISTS", &names(&keys)), Ok(there as i64));
        }
        Step::Expire(key, lifetime) => {
            let seconds = lifetime.to_string();
            let found: i64 = ask(connection, &[b"EXPIRE", &name(key), seconds.as_bytes()]).expect("answered");
            let expected = match u32::try_from(lifetime) {
                Ok(lifetime) => model.get_mut(&key).map(|(_, left)| *left = lifetime).is_some(),
                Err(_) => model.remove(&key).is_some(),
            };
            prop_assert_eq!(found, i64::from(expected));
        }
        Step::TimeLeft(key) => {
            let left = number(connection, b"TTL", &[name(key)]).expect("answered");
            match model.get(&key) {
                // The remaining time may have dropped meanwhile.
                Some((_, lifetime)) => {
                    prop_assert!((i64::from(*lifetime) - 30..=i64::from(*lifetime)).contains(&left))
                }
                None => prop_assert_eq!(left, -2),
            }
        }
        Step::Echo(text) => {
            prop_assert_eq!(ask::<Vec<u8>>(connection, &[b"ECHO", &text]), Ok(text));
        }
    }
    Ok(())
}

#[test]
fn a_client_library_of_redis_finds_what_it_stored() {
    let cache = Cache::start();
    let urls = [
        format!("redis://{}", cache.tcp),
        format!("redis://{}?protocol=resp3", cache.tcp),
        format!("redis+unix://{}", cache.unix.display()),
    ];
    let mut runs = 0;
    for url in urls {
        let connection = std::cell::RefCell::new(connect(&url));
        let run = std::cell::Cell::new(runs);
        let mut runner = TestRunner::new(Config::with_cases(30));
        let outcome = runner.run(&vec(step(), 1..60), |steps| {
            run.set(run.get() + 1);
            let mut model = Model::new();
            steps
                .into_iter()
                .try_for_each(|step| check(&mut connection.borrow_mut(), &mut model, run.get(), step))
        });
        outcome.unwrap_or_else(|error| panic!("{url}: {error}"));
        runs = run.get();
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let cache = Cache::start();
    let mut connection = connect(&format!("redis://{}", cache.tcp));
    // More than the cache reads and answers in one go.
    let value = vec![7; 4000];
    let mut pipeline = redis::Pipeline::new();
    pipeline.cmd("SET").arg("value").arg(&value);
    for number in 0..2000 {
        pipeline.cmd("ECHO").arg(number).cmd("GET").arg("value");
    }
    let answers: Vec<Value> = pipeline.query(&mut connection).expect("answered");
    assert_eq!(answers.len(), 4001);
    for (number, pair) in answers[1..].chunks(2).enumerate() {
        assert_eq!(pair[0], Value::BulkString(number.to_string().into_bytes()));
        assert_eq!(pair[1], Value::BulkString(value.clone()));
    }
}

#[test]
fn redis_cli_works_with_both_protocols() {
    let cache = Cache::start();
    for version in ["-2", "-3"] {
        assert_eq!(cli(&cache, &[version, "SET", "key", "a value"]), "OK");
        let left: u64 = cli(&cache, &[version, "TTL", "key"]).parse().expect("a number");
        assert!((3590..=3600).contains(&left), "the configured lifetime: {left}");
        assert_eq!(cli(&cache, &[version, "SET", "key", "other", "NX"]), "");
        assert_eq!(cli(&cache, &[version, "GETDEL", "key"]), "a value");
        assert_eq!(cli(&cache, &[version, "GET", "key"]), "");
        assert_eq!(cli(&cache, &[version, "SETEX", "key", "7", "value"]), "OK");
        assert_eq!(cli(&cache, &[version, "UNLINK", "key", "key"]), "1");
        assert_eq!(cli(&cache, &[version, "SELECT", "0"]), "OK");
        assert_eq!(cli(&cache, &[version, "CLIENT", "SETNAME", "me"]), "OK");
        assert_eq!(cli(&cache, &[version, "CONFIG", "GET", "save"]), "save");
        assert!(cli(&cache, &[version, "FLUSHALL"]).starts_with("ERR unknown command"));
        assert!(cli(&cache, &[version, "GET"]).starts_with("ERR wrong number of arguments"));
        let info = cli(&cache, &[version, "INFO"]);
        for line in ["redis_version:7", "keyspace_hits:", "used_memory:"] {
            assert!(info.contains(line), "{info}");
        }
    }
    let socket = cache.unix.to_str().expect("text");
    let output = tool("redis-cli", &["-s", socket, "PING"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "PONG\n");
}

#[test]
fn redis_benchmark_runs_against_the_cache() {
    let cache = Cache::start();
    let port = cache.tcp.port().to_string();
    for pipeline in ["1", "16"] {
        let output = tool(
            "redis-benchmark",
            &[
                "-p",
                &port,
                "-t",
                "ping,set,get",
                "-n",
                "4000",
                "-d",
                "150",
                "-P",
                pipeline,
                "--csv",
            ],
        );
        let (report, errors) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        let report = String::from_utf8_lossy(&report);
        assert!(output.status.success(), "{report}{errors}");
        assert!(
            !report.contains("ERR") && !errors.contains("WARNING"),
            "{report}{errors}"
        );
        let tests = report.lines().filter(|line| line.starts_with('"')).count();
        assert!(tests >= 4, "{report}");
    }
    assert!(cache.metric("requests_total{command=\"set\",outcome=\"stored\"}") >= 8000);
}

#[test]
fn without_the_password_nothing_is_answered() {
    let dir = std::env::temp_dir().join(format!("tlsfarm-password-{}", std::process::id()));
    fs::write(&dir, "open sesame\n").expect("written");
    let cache = Cache::start_with(|config| config.password = Some(dir.clone()));
    assert_eq!(cli(&cache, &["GET", "key"]), "NOAUTH Authentication required.");
    assert_eq!(cli(&cache, &["FLUSHALL"]), "NOAUTH Authentication required.");
    let wrong = cli(&cache, &["AUTH", "sesame"]);
    assert!(wrong.starts_with("WRONGPASS"), "{wrong}");
    let wrong = cli(&cache, &["HELLO", "3", "AUTH", "somebody", "open sesame"]);
    assert!(wrong.starts_with("WRONGPASS"), "{wrong}");
    assert!(cli(&cache, &["HELLO", "3"]).starts_with("NOAUTH"));
    assert_eq!(cache.metric("authentication_failures_total"), 2);
    for arguments in [
        &["-a", "open sesame", "SET", "key", "value"][..],
        &[
            "--user",
            "default",
            "-a",
            "open sesame",
            "-3",
            "SET",
            "key",
            "value",
        ],
    ] {
        assert_eq!(cli(&cache, arguments), "OK");
    }
    let open = Cache::start();
    let needless = cli(&open, &["AUTH", "anything"]);
    assert!(
        needless.starts_with("ERR AUTH <password> called without any password"),
        "{needless}"
    );
    fs::remove_file(dir).expect("removed");
}

#[test]
fn the_oldest_entries_are_evicted_when_memory_is_full() {
    let cache = Cache::start_with(|config| config.size_mib = 1);
    let mut connection = connect(&format!("redis://{}", cache.tcp));
    for number in 0u32..600 {
        let stored: String =
            ask(&mut connection, &[b"SET", &number.to_be_bytes(), &[1; 4096]]).expect("answered");
        assert_eq!(stored, "OK");
    }
    let there = |connection: &mut Connection, number: u32| {
        ask::<i64>(connection, &[b"EXISTS", &number.to_be_bytes()]) == Ok(1)
    };
    assert!(!there(&mut connection, 0) && there(&mut connection, 599));
    let entries = cache.metric("entries");
    assert_eq!(cache.metric("evictions_total"), 600 - entries);
    assert!((200..260).contains(&entries), "{entries} entries");
    assert!(cache.metric("bytes") <= cache.metric("limit_bytes"));
    assert_eq!(cache.metric("limit_bytes"), 1 << 20);
}

#[test]
fn a_stale_socket_is_replaced_and_removed_on_exit() {
    let mut cache = Cache::start();
    let mode = fs::metadata(&cache.unix).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    cache.kill();
    assert!(cache.unix.exists());
    cache.start_again();
    let mut idle = UnixStream::connect(&cache.unix).expect("connected");
    idle.set_read_timeout(Some(PATIENCE)).expect("settable");
    let mut busy = TcpStream::connect(cache.tcp).expect("connected");
    busy.write_all(b"PING\r\n").expect("taken");
    let mut answer = [0; 7];
    busy.read_exact(&mut answer).expect("answered");
    assert_eq!(&answer, b"+PONG\r\n");

    let begin = Instant::now();
    cache.signal("TERM");
    assert!(cache.wait().success());
    assert!(begin.elapsed().as_secs() < 2, "{:?}", begin.elapsed());
    assert_eq!(idle.read(&mut [0]).expect("closed in good order"), 0);
    assert!(!cache.unix.exists());
}

#[test]
fn startup_errors_are_one_line_and_exit_code_2() {
    let dir = std::env::temp_dir().join(format!("tlsfarm-wrong-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("created");
    let config = |text: &str| {
        let file = dir.join("cache.yaml");
        fs::write(&file, text).expect("written");
        file.display().to_string()
    };
    let refused = |arguments: &[&str], why: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tlsfarm"));
        let output = command
            .arg("cache")
            .args(arguments)
            .env_remove("POD_IP")
            .output()
            .expect("the process exits");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(why), "{why:?} is not in {message}");
        message
    };
    let one_line = |text: &str, why: &str| {
        let message = refused(&["--config", &config(text)], why);
        assert_eq!(message.lines().count(), 1, "{message}");
    };
    refused(&[], "--config");
    refused(&["--config", "/nowhere", "--pod-ip", "x"], "--pod-ip");
    assert_eq!(refused(&["--config", "/nowhere"], "/nowhere").lines().count(), 1);
    one_line("version: 1", "listen");
    let good = format!(
        "{{version: 1, sizeMiB: 1, listen: {{unix: {}/c.sock, admin: '127.0.0.1:0'}}",
        dir.display()
    );
    one_line(&format!("{good}, password: {}/none}}", dir.display()), "none");
    fs::write(dir.join("empty"), "\n").expect("written");
    one_line(
        &format!("{good}, password: {}/empty}}", dir.display()),
        "is empty",
    );
    let peers = "peers: {listen: '[::]:0', members: {service: {name: c, port: 1}}, serverName: c.test, \
                 certificate: a, key: b, authority: c}";
    one_line(&format!("{good}, {peers}}}"), "POD_IP");
    fs::write(dir.join("c.sock"), "precious").expect("written");
    one_line(&format!("{good}}}"), "the path exists and is not a socket");
    assert_eq!(
        fs::read_to_string(dir.join("c.sock")).expect("still there"),
        "precious"
    );
    fs::remove_dir_all(&dir).expect("removed");
}

#[test]
fn values_are_not_in_memory_in_plaintext() {
    const NEEDLE: &[u8] = b"the master secret of somebody's session";
    let cache = Cache::start();
    let mut connection = connect(&format!("redis://{}", cache.tcp));
    let stored: String =
        ask(&mut connection, &[b"SET", b"a session id, to be guarded", NEEDLE]).expect("answered");
    assert_eq!(stored, "OK");
    let found: Vec<u8> = ask(&mut connection, &[b"GET", b"a session id, to be guarded"]).expect("answered");
    assert_eq!(found, NEEDLE);
    wait_for("memory without the value", || {
        let memory = cache.memory();
        let holds = |needle: &[u8]| {
            let mut rest = memory.as_slice();
            while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
                rest = &rest[at..];
                if rest.starts_with(needle) {
                    return true;
                }
                rest = &rest[1..];
            }
            false
        };
        (!holds(NEEDLE) && !holds(b"a session id, to be guarded")).then_some(())
    });
}
