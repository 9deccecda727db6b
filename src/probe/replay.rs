//! Replay of a recorded ClientHello.
//!
//! rustls uses a TLS 1.3 session only once, so the probe cannot offer one twice as a client. It does what an
//! eavesdropper can do: send the same bytes again. The ServerHello shows in plain text whether the server resumes. The
//! handshake cannot be completed, because the private key of the key share is gone; to the server it looks like a
//! client that disconnected.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::sighting::clear_handshake;

/// Maximum number of bytes read while waiting for the ServerHello.
const LONGEST_ANSWER: usize = 64 * 1024;

const SERVER_HELLO: u8 = 2;
const PRE_SHARED_KEY: [u8; 2] = [0, 41];
const RANDOM_LENGTH: usize = 32;

/// The random bytes that make a ServerHello a HelloRetryRequest (RFC 9846 section 4.2.3).
const RETRY_RANDOM: [u8; RANDOM_LENGTH] = [
    0xCF, 0x21, 0xAD, 0x74, 0xE5, 0x9A, 0x61, 0x11, 0xBE, 0x1D, 0x8C, 0x02, 0x1E, 0x65, 0xB8, 0x91, 0xC2,
    0xA2, 0x11, 0x16, 0x7A, 0xBB, 0x8C, 0x5E, 0x07, 0x9E, 0x09, 0xE2, 0xC8, 0xA8, 0x33, 0x9C,
];

/// Reply of a server to a ClientHello.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reply {
    /// It resumes the offered session.
    Resumes,
    /// It starts a full handshake.
    Starts,
    /// It sent a HelloRetryRequest.
    Retries,
}

/// Sends `hello` on a new connection and returns whether the server resumes its session.
pub(super) async fn resumes_replay<S>(mut stream: S, hello: &[u8]) -> io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(hello).await?;
    let mut answer = Vec::new();
    loop {
        match server_hello(&clear_handshake(&answer)) {
            Some(Reply::Resumes) => return Ok(true),
            Some(Reply::Starts) => return Ok(false),
            Some(Reply::Retries) => {
                return Err(io::Error::other(
                    "the server sent a HelloRetryRequest, so whether it would resume is unknown",
                ));
            }
            None if answer.len() >= LONGEST_ANSWER => {
                return Err(io::Error::other("the server did not reply with a ServerHello"));
            }
            None => {}
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::Error::other(
                "the server closed the connection on a ClientHello that it had accepted before",
            ));
        }
    }
}

/// Parses the ServerHello at the start of `handshake`; None while it is incomplete.
fn server_hello(handshake: &[u8]) -> Option<Reply> {
    let (&[SERVER_HELLO, a, b, c], rest) = handshake.split_first_chunk::<4>()? else {
        return None;
    };
    let body = rest.get(..u32::from_be_bytes([0, a, b, c]) as usize)?;
    let (_version, body) = body.split_first_chunk::<2>()?;
    let (random, body) = body.split_first_chunk::<RANDOM_LENGTH>()?;
    if *random == RETRY_RANDOM {
        return Some(Reply::Retries);
    }
    let (&id_length, body) = body.split_first()?;
    // Behind the session id: cipher suite (2), compression method (1), length of the extensions (2).
    let mut extensions = body.get(usize::from(id_length) + 5..).unwrap_or_default();
    while let Some((&[kind_high, kind_low, high, low], rest)) = extensions.split_first_chunk::<4>() {
        if [kind_high, kind_low] == PRE_SHARED_KEY {
            return Some(Reply::Resumes);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        extensions = rest.get(length..).unwrap_or_default();
    }
    Some(Reply::Starts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reached::check;

    fn hello(random: [u8; RANDOM_LENGTH], extensions: &[[u8; 2]]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend(random);
        body.extend([2, 7, 7]); // session id
        body.extend([0x13, 0x01, 0]);
        body.extend((extensions.len() as u16 * 6).to_be_bytes());
        for kind in extensions {
            body.extend(kind);
            body.extend([0, 2, 0, 0]);
        }
        let mut message = (body.len() as u32).to_be_bytes().to_vec();
        message[0] = SERVER_HELLO;
        message.extend(body);
        message
    }

    #[test]
    fn only_a_selected_key_is_a_resumption() {
        let (versions, share) = ([0, 43], [0, 51]);
        let random = [9; RANDOM_LENGTH];
        assert_eq!(
            server_hello(&hello(random, &[versions, share])),
            Some(Reply::Starts)
        );
        let resumed = hello(random, &[versions, share, PRE_SHARED_KEY]);
        assert_eq!(server_hello(&resumed), Some(Reply::Resumes));
        assert_eq!(server_hello(&resumed[..resumed.len() - 1]), None, "not whole");
        assert_eq!(
            server_hello(&hello(RETRY_RANDOM, &[versions])),
            Some(Reply::Retries)
        );
        assert_eq!(server_hello(&hello(random, &[])), Some(Reply::Starts), "TLS 1.2");
    }

    /// A ServerHello, and what it says.
    fn hellos() -> impl Strategy<Value = (Vec<u8>, Reply)> {
        let kind = prop_oneof![1 => Just(PRE_SHARED_KEY), 9 => any::<[u8; 2]>()];
        let extension = (kind, prop::collection::vec(any::<u8>(), 0..20));
        let random = prop_oneof![1 => Just(RETRY_RANDOM), 4 => any::<[u8; RANDOM_LENGTH]>()];
        let id = prop::collection::vec(any::<u8>(), 0..=32);
        (random, id, prop::collection::vec(extension, 0..6)).prop_map(|(random, id, extensions)| {
            let mut listed = Vec::new();
            for (kind, content) in &extensions {
                listed.extend(kind);
                listed.extend((content.len() as u16).to_be_bytes());
                listed.extend(content);
            }
            let body = [
                &[3, 3],
                &random[..],
                &[id.len() as u8],
                &id,
                &[0x13, 0x01, 0],
                &(listed.len() as u16).to_be_bytes(),
                &listed,
            ]
            .concat();
            let mut message = (body.len() as u32).to_be_bytes().to_vec();
            message[0] = SERVER_HELLO;
            message.extend(body);
            let reply = if random == RETRY_RANDOM {
                Reply::Retries
            } else if extensions.iter().any(|(kind, _)| *kind == PRE_SHARED_KEY) {
                Reply::Resumes
            } else {
                Reply::Starts
            };
            (message, reply)
        })
    }

    /// Measured: 20 % of the servers want another ClientHello, 17 % resume and 63 % do not.
    #[test]
    fn a_server_hello_is_read_once_complete_and_later_bytes_change_nothing() {
        let floors = [("resumes", 8), ("starts", 31), ("retries", 10)];
        let arriving = (
            hellos(),
            any::<prop::sample::Index>(),
            prop::collection::vec(any::<u8>(), 0..100),
        );
        check(512, arriving, &floors, |((hello, reply), cut, more), case| {
            case.reaches(match reply {
                Reply::Resumes => "resumes",
                Reply::Starts => "starts",
                Reply::Retries => "retries",
            });
            prop_assert_eq!(server_hello(&hello[..cut.index(hello.len())]), None, "cut");
            prop_assert_eq!(server_hello(&hello), Some(reply));
            prop_assert_eq!(server_hello(&[hello, more].concat()), Some(reply));
            Ok(())
        });
    }

    proptest! {
        #[test]
        fn no_other_message_is_a_server_hello(mut bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            if bytes[0] == SERVER_HELLO {
                bytes[0] += 1;
            }
            prop_assert_eq!(server_hello(&bytes), None);
            // Its body has no room for a version and 32 random bytes.
            let short = bytes.len().min(2 + RANDOM_LENGTH - 1);
            let announced = [&[SERVER_HELLO, 0, 0, short as u8][..], &bytes].concat();
            prop_assert_eq!(server_hello(&announced), None);
        }
    }
}
