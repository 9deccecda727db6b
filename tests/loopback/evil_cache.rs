//! A cache that stores entries and, on request of a test, returns forged ones, is slow or silent.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tlsfarm::config::CacheServer;

use crate::harness::{Farm, PATIENCE};

/// What a cache does with requests for values. Whatever else it is asked it answers as it should, unless it is silent
/// or slow.
#[derive(Clone, Copy, Debug)]
pub enum Conduct {
    /// It is a cache.
    Honest,
    /// It answers after this time.
    Slow(Duration),
    /// It reads and never answers.
    Silent,
    /// It answers with bytes that are not a reply.
    Garbage,
    /// It announces a value of 1 GiB and sends and sends.
    Endless,
    /// It sends a byte now and then.
    Drip,
    /// It gives the value of another key.
    AnotherEntry,
    /// It flips one bit.
    Altered,
    /// It gives some bytes of its own.
    Invented,
    /// It keeps what was taken.
    KeepsTaken,
}

/// A running one.
pub struct EvilCache {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

struct State {
    conduct: Conduct,
    entries: HashMap<Vec<u8>, Vec<u8>>,
}

impl EvilCache {
    /// Starts an honest one.
    pub fn start(farm: &Farm) -> Self {
        let socket = farm.dir.join("evil.sock");
        let listener = UnixListener::bind(&socket).expect("a socket of our own");
        let state = Arc::new(Mutex::new(State {
            conduct: Conduct::Honest,
            entries: HashMap::new(),
        }));
        let of_threads = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&of_threads);
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { socket, state }
    }

    pub fn server(&self) -> CacheServer {
        CacheServer::Unix(self.socket.clone())
    }

    pub fn set(&self, conduct: Conduct) {
        lock(&self.state).conduct = conduct;
    }
}

impl Drop for EvilCache {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut stream: UnixStream, state: &Mutex<State>) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let request = read_request(&mut reader)?;
        let conduct = lock(state).conduct;
        match conduct {
            Conduct::Silent => continue,
            Conduct::Slow(delay) => thread::sleep(delay),
            _ => {}
        }
        let words: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        match words.as_slice() {
            [b"GET", key] => {
                let value = lock(state).entries.get(*key).cloned();
                answer(&mut stream, state, conduct, key, value)?;
            }
            [b"GETDEL", key] => {
                let value = match conduct {
                    Conduct::KeepsTaken => lock(state).entries.get(*key).cloned(),
                    _ => lock(state).entries.remove(*key),
                };
                answer(&mut stream, state, conduct, key, value)?;
            }
            [b"SET", key, value, ..] => {
                lock(state).entries.insert(key.to_vec(), value.to_vec());
                stream.write_all(b"+OK\r\n").ok()?;
            }
            [b"PING"] => stream.write_all(b"+PONG\r\n").ok()?,
            _ => stream.write_all(b"-ERR unknown command\r\n").ok()?,
        }
    }
}

fn answer(
    stream: &mut UnixStream,
    state: &Mutex<State>,
    conduct: Conduct,
    key: &[u8],
    value: Option<Vec<u8>>,
) -> Option<()> {
    let value = match conduct {
        Conduct::Garbage => return stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok(),
        Conduct::Endless => {
            stream.write_all(b"$1073741824\r\n").ok()?;
            // Until the other side closes the connection.
            loop {
                stream.write_all(&[b'a'; 65_536]).ok()?;
            }
        }
        Conduct::Drip => {
            for byte in b"$256\r\n".iter().chain(&[b'a'; 256]) {
                stream.write_all(&[*byte]).ok()?;
                thread::sleep(Duration::from_millis(20));
            }
            return stream.write_all(b"\r\n").ok();
        }
        Conduct::AnotherEntry => {
            let state = lock(state);
            let another = state.entries.iter().find(|(other, _)| *other != key);
            another.map(|(_, value)| value.clone())
        }
        Conduct::Altered => value.map(|mut value| {
            if let Some(byte) = value.last_mut() {
                *byte ^= 1;
            }
            value
        }),
        Conduct::Invented => Some(vec![7; 256]),
        Conduct::Honest | Conduct::Slow(_) | Conduct::Silent | Conduct::KeepsTaken => value,
    };
    let reply = match value {
        None => b"$-1\r\n".to_vec(),
        Some(value) => [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat(),
    };
    stream.write_all(&reply).ok()
}

fn read_request(reader: &mut impl BufRead) -> Option<Vec<Vec<u8>>> {
    let count = length(reader, '*')?;
    (0..count)
        .map(|_| {
            let mut word = vec![0; length(reader, '$')? + 2];
            reader.read_exact(&mut word).ok()?;
            word.truncate(word.len() - 2);
            Some(word)
        })
        .collect()
}

fn length(reader: &mut impl BufRead, kind: char) -> Option<usize> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    line.strip_prefix(kind)?.trim_end().parse().ok()
}
