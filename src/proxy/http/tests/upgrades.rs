//! Switching to another protocol (F6 of the requirements).

use std::cell::RefCell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Backend, Farm, read_head, run, scripted, status};

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: shop.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn bytes_pass_unchecked_after_the_backend_accepts_an_upgrade() {
    run(async {
        let head = Rc::new(RefCell::new(String::new()));
        let seen = Rc::clone(&head);
        let backend = scripted(move |_, mut stream| {
            let seen = Rc::clone(&seen);
            async move {
                *seen.borrow_mut() = read_head(&mut stream).await;
                let consent = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Accept: x\r\n\r\nhello ";
                stream.write_all(consent.as_bytes()).await.expect("written");
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await.expect("copied");
            }
        })
        .await;
        let farm = Farm::new(&[backend]);
        let mut client = farm.connect(false);
        // Bytes of the new protocol right behind the request must wait, not be taken for a request.
        client.send(format!("{UPGRADE}\0early\n")).await;
        let response = client.read_until("\r\n\r\n").await;
        assert_eq!(status(&response), 101);
        assert!(response.contains("\r\nupgrade: websocket\r\n"), "{response:?}");
        assert!(
            response.contains("\r\nsec-websocket-accept: x\r\n"),
            "{response:?}"
        );
        assert_eq!(client.read_until("\n").await, "hello \0early\n");
        client.send("\0late\n").await;
        assert_eq!(client.read_until("\n").await, "\0late\n");
        client.stream.shutdown().await.expect("shut down");
        assert_eq!(client.rest().await, "");
        client.served.await.expect("served");
        let head = head.borrow();
        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head:?}");
        assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head:?}");
    });
}

#[test]
fn a_switch_of_protocols_is_passed_on_while_the_proxy_drains() {
    run(async {
        let backend = scripted(|_, mut stream| async move {
            read_head(&mut stream).await;
            let consent =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello\n";
            stream.write_all(consent.as_bytes()).await.expect("written");
        })
        .await;
        let farm = Farm::new(&[backend]);
        let mut client = farm.connect(false);
        farm.draining.cancel();
        client.send(UPGRADE).await;
        let response = client.read_until("\r\n\r\n").await;
        assert_eq!(status(&response), 101);
        assert!(response.contains("\r\nconnection: upgrade\r\n"), "{response:?}");
        assert_eq!(client.read_until("\n").await, "hello\n");
    });
}

#[test]
fn the_client_is_told_the_protocol_that_the_backend_chose() {
    run(async {
        let backend = scripted(|_, mut stream| async move {
            read_head(&mut stream).await;
            let consent =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat/1\r\n\r\n";
            stream.write_all(consent.as_bytes()).await.expect("written");
        })
        .await;
        let farm = Farm::new(&[backend]);
        let mut client = farm.connect(false);
        client.send(UPGRADE.replace("websocket", "chat/2")).await;
        let response = client.read_until("\r\n\r\n").await;
        assert!(response.contains("\r\nupgrade: chat/1\r\n"), "{response:?}");
    });
}

#[test]
fn bytes_after_a_declined_upgrade_are_the_next_request() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect(false);
        let next = "GET /next HTTP/1.1\r\nHost: shop.example.com\r\n\r\n";
        client.send(format!("{UPGRADE}{next}")).await;
        assert_eq!(status(&client.read_until("\r\n\r\nok").await), 200);
        assert_eq!(status(&client.read_until("\r\n\r\nok").await), 200);
        client.send(format!("{UPGRADE}{next}\0garbage\n")).await;
        let rest = client.rest().await;
        assert_eq!(rest.matches("HTTP/1.1 200").count(), 2, "{rest:?}");
        assert_eq!(rest.matches("HTTP/1.1 400").count(), 1, "{rest:?}");
        assert_eq!(backend.seen().len(), 4);
    });
}

#[test]
fn upgrades_to_other_http_versions_are_ignored() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect(false);
        client
            .send(
                UPGRADE
                    .replace("websocket", "h2c")
                    .replace("Upgrade\r\n", "Upgrade, HTTP2-Settings\r\n"),
            )
            .await;
        assert_eq!(status(&client.read_until("\r\n\r\nok").await), 200);
        assert_eq!(backend.one().field("upgrade"), "-");
    });
}

#[test]
fn an_idle_tunnel_is_closed() {
    run(async {
        let backend = scripted(|_, mut stream| async move {
            read_head(&mut stream).await;
            let consent =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(consent.as_bytes()).await.expect("written");
            // Waits until the proxy closes the connection.
            let _ = stream.read_u8().await;
        })
        .await;
        let farm = Farm::with(&[backend], "timeouts: {responseIdle: 50ms}");
        let mut client = farm.connect(false);
        client.send(UPGRADE).await;
        assert_eq!(status(&client.read_until("\r\n\r\n").await), 101);
        assert_eq!(client.rest().await, "");
    });
}
