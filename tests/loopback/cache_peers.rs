//! Caches that share their entries: each key has one owner, and a lost owner costs misses only.

use std::time::Duration;

use redis::Connection;
use tlsfarm::config::{self, Backend};

use crate::cache_process::Cache;
use crate::harness::{Farm, Reserved, wait_for};

/// Caches that know each other.
pub struct Peers {
    pub caches: Vec<Cache>,
    _farm: Farm,
    _ports: Vec<Reserved>,
}

impl Peers {
    pub fn new(count: usize) -> Self {
        let farm = Farm::new("web/shop");
        farm.put_certificate("peers", &farm.issue(&["cache.shop.web.tlsfarm"]));
        let [certificate, key] = farm.certificate_files("peers");
        let ports: Vec<_> = (0..count).map(|_| Reserved::new()).collect();
        let members: Vec<_> = ports.iter().map(|port| port.address).collect();
        let start = |port: &Reserved| {
            let peers = config::Peers {
                listen: port.address,
                members: Backend::Addresses(members.clone()),
                server_name: "cache.shop.web.tlsfarm".into(),
                certificate: certificate.clone(),
                key: key.clone(),
                authority: farm.ca_file(),
                // What is expected to be answered is, however busy the machine.
                timeout: "5s".parse().expect("valid"),
            };
            Cache::start_with(|config| config.peers = Some(peers))
        };
        let peers = Self {
            caches: ports.iter().map(start).collect(),
            _farm: farm,
            _ports: ports,
        };
        for cache in &peers.caches {
            let mut connection = connect(cache);
            wait_for("a way from each cache to each", || {
                let ask = |key: u32| redis::cmd("EXISTS").arg(key).query::<u32>(&mut connection);
                (0..50).map(ask).all(|answer| answer.is_ok()).then_some(())
            });
        }
        peers
    }

    fn connections(&self) -> Vec<Connection> {
        self.caches.iter().map(connect).collect()
    }
}

fn connect(cache: &Cache) -> Connection {
    let client = redis::Client::open(format!("redis://{}", cache.tcp)).expect("a URL");
    client.get_connection().expect("connected")
}

fn get(connection: &mut Connection, key: u32) -> Option<u32> {
    redis::cmd("GET")
        .arg(key)
        .query(connection)
        .expect("never an error")
}

#[test]
fn what_one_stores_all_find_and_one_takes() {
    const KEYS: u32 = 300;
    let peers = Peers::new(3);
    let mut connections = peers.connections();
    for key in 0..KEYS {
        let set = redis::cmd("SET")
            .arg(key)
            .arg(key)
            .exec(&mut connections[key as usize % 3]);
        set.expect("stored");
    }
    let entries: Vec<u64> = peers.caches.iter().map(|cache| cache.metric("entries")).collect();
    assert_eq!(
        entries.iter().sum::<u64>(),
        u64::from(KEYS),
        "each is kept once: {entries:?}"
    );
    assert!(
        entries.iter().all(|entries| (50..150).contains(entries)),
        "{entries:?}"
    );
    for connection in &mut connections {
        assert!((0..KEYS).all(|key| get(connection, key) == Some(key)));
        let left: u32 = redis::cmd("TTL").arg(0).query(connection).expect("answered");
        assert!(
            (3500..=3600).contains(&left),
            "the lifetime that was configured: {left}"
        );
    }
    // All at once, and at every cache.
    for connection in &mut connections {
        let mut pipeline = redis::pipe();
        for key in 0u32..100 {
            pipeline.cmd("GETDEL").arg(key);
        }
        let taken: Vec<Option<u32>> = pipeline.query(connection).expect("never an error");
        let order: Vec<u32> = taken.iter().copied().flatten().collect();
        assert!(
            order.is_empty() || order == (0..100).collect::<Vec<_>>(),
            "{taken:?}"
        );
    }
    let names: Vec<u32> = (90..150).collect();
    let count = |connection: &mut Connection, command: &str| -> u32 {
        redis::cmd(command)
            .arg(&names)
            .query(connection)
            .expect("answered")
    };
    assert_eq!(count(&mut connections[0], "EXISTS"), 50);
    assert_eq!(count(&mut connections[1], "DEL"), 50);
    assert_eq!(count(&mut connections[2], "EXISTS"), 0);
}

#[test]
fn a_lost_owner_is_a_miss_and_others_go_on() {
    let mut peers = Peers::new(2);
    let mut connection = connect(&peers.caches[0]);
    for key in 0u32..100 {
        redis::cmd("SET")
            .arg(key)
            .arg(key)
            .exec(&mut connection)
            .expect("stored");
    }
    let own = peers.caches[0].metric("entries");
    peers.caches[1].kill();
    let found = (0..100)
        .filter(|key| get(&mut connection, *key) == Some(*key))
        .count();
    assert_eq!(found as u64, own);
    let refused = (0u32..100).filter(|key| {
        let stored = redis::cmd("SET").arg(key).arg(key).exec(&mut connection);
        stored.is_err_and(|error| error.to_string().contains("does not answer"))
    });
    assert_eq!(refused.count() as u64, 100 - own);
    assert!(peers.caches[0].metric("requests_total{command=\"get\",outcome=\"unavailable\"}") > 0);
    // Nobody waited for the time limit.
    let begin = std::time::Instant::now();
    for key in 0..100 {
        get(&mut connection, key);
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());

    peers.caches[1].crash_and_start_again();
    wait_for("the owner's return", || {
        let all = (0u32..100).all(|key| {
            let stored = redis::cmd("SET").arg(key).arg(key).exec(&mut connection);
            stored.is_ok() && get(&mut connection, key) == Some(key)
        });
        all.then_some(())
    });
}
