//! The end of a proxy: nothing is lost, and it does come.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::client::{Answer, Client, Http};
use crate::harness::{Farm, PATIENCE, Proxy, wait_for};

/// Clients that ask for pages as fast as they get them, at the first proxy that takes connections.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(runtime: &Runtime, client: &Client, proxies: [SocketAddr; 2], count: usize) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let clients = (0..count).map(|_| {
            let work = keep_asking(client.clone(), proxies, Arc::clone(&stop), Arc::clone(&served));
            runtime.spawn(work)
        });
        Self {
            clients: clients.collect(),
            stop,
            served,
        }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Ends the load and returns every loss.
    fn end(self, runtime: &Runtime) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .flat_map(|client| runtime.block_on(client).expect("no panic"))
            .collect()
    }
}

async fn keep_asking(
    client: Client,
    proxies: [SocketAddr; 2],
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
) -> Vec<String> {
    let mut losses = Vec::new();
    let connect = async |proxy| {
        let connected = timeout(PATIENCE, client.connect(proxy)).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    };
    while !stop.load(Ordering::Relaxed) {
        let mut connection = match connect(proxies[0]).await {
            Ok(connection) => connection,
            Err(_) => match connect(proxies[1]).await {
                Ok(connection) => connection,
                Err(error) => {
                    losses.push(format!("neither proxy: {error}"));
                    return losses;
                }
            },
        };
        while !stop.load(Ordering::Relaxed) {
            let answer = timeout(PATIENCE, connection.ask()).await;
            let answer = answer.unwrap_or_else(|_| Answer::Lost(format!("no answer within {PATIENCE:?}")));
            if matches!(answer, Answer::Page | Answer::LastPage) {
                served.fetch_add(1, Ordering::Relaxed);
            }
            match answer {
                Answer::Page => {}
                Answer::LastPage | Answer::NotSent => break,
                Answer::Lost(why) => {
                    losses.push(why);
                    break;
                }
            }
        }
    }
    losses
}

fn wait_for_end(proxy: &mut Proxy, limit: Duration) {
    let begin = Instant::now();
    let status = proxy.wait();
    let took = begin.elapsed();
    assert!(status.success(), "{status}: {}", proxy.log());
    assert!(took < limit, "took {took:?}");
}

fn draining_loses_nothing(http: Http) {
    let farm = Farm::new("web/shop");
    let runtime = Runtime::new().expect("a runtime");
    let (mut first, second) = (farm.start(), farm.start());
    let client = Client::new(&farm, http);
    let load = Load::start(&runtime, &client, [first.https, second.https], 8);
    wait_for("load", || (load.served() > 200).then_some(()));

    first.signal("TERM");
    wait_for("unreadiness", || (first.get("/readyz").0 == 503).then_some(()));
    assert!(first.report().draining);
    // A client that does not know of the drain yet is still served.
    let late = runtime.block_on(async {
        let mut connection = client.connect(first.https).await.expect("taken");
        connection.ask().await
    });
    assert!(matches!(late, Answer::Page | Answer::LastPage), "{late:?}");
    wait_for_end(&mut first, PATIENCE);

    let before = load.served();
    wait_for("load at the other proxy", || {
        (load.served() > before + 200).then_some(())
    });
    assert_eq!(load.end(&runtime), Vec::<String>::new());
}

#[test]
fn draining_under_load_loses_no_http1_request() {
    draining_loses_nothing(Http::One);
}

#[test]
fn draining_under_load_loses_no_http2_request() {
    draining_loses_nothing(Http::Two);
}

#[test]
fn the_drain_period_bounds_the_drain() {
    let farm = Farm::new("web/shop");
    let runtime = Runtime::new().expect("a runtime");
    let mut config = farm.config();
    config.drain_period = "1s".parse().expect("valid");
    let mut proxy = farm.start_with(config);
    let client = Client::new(&farm, Http::One);
    let mut silent = runtime.block_on(client.tls(proxy.https)).expect("connected");
    proxy.signal("TERM");
    wait_for_end(&mut proxy, Duration::from_secs(4));
    let end = runtime.block_on(silent.read(&mut [0]));
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    assert!(proxy.log().contains("drain period expired"));
}

#[test]
fn a_second_signal_ends_at_once() {
    let farm = Farm::new("web/shop");
    let runtime = Runtime::new().expect("a runtime");
    let mut proxy = farm.start();
    let client = Client::new(&farm, Http::One);
    let _silent = runtime.block_on(client.tls(proxy.https)).expect("connected");
    proxy.signal("TERM");
    wait_for("draining", || proxy.report().draining.then_some(()));
    assert!(!proxy.has_ended());
    proxy.signal("INT");
    wait_for_end(&mut proxy, Duration::from_secs(2));
}
