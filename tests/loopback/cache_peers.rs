//! Caches that share their entries: real processes, real TLS between them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult, cmd};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tlsfarm::config::{Backend, Peers};

use crate::cache_process::Cache;
use crate::harness::{Farm, PATIENCE, Reserved, wait_for};

const SERVER_NAME: &str = "cache.shop.web.tlsfarm";

/// What one command may take, the owner being dead: far less than the time limit.
const AT_MOST: Duration = Duration::from_millis(1000);

#[test]
fn entries_stored_at_one_cache_are_found_at_all_and_taken_once() {
    let caches = Caches::start(3);
    caches.wait_until_linked();
    let mut connections = caches.connections();
    for number in 0..90 {
        let [at, from, other] = [0, 1, 2].map(|offset| (number + offset) % 3);
        let key = format!("key {number}");
        set(&mut connections[at], &key, &key).expect("stored");
        assert_eq!(get(&mut connections[from], &key), Ok(Some(key.clone())));
        assert_eq!(take(&mut connections[other], &key), Ok(Some(key.clone())));
        assert_eq!(get(&mut connections[at], &key), Ok(None));
    }
}

/// Each knows the other only, as when both have just come, so that each holds every key to be the other's.
#[test]
fn caches_that_disagree_about_an_owner_do_not_forward_in_a_loop() {
    let farm = Farm::new("web/shop");
    farm.put_certificate("cache", &farm.issue(&[SERVER_NAME]));
    let caches = Caches::start_in(farm, 2, "10s", |place, all| vec![all[1 - place]]);
    caches.wait_until_linked();
    let mut connections = caches.connections();
    let [one, other] = &mut connections[..] else {
        panic!("two caches have two connections");
    };
    const KEYS: usize = 20;
    for number in 0..KEYS {
        set(one, &number.to_string(), "at the other").expect("stored");
    }
    assert_eq!(
        (caches.all[0].metric("entries"), caches.all[1].metric("entries")),
        (0, KEYS as u64)
    );
    for number in 0..KEYS {
        let key = number.to_string();
        assert_eq!(get(one, &key), Ok(Some("at the other".into())));
        assert_eq!(get(other, &key), Ok(None), "it asks the first one's shard");
        assert_eq!(take(one, &key), Ok(Some("at the other".into())));
    }
    // One request each, and none for what a peer asked.
    let asked = [0, 1].map(|place: usize| caches.all[place].metric("peer_requests_answered_total"));
    assert_eq!(asked, [3 * KEYS as u64, KEYS as u64]);
}

#[test]
fn several_keys_of_several_owners_are_counted_together() {
    let caches = Caches::start(3);
    caches.wait_until_linked();
    let mut connections = caches.connections();
    for number in 0..100 {
        cmd("SET")
            .arg(number)
            .arg(number)
            .exec(&mut connections[number % 3])
            .expect("stored");
    }
    let entries: Vec<u64> = caches.all.iter().map(|cache| cache.metric("entries")).collect();
    assert_eq!(entries.iter().sum::<u64>(), 100, "each is kept once: {entries:?}");
    assert!(entries.iter().all(|entries| *entries > 10), "{entries:?}");
    for connection in &mut connections {
        let left: u32 = cmd("TTL").arg(0).query(connection).expect("answered");
        assert!(
            (3500..=3600).contains(&left),
            "the lifetime that was configured: {left}"
        );
        // Owners answer at different times, but replies come in order.
        let mut pipeline = redis::pipe();
        for number in 0..100 {
            pipeline.cmd("GET").arg(number);
        }
        let found: Vec<usize> = pipeline.query(connection).expect("all of them");
        assert!(found.into_iter().eq(0..100));
    }
    let keys: Vec<u32> = (90..150).collect();
    let count = |connection: &mut Connection, command: &str| {
        cmd(command)
            .arg(&keys)
            .query::<u32>(connection)
            .expect("answered")
    };
    assert_eq!(count(&mut connections[0], "EXISTS"), 10);
    assert_eq!(count(&mut connections[1], "DEL"), 10);
    assert_eq!(count(&mut connections[2], "EXISTS"), 0);
}

#[test]
fn only_one_of_several_concurrent_takers_gets_an_entry() {
    const KEYS: usize = 500;
    let caches = Caches::start(3);
    caches.wait_until_linked();
    let mut first = caches.connections().remove(0);
    for number in 0..KEYS {
        set(&mut first, &number.to_string(), "value").expect("stored");
    }
    let takers = caches.connections().into_iter().chain(caches.connections());
    let takers: Vec<_> = takers
        .map(|mut connection| {
            thread::spawn(move || {
                let won = (0..KEYS).filter(|number| {
                    let taken = take(&mut connection, &number.to_string());
                    taken.expect("answered").is_some()
                });
                won.collect::<Vec<_>>()
            })
        })
        .collect();
    let mut won: Vec<usize> = Vec::new();
    for taker in takers {
        won.extend(taker.join().expect("no taker failed"));
    }
    won.sort_unstable();
    assert!(won.into_iter().eq(0..KEYS), "each entry was taken once");
}

#[test]
fn entries_of_a_dead_cache_miss_or_fail_immediately_and_the_others_stay() {
    let mut caches = Caches::start(3);
    // The cache is dead rather than silent, so its connections fail without a timeout.
    caches.wait_until_linked();
    let keys: Vec<String> = (0..150).map(|number| format!("key {number}")).collect();
    let mut connections = caches.connections();
    for key in &keys {
        set(&mut connections[0], key, key).expect("stored");
    }
    caches.all[2].kill();
    let mut lost = BTreeSet::new();
    for key in &keys {
        let began = Instant::now();
        let found = get(&mut connections[0], key).expect("a miss at worst");
        assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
        match found {
            Some(value) => assert_eq!(&value, key),
            None => {
                lost.insert(key);
            }
        }
        // The other living cache agrees about the owner.
        let found = get(&mut connections[1], key).expect("a miss at worst");
        assert_eq!(found.is_none(), lost.contains(key), "{key}");
    }
    assert!(
        (20..80).contains(&lost.len()),
        "{} of {} are lost",
        lost.len(),
        keys.len()
    );
    for key in &keys {
        let began = Instant::now();
        let stored = set(&mut connections[0], key, "new");
        assert_eq!(stored.is_err(), lost.contains(key), "{key}: {stored:?}");
        assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
    }
    caches.all[2].start_again();
    caches.wait_until_linked();
    for key in &keys {
        set(&mut connections[0], key, key).expect("its owner is back");
        assert_eq!(get(&mut connections[1], key), Ok(Some(key.clone())));
    }
}

#[test]
fn only_peers_with_the_right_certificate_are_served() {
    let caches = Caches::start(1);
    let address = caches.ports[0].address;
    let other = Farm::new("web/other");
    let farm = &caches.farm;
    let good = farm.issue(&[SERVER_NAME]);
    assert!(answers_ping(farm, address, Some(&good)), "a peer gets in");
    let refused = [
        ("no_certificate", None),
        ("wrong_certificate", Some(other.issue(&[SERVER_NAME]))),
        ("wrong_certificate", Some(farm.issue(&["cache.blog.web.tlsfarm"]))),
    ];
    for (reason, pair) in refused {
        let series = format!("peer_connections_refused_total{{reason=\"{reason}\"}}");
        let before = caches.all[0].metric(&series);
        assert!(!answers_ping(farm, address, pair.as_ref()), "{reason}");
        wait_for(&series, || (caches.all[0].metric(&series) > before).then_some(()));
    }
    let mut plain = TcpStream::connect(address).expect("connected");
    plain.set_read_timeout(Some(PATIENCE)).expect("set");
    plain.write_all(b"*1\r\n$4\r\nPING\r\n").expect("written");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.windows(4).any(|bytes| bytes == b"PONG"));
}

#[test]
fn a_cache_that_shows_a_foreign_certificate_gets_nothing() {
    let mut caches = Caches::start(2);
    caches.wait_until_linked();
    let mut connection = caches.connections().remove(0);
    // The chance that the first cache owns all fifty is 2^-50.
    let owned_by_the_other = (0..50)
        .map(|number| format!("key {number}"))
        .find(|key| {
            set(&mut connection, key, "value").expect("stored");
            caches.all[0].metric("peer_requests_answered_total") > 0
        })
        .expect("one that is the other's");
    let other = Farm::new("web/other");
    caches
        .farm
        .put_certificate("foreign", &other.issue(&[SERVER_NAME]));
    let [certificate, key] = caches.farm.certificate_files("foreign");
    let foreign = &mut caches.all[1];
    foreign.kill();
    let peers = foreign.config.peers.as_mut().expect("configured");
    (peers.certificate, peers.key) = (certificate, key);
    foreign.start_again();
    wait_for("the foreign certificate to be refused", || {
        set(&mut connection, &owned_by_the_other, "value").expect_err("nobody to give it to");
        let alerts = caches.all[1].metric("peer_connections_refused_total{reason=\"alert\"}");
        (alerts > 0).then_some(())
    });
}

#[test]
fn renewed_certificates_are_used_without_a_restart() {
    let caches = Caches::start(2);
    caches.wait_until_linked();
    let farm = &caches.farm;
    let old = farm.issue(&[SERVER_NAME]);
    // A completely new authority, as after a leak.
    let renewed = Farm::new("web/renewed");
    farm.put_certificate("cache", &renewed.issue(&[SERVER_NAME]));
    fs::copy(renewed.ca_file(), farm.ca_file()).expect("copied");
    for port in &caches.ports {
        wait_for("the new certificate", || {
            let new = renewed.issue(&[SERVER_NAME]);
            answers_ping(farm, port.address, Some(&new)).then_some(())
        });
        assert!(!answers_ping(farm, port.address, Some(&old)));
    }
    let mut connections = caches.connections();
    for number in 0..20 {
        let key = number.to_string();
        set(&mut connections[0], &key, &key).expect("connections stay");
        assert_eq!(get(&mut connections[1], &key), Ok(Some(key)));
    }
}

#[test]
fn a_cache_without_certificates_serves_its_own_keys_and_joins_once_it_has_them() {
    let farm = Farm::new("web/shop");
    let caches = Caches::start_in(farm, 2, "10s", |_, all| all.to_vec());
    let mut connections = caches.connections();
    let keys: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let stored = keys
        .iter()
        .filter(|key| set(&mut connections[0], key, "value").is_ok());
    let stored = stored.count();
    assert!(
        stored > 0 && stored < keys.len(),
        "{stored} of {} are its own",
        keys.len()
    );
    caches
        .farm
        .put_certificate("cache", &caches.farm.issue(&[SERVER_NAME]));
    caches.wait_until_linked();
    for key in &keys {
        set(&mut connections[0], key, "value").expect("stored");
        assert_eq!(get(&mut connections[1], key), Ok(Some("value".into())));
    }
}

fn set(connection: &mut Connection, key: &str, value: &str) -> RedisResult<()> {
    cmd("SET")
        .arg(key)
        .arg(value)
        .arg("PX")
        .arg(600_000)
        .query(connection)
}

fn get(connection: &mut Connection, key: &str) -> RedisResult<Option<String>> {
    cmd("GET").arg(key).query(connection)
}

fn take(connection: &mut Connection, key: &str) -> RedisResult<Option<String>> {
    cmd("GETDEL").arg(key).query(connection)
}

/// Whether somebody with such a certificate is talked to on the port for peers.
fn answers_ping(farm: &Farm, address: SocketAddr, pair: Option<&[String; 2]>) -> bool {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(farm.ca_file()).expect("readable") {
        roots.add(authority.expect("a certificate")).expect("usable");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("known")
        .with_root_certificates(roots);
    let config = match pair {
        None => config.with_no_client_auth(),
        Some([chain, key]) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(|found| found.expect("PEM"));
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            let config = config.with_client_auth_cert(chain.collect(), key);
            config.expect("they match")
        }
    };
    let tcp = TcpStream::connect(address).expect("connected");
    tcp.set_read_timeout(Some(PATIENCE)).expect("set");
    let name = ServerName::try_from(SERVER_NAME).expect("valid");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
    let mut stream = StreamOwned::new(connection, tcp);
    let mut answer = [0; 7];
    let sent = stream.write_all(b"*1\r\n$4\r\nPING\r\n");
    sent.and_then(|()| stream.read_exact(&mut answer)).is_ok() && answer == *b"+PONG\r\n"
}

/// Caches that know each other, by a list of all of them.
pub struct Caches {
    pub farm: Farm,
    pub all: Vec<Cache>,
    ports: Vec<Reserved>,
}

impl Caches {
    /// Caches that wait for each other longer than any machine is busy.
    pub fn start(count: usize) -> Self {
        Self::start_with_timeout(count, "10s")
    }

    pub fn start_with_timeout(count: usize, timeout: &str) -> Self {
        let farm = Farm::new("web/shop");
        farm.put_certificate("cache", &farm.issue(&[SERVER_NAME]));
        Self::start_in(farm, count, timeout, |_, all| all.to_vec())
    }

    /// `list` says which caches one knows, by its place among them.
    fn start_in(
        farm: Farm,
        count: usize,
        timeout: &str,
        list: impl Fn(usize, &[SocketAddr]) -> Vec<SocketAddr>,
    ) -> Self {
        let ports: Vec<_> = (0..count).map(|_| Reserved::new()).collect();
        let members: Vec<_> = ports.iter().map(|port| port.address).collect();
        let [certificate, key] = farm.certificate_files("cache");
        let start = |(place, port): (usize, &Reserved)| {
            let peers = Peers {
                listen: port.address,
                members: Backend::Addresses(list(place, &members)),
                server_name: SERVER_NAME.into(),
                certificate: certificate.clone(),
                key: key.clone(),
                authority: farm.ca_file(),
                timeout: timeout.parse().expect("valid"),
            };
            Cache::start_with(|config| config.peers = Some(peers))
        };
        let all = ports.iter().enumerate().map(start).collect();
        Self { farm, all, ports }
    }

    /// Each can ask each other one.
    pub fn wait_until_linked(&self) {
        let others = (self.all.len() - 1) as u64;
        for cache in &self.all {
            wait_for("connections to the others", || {
                (cache.metric("peer_reachable") == others).then_some(())
            });
        }
    }

    fn connections(&self) -> Vec<Connection> {
        let connect = |cache: &Cache| {
            let client = redis::Client::open(format!("redis://{}", cache.tcp));
            client.expect("an address").get_connection().expect("connected")
        };
        self.all.iter().map(connect).collect()
    }
}
