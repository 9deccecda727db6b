//! What proxies put into the session cache: in time for a client that comes back at once, and not too much for any client.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConnection, NamedGroup};
use tokio::runtime;

use crate::client::{Client, tls_config};
use crate::harness::{Farm, PATIENCE, Proxy, Visit, visit, wait_for};
use crate::redis_server::Redis;
use crate::session_cache::{BY_ID, BY_TICKET, config, requests, start};

#[test]
fn a_client_that_has_its_tickets_finds_their_sessions_in_the_cache() {
    const ROUNDS: usize = 100;
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxy = start(&farm, redis.over_unix());
    let mut rounds = 0;
    while rounds < ROUNDS {
        let before = redis.entries();
        // A proxy that thinks that the cache is away gives none.
        if take_tickets(&farm, &proxy).expect("a connection") == 0 {
            continue;
        }
        // Redis does one thing after another, and takes this question last.
        assert_eq!(redis.entries(), before + 2, "in round {rounds}");
        rounds += 1;
    }
}

#[test]
fn a_client_over_its_budget_is_served_and_others_keep_their_sessions() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxy = farm.start_command(config(&farm, redis.over_unix()), on_one_core());
    wait_for("readiness and the session cache", || {
        let reachable = proxy.metric("tlsfarm_proxy_session_cache_reachable") == 2;
        (reachable && proxy.get("/readyz").0 == 200).then_some(())
    });
    let older = farm.dir.join("older");
    wait_for("a session of another client", || {
        let visit = from(&farm, &proxy, "127.0.0.2", &BY_ID, "-sess_out", &older);
        assert!(visit.served(), "{}", visit.output);
        (requests(&proxy, "put", "stored") > 0).then_some(())
    });

    let over_budget = || requests(&proxy, "put", "over_budget");
    let fresh = farm.dir.join("fresh");
    for arguments in [&BY_TICKET[..], &BY_ID] {
        let visit = wait_for("a client over its budget", || {
            flood(&farm, &proxy);
            let before = over_budget();
            let visit = from(&farm, &proxy, "127.0.0.1", arguments, "-sess_out", &fresh);
            assert!(visit.served() && !visit.reused, "{}", visit.output);
            // Its budget grows all the time, and may have sufficed again.
            (over_budget() > before).then_some(visit)
        });
        let has_id = visit.output.lines().any(|line| {
            line.trim()
                .strip_prefix("Session-ID:")
                .is_some_and(|id| !id.trim().is_empty())
        });
        let has_ticket = visit.output.contains("New Session Ticket arrived");
        assert!(!has_id && !has_ticket, "{}", visit.output);
    }

    // On a busy machine an answer of the cache may be late.
    wait_for("the older session to be resumed", || {
        let visit = from(&farm, &proxy, "127.0.0.2", &BY_ID, "-sess_in", &older);
        assert!(visit.served(), "{}", visit.output);
        visit.reused.then_some(())
    });
    // Two addresses of 4096 may have one budget, and hardly three.
    wait_for("sessions of others to be stored", || {
        let (stored, refused) = (requests(&proxy, "put", "stored"), over_budget());
        for other in ["127.0.0.2", "127.0.0.3"] {
            let visit = from(&farm, &proxy, other, &BY_ID, "-sess_out", &fresh);
            assert!(visit.served(), "{}", visit.output);
        }
        assert!(over_budget() < refused + 2, "nobody has a budget");
        (requests(&proxy, "put", "stored") > stored).then_some(())
    });
}

/// The program on one core, so that a proxy has one traffic thread and one budget for each client.
fn on_one_core() -> Command {
    let status = fs::read_to_string("/proc/self/status").expect("we run");
    let cores = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let core = cores.and_then(|cores| cores.trim().split([',', '-']).next());
    let mut taskset = Command::new("taskset");
    taskset
        .args(["--cpu-list", core.expect("a core")])
        .arg(env!("CARGO_BIN_EXE_tlsfarm"));
    taskset
}

/// Handshakes from 127.0.0.1 until sessions are not stored any more, many at the same time: all of them find room before
/// the first has used it, so that the client is over its budget for some seconds.
fn flood(farm: &Farm, proxy: &Proxy) {
    const AT_ONCE: usize = 400;
    let client = Client::forgetful(farm);
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (before, deadline) = (requests(proxy, "put", "over_budget"), Instant::now() + PATIENCE);
        while requests(proxy, "put", "over_budget") == before {
            assert!(Instant::now() < deadline, "it has no budget");
            let handshakes = (0..AT_ONCE).map(|_| client.tls(proxy.https));
            for handshake in join_all(handshakes).await {
                handshake.expect("a handshake");
            }
        }
    });
}

/// Visits `shop.test` from an address of this machine.
fn from(farm: &Farm, proxy: &Proxy, address: &str, arguments: &[&str], way: &str, file: &Path) -> Visit {
    let file = file.to_str().expect("a plain path");
    let source = format!("{address}:0");
    let all = [arguments, &["-bind", &source, way, file]].concat();
    visit(farm, proxy.https, "shop.test", &all)
}

/// Waits for the two tickets of a new connection; there may be none.
fn take_tickets(farm: &Farm, proxy: &Proxy) -> io::Result<usize> {
    const NONE_COME: Duration = Duration::from_secs(1);
    let tickets = Arc::<Tickets>::default();
    let mut config = tls_config(farm, &[&TLS13]);
    config.resumption = Resumption::store(Arc::clone(&tickets) as _);
    let name = ServerName::try_from("shop.test").expect("a name");
    let mut tls = ClientConnection::new(Arc::new(config), name).expect("usable");
    let mut tcp = TcpStream::connect(proxy.https)?;
    tcp.set_read_timeout(Some(NONE_COME))?;
    loop {
        match (tls.complete_io(&mut tcp), tickets.0.load(Ordering::Relaxed)) {
            (_, 2) => return Ok(2),
            (Err(error), 0) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            (outcome, _) => drop(outcome?),
        }
    }
}

/// Counts tickets.
#[derive(Debug, Default)]
struct Tickets(AtomicUsize);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}
