//! What proxies put into the session cache: in time for a client that comes back at once, and not too much for any client.

use std::fs;
use std::io::{self, Write};
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
use crate::session_cache::{config, start, wait_until_reachable};
use crate::session_offers::{BY_ID, BY_TICKET, Counted, requests, sessions_given, until_answered};

#[test]
fn a_client_that_has_its_tickets_finds_their_sessions_in_the_cache() {
    const ROUNDS: usize = 100;
    // Rounds in which the proxy itself counts that it did not send something. Five late answers in a row keep a thread from
    // asking for a second, in which a busy machine may see that many clients.
    const EXCUSED: usize = 20;
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let proxy = start(&farm, redis.over_unix());
    let mut excused = 0;
    for round in 0..ROUNDS {
        let (before, entries) = (Counted::of(&proxy), redis.entries());
        let tickets = take_tickets(&farm, &proxy).expect("a connection");
        // Redis does one thing after another, and takes this question last.
        let stored = redis.entries() - entries;
        let after = wait_for("an end of storing", || {
            Some(Counted::of(&proxy)).filter(|now| now.puts() >= before.puts() + tickets as u64)
        });
        // Between the hello, when the cache was there, and the end of the handshake it may have been given up.
        let not_sent = (after.not_sent - before.not_sent) as usize;
        assert!(
            stored <= tickets && stored + not_sent >= tickets,
            "round {round}: {tickets} tickets, {stored} entries, {not_sent} not sent"
        );
        if stored < 2 {
            // A proxy that thinks that the cache is away gives none.
            assert!(
                not_sent > 0 || (tickets == 0 && (before.holds_back() || after.holds_back())),
                "round {round}: {tickets} tickets, {stored} entries, {before:?}, {after:?}"
            );
            excused += 1;
            assert!(
                excused <= EXCUSED,
                "{excused} of {round} rounds without sessions in the cache"
            );
            wait_until_reachable(&proxy);
        }
    }
}

#[test]
fn a_client_over_its_budget_is_served_and_others_keep_their_sessions() {
    let farm = Farm::new("web/shop");
    let redis = Redis::start(&farm, &[]);
    let mut config = config(&farm, redis.over_unix());
    // Hundreds of them at once share one core, with whatever else the machine does.
    config.timeouts.handshake = "20s".parse().expect("valid");
    let proxy = farm.start_command(config, on_one_core());
    wait_for("readiness and the session cache", || {
        let reachable = proxy.metric("tlsfarm_proxy_session_cache_reachable") == 2;
        (reachable && proxy.get("/readyz").0 == 200).then_some(())
    });
    let older = farm.dir.join("older");
    until_answered(&proxy, "storing a session of another client", || {
        let before = Counted::of(&proxy);
        let visit = from(&farm, &proxy, "127.0.0.2", &BY_ID, "-sess_out", &older);
        assert!(visit.served(), "{}", visit.output);
        let after = before.and_what_was_stored_of(&visit, &proxy);
        let held_back = before.holds_back() || after.holds_back();
        assert!(after.puts() > before.puts() || held_back, "{}", visit.output);
        (after.stored > before.stored).then_some(())
    });

    let over_budget = || requests(&proxy, "put", "over_budget");
    let fresh = farm.dir.join("fresh");
    for arguments in [&BY_TICKET[..], &BY_ID] {
        let visit = over_budget_visit(&farm, &proxy, arguments, &fresh);
        assert_eq!(sessions_given(&visit), 0, "{}", visit.output);
    }

    until_answered(&proxy, "the lookup of the older session", || {
        let before = Counted::of(&proxy);
        let visit = from(&farm, &proxy, "127.0.0.2", &BY_ID, "-sess_in", &older);
        assert!(visit.served(), "{}", visit.output);
        let unanswered = Counted::of(&proxy).unanswered > before.unanswered;
        assert!(visit.reused || unanswered, "{}", visit.output);
        visit.reused.then_some(())
    });
    // Two addresses of 4096 may have one budget, and hardly three.
    until_answered(&proxy, "storing sessions of others", || {
        let (before, refused) = (Counted::of(&proxy), over_budget());
        let mut now = before;
        for other in ["127.0.0.2", "127.0.0.3"] {
            let visit = from(&farm, &proxy, other, &BY_ID, "-sess_out", &fresh);
            assert!(visit.served(), "{}", visit.output);
            now = now.and_what_was_stored_of(&visit, &proxy);
        }
        assert!(over_budget() < refused + 2, "nobody has a budget");
        (now.stored > before.stored).then_some(())
    });
}

/// A visit of a client that is over its budget. That grows all the time, and after a second or more may suffice again, in
/// which case the client is given sessions.
fn over_budget_visit(farm: &Farm, proxy: &Proxy, arguments: &[&str], file: &Path) -> Visit {
    const ATTEMPTS: usize = 5;
    for _ in 0..ATTEMPTS {
        flood(farm, proxy);
        let (before, refused) = (Counted::of(proxy), requests(proxy, "put", "over_budget"));
        let visit = from(farm, proxy, "127.0.0.1", arguments, "-sess_out", file);
        assert!(visit.served() && !visit.reused, "{}", visit.output);
        if requests(proxy, "put", "over_budget") > refused {
            return visit;
        }
        let excused = sessions_given(&visit) > 0 || before.holds_back() || Counted::of(proxy).holds_back();
        assert!(excused, "neither given nor refused: {}", visit.output);
    }
    panic!("a client's budget sufficed {ATTEMPTS} times after a flood");
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
    // A budget grows by 256 sessions a second meanwhile, which a busy machine barely exceeds.
    const LONGEST: Duration = Duration::from_secs(60);
    let client = Client::forgetful(farm);
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (before, deadline) = (requests(proxy, "put", "over_budget"), Instant::now() + LONGEST);
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

/// The tickets of a new connection. Two are waited for; that there are fewer shows when the page comes, which comes last.
fn take_tickets(farm: &Farm, proxy: &Proxy) -> io::Result<usize> {
    let tickets = Arc::<Tickets>::default();
    let mut config = tls_config(farm, &[&TLS13]);
    config.resumption = Resumption::store(Arc::clone(&tickets) as _);
    let name = ServerName::try_from("shop.test").expect("a name");
    let mut tls = ClientConnection::new(Arc::new(config), name).expect("usable");
    let mut tcp = TcpStream::connect(proxy.https)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tls.writer()
        .write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n")?;
    loop {
        tls.complete_io(&mut tcp)?;
        let taken = tickets.0.load(Ordering::Relaxed);
        let page = tls.process_new_packets().map_err(io::Error::other)?;
        if taken == 2 || page.plaintext_bytes_to_read() > 0 {
            return Ok(taken);
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
