//! What proxies put into the session cache: in time for a client that comes back at once.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConnection, NamedGroup};

use crate::client::tls_config;
use crate::harness::{Farm, PATIENCE, Proxy, wait_for};
use crate::redis_server::Redis;
use crate::session_cache::{start, wait_until_reachable};
use crate::session_offers::Counted;

#[test]
fn sessions_are_stored_before_the_client_gets_its_tickets() {
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
        // Redis is single-threaded and handles this query after the stores.
        let stored = redis.entries() - entries;
        let after = wait_for("an end of storing", || {
            Some(Counted::of(&proxy)).filter(|now| now.puts() >= before.puts() + tickets as u64)
        });
        // The breaker may have opened between the hello, when the cache was reachable, and the end of the handshake.
        let not_sent = (after.not_sent - before.not_sent) as usize;
        assert!(
            stored <= tickets && stored + not_sent >= tickets,
            "round {round}: {tickets} tickets, {stored} entries, {not_sent} not sent"
        );
        if stored < 2 {
            // A proxy that considers the cache unreachable issues no tickets.
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
