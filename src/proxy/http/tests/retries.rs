//! Which requests are sent again when a backend's connection ends, and which are not.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustls::ProtocolVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::support::{Backend, Farm, answering, read_head, run, scripted, status};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const RETRIES: &str = "tlsfarm_proxy_upstream_retries_total";
const RESPONSE_ERRORS: &str = "tlsfarm_proxy_upstream_errors_total{kind=\"response\"}";

/// How a backend's connection ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// In good order.
    Close,
    /// As after a crash.
    Reset,
}

/// A backend that answers one request on its first connection and ends it when the next arrives. All others work.
struct ClosesOnReuse {
    address: SocketAddr,
    /// The request lines that arrived.
    arrived: Rc<RefCell<Vec<String>>>,
}

impl ClosesOnReuse {
    async fn start(end: End) -> Self {
        let arrived = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&arrived);
        let address = scripted(move |number, mut stream| {
            let seen = Rc::clone(&seen);
            async move {
                for request in 0.. {
                    let head = read_head(&mut stream).await;
                    let Some(line) = head.lines().next() else {
                        return;
                    };
                    seen.borrow_mut().push(line.to_owned());
                    if number == 0 && request == 1 {
                        if end == End::Reset {
                            let socket = socket2::SockRef::from(&stream);
                            socket.set_linger(Some(Duration::ZERO)).expect("set");
                        }
                        return;
                    }
                    if stream.write_all(OK).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        Self { address, arrived }
    }
}

/// Sends a request on a backend's connection that ends under it. Returns the status, how often the request arrived and
/// the counted retries and errors.
async fn sent_to_an_ending_connection(request: &str, end: End) -> (u16, usize, String, Option<String>) {
    let backend = ClosesOnReuse::start(end).await;
    let farm = Farm::new(&[backend.address]);
    let mut client = farm.connect(false);
    client
        .send("GET /first HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
        .await;
    client.read_until("\r\n\r\nok").await;
    client.send(request).await;
    let code = status(&client.read_until("\r\n\r\n").await);
    let arrived = backend.arrived.borrow();
    assert_eq!(arrived[0], "GET /first HTTP/1.1");
    let line = request.lines().next().expect("a request line");
    assert!(arrived[1..].iter().all(|arrived| arrived == line), "{arrived:?}");
    let retries = farm.metric(RETRIES).expect("a counter");
    (code, arrived.len() - 1, retries, farm.metric(RESPONSE_ERRORS))
}

#[test]
fn a_request_whose_connection_ends_is_sent_again_when_that_is_safe() {
    run(async {
        for end in [End::Close, End::Reset] {
            for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
                for length in ["", "Content-Length: 0\r\n"] {
                    let request = format!("{method} / HTTP/1.1\r\nHost: shop.example.com\r\n{length}\r\n");
                    assert_eq!(
                        sent_to_an_ending_connection(&request, end).await,
                        (200, 2, "1".into(), Some("1".into())),
                        "{request:?}"
                    );
                }
            }
        }
    });
}

#[test]
fn non_idempotent_requests_and_requests_with_a_body_are_not_retried() {
    run(async {
        let with_body = |method: &str, framing: &str| {
            format!("{method} / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n{framing}")
        };
        let length = "Content-Length: 2\r\n\r\nhi";
        let chunks = "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        let mut requests = vec![
            with_body("POST", "\r\n"),
            with_body("POST", "Content-Length: 0\r\n\r\n"),
            with_body("PATCH", "\r\n"),
            with_body("LOCK", "\r\n"),
            "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
                .into(),
        ];
        for method in ["POST", "PUT", "DELETE", "GET", "PATCH"] {
            requests.push(with_body(method, length));
            requests.push(with_body(method, chunks));
        }
        for request in requests {
            for end in [End::Close, End::Reset] {
                assert_eq!(
                    sent_to_an_ending_connection(&request, end).await,
                    (502, 1, "0".into(), Some("1".into())),
                    "{request:?}"
                );
            }
        }
    });
}

#[test]
fn a_request_is_repeated_once_at_most() {
    run(async {
        let farm = Farm::new(&[answering("").await]);
        let get = "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n";
        assert_eq!(status(&farm.exchange(get).await), 502);
        assert_eq!(farm.metric(RETRIES).as_deref(), Some("1"));
        assert_eq!(farm.metric(RESPONSE_ERRORS).as_deref(), Some("2"));
    });
}

#[test]
fn a_malformed_response_is_not_retried() {
    run(async {
        for response in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        ] {
            let farm = Farm::new(&[answering(response).await]);
            let get = "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n";
            assert_eq!(status(&farm.exchange(get).await), 502, "{response:?}");
            assert_eq!(farm.metric(RETRIES).as_deref(), Some("0"), "{response:?}");
            assert_eq!(farm.metric(RESPONSE_ERRORS).as_deref(), Some("1"), "{response:?}");
        }
    });
}

#[test]
fn a_failing_backend_gets_no_retries_beyond_the_budget() {
    run(async {
        let connections = Rc::new(Cell::new(0));
        let counted = Rc::clone(&connections);
        let backend = scripted(move |_, mut stream| {
            counted.set(counted.get() + 1);
            async move {
                read_head(&mut stream).await;
            }
        })
        .await;
        let farm = Farm::new(&[backend]);
        let retries = || farm.metric(RETRIES).expect("a counter");
        let get = "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n";
        // The saved credit pays for twenty, and these requests earn four more.
        for number in 1..=24 {
            assert_eq!(status(&farm.exchange(get).await), 502);
            assert_eq!(retries(), number.to_string());
        }
        assert_eq!(status(&farm.exchange(get).await), 502);
        assert_eq!((retries().as_str(), connections.get()), ("24", 49));
        assert_eq!(status(&farm.exchange(get).await), 502);
        assert_eq!((retries().as_str(), connections.get()), ("25", 51));
    });
}

/// hyper gives a request back when it sees the end of the connection before it has written anything. That needs a request
/// that comes when the end has arrived, but before hyper's task has run: tasks run after the future of the test, so what
/// this future does once it is woken comes first.
#[test]
fn a_request_that_was_not_sent_moves_to_another_connection() {
    run(async {
        for (request, body) in [
            (
                "POST / HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 2\r\n\r\nhi",
                "hi",
            ),
            (
                "PUT / HTTP/1.1\r\nHost: shop.example.com\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                "hi",
            ),
            ("PATCH / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", ""),
            ("GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", ""),
        ] {
            let first: Rc<RefCell<Option<TcpStream>>> = Rc::default();
            let arrived: Rc<RefCell<Vec<String>>> = Rc::default();
            let (kept, seen) = (Rc::clone(&first), Rc::clone(&arrived));
            let backend = scripted(move |number, mut stream| {
                let (kept, seen) = (Rc::clone(&kept), Rc::clone(&seen));
                async move {
                    let mut request = read_head(&mut stream).await;
                    if request.contains("chunked") {
                        while !request.ends_with("0\r\n\r\n") {
                            request.push(stream.read_u8().await.expect("a byte").into());
                        }
                    } else if request.contains("content-length") {
                        for _ in 0..2 {
                            request.push(stream.read_u8().await.expect("a byte").into());
                        }
                    }
                    seen.borrow_mut().push(request);
                    stream.write_all(OK).await.expect("written");
                    if number == 0 {
                        *kept.borrow_mut() = Some(stream);
                    } else {
                        read_head(&mut stream).await;
                    }
                }
            })
            .await;
            let farm = Farm::new(&[backend]);
            let (mut client, serving) = farm.accept(Some(farm.tls(ProtocolVersion::TLSv1_3, false)));
            let mut serving = pin!(serving);
            let connections = || farm.metric("tlsfarm_proxy_upstream_connections");

            let begin = async {
                client
                    .write_all(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
                    .await
                    .expect("written");
                let mut response = Vec::new();
                while !response.ends_with(b"\r\n\r\nok") {
                    response.push(client.read_u8().await.expect("a byte"));
                }
                // Let everything that the first request started run to completion.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                () = begin => {}
                () = &mut serving => panic!("the connection ended"),
            }
            drop(first.take().expect("a connection"));
            // The next wake-up is that of hyper's task, by the end of the backend's connection.
            let mut woken = false;
            poll_fn(|_| {
                if std::mem::replace(&mut woken, true) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            assert_eq!(connections().as_deref(), Some("1"), "hyper has not seen the end");

            let exchange = async {
                client.write_all(request.as_bytes()).await.expect("written");
                let mut response = String::new();
                while !response.ends_with("\r\n\r\nok") && !response.ends_with("valid response\n") {
                    response.push(client.read_u8().await.expect("a byte").into());
                }
                response
            };
            let response = tokio::select! {
                biased;
                response = exchange => response,
                () = &mut serving => panic!("the connection ended"),
            };
            assert_eq!(status(&response), 200, "{request:?}: {response:?}");
            let arrived = arrived.borrow();
            assert_eq!(arrived.len(), 2, "{arrived:?}");
            assert!(arrived[1].contains(body), "{arrived:?}");
            assert_eq!(farm.metric(RETRIES).as_deref(), Some("0"), "it is sent once");
            assert_eq!(farm.metric(RESPONSE_ERRORS), None);
        }
    });
}

/// A backend that closes connections as soon as they are open. Returns how many there were, too.
fn closes_at_once() -> (SocketAddr, Rc<Cell<usize>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.set_nonblocking(true).expect("set");
    let address = listener.local_addr().expect("an address");
    let count = Rc::new(Cell::new(0));
    let closed = Rc::clone(&count);
    // Polls ahead of the runtime, so that the connection is closed by the time the proxy learns that it is open.
    spawn_local(poll_fn(move |cx| {
        while listener.accept().is_ok() {
            closed.set(closed.get() + 1);
        }
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    }));
    (address, count)
}

/// What comes back for a request. All of the proxy's part is driven before any task runs.
async fn exchange_first(farm: &Farm, request: &str) -> String {
    let (mut client, serving) = farm.accept(Some(farm.tls(ProtocolVersion::TLSv1_3, false)));
    let exchange = async move {
        client.write_all(request.as_bytes()).await.expect("written");
        let mut response = String::new();
        client.read_to_string(&mut response).await.expect("UTF-8");
        drop(client);
        response
    };
    tokio::join!(exchange, serving).0
}

const POST: &str =
    "POST / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn an_endpoint_that_closes_new_connections_costs_no_request_while_there_is_another() {
    run(async {
        let (closing, closed) = closes_at_once();
        let backend = Backend::start().await;
        let farm = Farm::new(&[closing, backend.address]);
        for _ in 0..24 {
            assert_eq!(status(&exchange_first(&farm, POST).await), 200);
        }
        let seen = backend.seen();
        assert_eq!(seen.len(), 24);
        assert!(seen.iter().all(|seen| seen.body == "hi"));
        assert!(closed.get() > 0, "none was sent there first");
        assert_eq!(farm.metric(RESPONSE_ERRORS), Some(closed.get().to_string()));
    });
}

#[test]
fn an_endpoint_that_closes_new_connections_is_asked_once_for_each_request() {
    run(async {
        let (closing, closed) = closes_at_once();
        let farm = Farm::new(&[closing]);
        assert_eq!(status(&exchange_first(&farm, POST).await), 502);
        assert_eq!(closed.get(), 1);
        assert_eq!(farm.metric(RESPONSE_ERRORS).as_deref(), Some("1"));
        assert_eq!(farm.metric(RETRIES).as_deref(), Some("0"));
    });
}
