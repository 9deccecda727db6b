//! Clients of a farm with a session cache, for as long as a test disturbs it: requests over kept and over new connections,
//! none of which may fail, and sessions without tickets, of which some may be missed at known times.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cached_farm::{Proxy, SHOP};
use crate::due::{Watched, most_explained};
use crate::harness::{Handshake, Load, Version, s_client, scratch, wait_for};

/// Sessions between two disturbances, all of which must resume.
const UNDISTURBED: usize = 20;

/// Sessions that a disturbance has to meet, so that what it costs shows.
const DISTURBED: usize = 10;

pub struct Traffic {
    loads: Vec<Load>,
    /// Until it is stopped.
    sessions: Option<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<Session>>>,
    stop: Arc<AtomicBool>,
    disturbances: Vec<Disturbance>,
    /// Answers that came late although nothing disturbed the farm, as its proxies and caches counted them.
    late: Vec<String>,
    started: Instant,
}

/// A session that was taken somewhere and offered somewhere at once.
#[derive(Clone, Copy, Debug)]
struct Session {
    began: Instant,
    ended: Instant,
    taken: Handshake,
    offered: Handshake,
}

/// A time in which sessions may be missed.
struct Disturbance {
    what: String,
    began: Instant,
    ended: Instant,
    /// Largest share of the sessions of that time, in percent.
    may_miss: usize,
}

impl Traffic {
    /// Clients of these proxies, which they reach by their Service.
    pub fn start(name: &'static str, address: SocketAddr, proxies: &[Proxy]) -> Self {
        let limit = Duration::from_secs(900);
        let loads = [(50, true), (10, false)]
            .map(|(rate, keep)| Load::start(name, SHOP, &address.to_string(), rate, keep, limit))
            .into();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stopped, seeing) = (Arc::clone(&stop), Arc::clone(&seen));
        let sessions = thread::spawn(move || {
            let file = scratch(name).join("traffic.pem");
            let ask = |save, offer| s_client(address, SHOP, Version::Tls12WithoutTickets, save, offer);
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let taken = ask(Some(file.as_path()), None);
                let offered = ask(None, Some(file.as_path()));
                let session = Session {
                    began,
                    ended: Instant::now(),
                    taken,
                    offered,
                };
                seeing
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(session);
            }
        });
        let mut traffic = Self {
            loads,
            sessions: Some(sessions),
            seen,
            stop,
            disturbances: Vec::new(),
            late: Vec::new(),
            started: Instant::now(),
        };
        traffic.go_undisturbed(proxies);
        traffic
    }

    /// Disturbs the farm. Sessions may be missed until `disturb` returns the proxies that are there now, but no more than
    /// this share of them, in percent, and none of those that are taken afterwards.
    pub fn during(&mut self, what: &str, may_miss: usize, disturb: impl FnOnce() -> Vec<Proxy>) {
        let began = Instant::now();
        let proxies = disturb();
        self.disturbances.push(Disturbance {
            what: what.to_owned(),
            began,
            ended: Instant::now(),
            may_miss,
        });
        self.go_undisturbed(&proxies);
    }

    fn stop_sessions(&mut self) -> thread::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.sessions.take().map_or(Ok(()), JoinHandle::join)
    }

    fn go_undisturbed(&mut self, proxies: &[Proxy]) {
        let watched = Watched::from_now(proxies);
        let seen = |traffic: &Self| traffic.seen().len();
        // One more, since one is in progress.
        let enough = seen(self) + UNDISTURBED + 1;
        wait_for(
            "sessions between two disturbances",
            Duration::from_secs(120),
            || (seen(self) >= enough).then_some(()),
        );
        self.late.extend(watched.late());
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Demands that no request failed, and that only disturbances cost resumptions, each no more than it may, and between
    /// them late answers, each no more than one.
    pub fn stop_without_losses(mut self) {
        self.stop_sessions().expect("the sessions' thread ends well");
        let mut failures = Vec::new();
        for load in std::mem::take(&mut self.loads) {
            let (requests, some) = load.stop();
            println!("{requests} requests, failures: {some:?}");
            failures.extend(some);
        }
        assert!(failures.is_empty(), "{failures:?}");
        let mut undisturbed = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unserved: Vec<_> = undisturbed
            .iter()
            .filter(|session| !session.taken.served || !session.offered.served)
            .collect();
        assert!(unserved.is_empty(), "handshakes or requests failed: {unserved:?}");

        let since = |at: Instant| at.duration_since(self.started);
        for disturbance in &self.disturbances {
            let meanwhile = |session: &mut Session| {
                session.began <= disturbance.ended && session.ended >= disturbance.began
            };
            let sessions: Vec<_> = undisturbed.extract_if(.., meanwhile).collect();
            let missed = sessions.iter().filter(|session| !session.offered.resumed).count();
            println!(
                "{}, {:?} to {:?}: {missed} of {} sessions missed",
                disturbance.what,
                since(disturbance.began),
                since(disturbance.ended),
                sessions.len()
            );
            assert!(
                sessions.len() >= DISTURBED,
                "{}: it met only {} sessions",
                disturbance.what,
                sessions.len()
            );
            assert!(
                missed * 100 <= sessions.len() * disturbance.may_miss,
                "{}: {missed} of {} sessions were missed, at most {} % may be",
                disturbance.what,
                sessions.len(),
                disturbance.may_miss
            );
        }
        let missed: Vec<_> = undisturbed
            .iter()
            .filter(|session| !session.offered.resumed)
            .map(|session| (since(session.began), session))
            .collect();
        let late = self.late.len();
        println!(
            "undisturbed: {} of {} sessions missed, {late} answers were late",
            missed.len(),
            undisturbed.len()
        );
        assert!(
            missed.len() <= late.min(most_explained(undisturbed.len())),
            "missed although nothing disturbed the farm: {missed:#?}; late answers: {:#?}",
            self.late
        );
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // If the test has failed already, the outcome does not matter.
        let _ = self.stop_sessions();
    }
}
