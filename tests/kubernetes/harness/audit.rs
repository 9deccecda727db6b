//! The API server's record of who wrote what.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const DIR: &str = "/var/tmp/tlsfarm-cluster/log";
const CURRENT: &str = "/var/tmp/tlsfarm-cluster/log/audit.log";

/// A write request to the API server.
#[derive(Debug)]
pub struct Write {
    pub verb: String,
    /// `resource/name`, with a subresource behind the resource.
    pub object: String,
}

impl Write {
    /// Reads a line of the log; `None` unless it records a write of this user.
    fn of(user: &str, line: &str) -> Option<Self> {
        if !line.contains(user) {
            return None;
        }
        let event: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let verb = text(&event["verb"]);
        if event["user"]["username"] != user || ["get", "list", "watch"].contains(&verb.as_str()) {
            return None;
        }
        let of = &event["objectRef"];
        let subresource = of["subresource"].as_str().map(|name| format!("/{name}"));
        let (resource, name) = (text(&of["resource"]), text(&of["name"]));
        let object = format!("{resource}{}/{name}", subresource.unwrap_or_default());
        Some(Self { verb, object })
    }
}

/// The write requests of one user from a moment on, as they come.
pub struct Followed {
    user: String,
    log: BufReader<File>,
    /// The beginning of a line that is still being written.
    line: String,
}

impl Followed {
    /// Follows from now on.
    pub fn from_now(user: &str) -> Self {
        let mut log = File::open(CURRENT).expect("the test cluster keeps an audit log");
        log.seek(SeekFrom::End(0)).expect("a file");
        Self {
            user: user.to_owned(),
            log: BufReader::new(log),
            line: String::new(),
        }
    }

    /// Waits until there have been so many writes and returns all that there have been. It returns so soon after the last
    /// one that what follows can still be kept from happening.
    pub fn wait_for(mut self, count: usize, limit: Duration) -> Vec<Write> {
        let deadline = Instant::now() + limit;
        let mut writes = self.new_writes();
        while writes.len() < count {
            assert!(Instant::now() < deadline, "{count} writes were due: {writes:?}");
            thread::sleep(Duration::from_millis(1));
            writes.extend(self.new_writes());
        }
        writes
    }

    /// The writes since the last call.
    fn new_writes(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        let (mut next, mut drained) = (None, false);
        loop {
            let read = self.log.read_line(&mut self.line).expect("a log stays readable");
            if self.line.ends_with('\n') {
                writes.extend(Write::of(&self.user, &self.line));
                self.line.clear();
            } else if read == 0 {
                // The log is rotated by renaming: read the old file to its end before the new one.
                match next.take().or_else(|| self.next()) {
                    None => return writes,
                    Some(log) if drained => (self.log, drained) = (BufReader::new(log), false),
                    Some(log) => (next, drained) = (Some(log), true),
                }
            }
        }
    }

    /// The log after the one that is being read, once there is one.
    fn next(&self) -> Option<File> {
        // During rotation there is briefly no current log.
        let current = File::open(CURRENT).ok()?;
        let inode = |file: &File| file.metadata().expect("open").ino();
        (inode(&current) != inode(self.log.get_ref())).then_some(current)
    }
}

/// The write requests of one user so far, in the order in which they were answered.
pub fn writes_of(user: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    for path in audit_logs() {
        let log = std::fs::File::open(path).expect("a log stays readable");
        let lines = BufReader::new(log).lines().map_while(Result::ok);
        writes.extend(lines.filter_map(|line| Write::of(user, &line)));
    }
    writes
}

/// The log's files, the oldest first: one that is full is put aside.
pub fn audit_logs() -> Vec<PathBuf> {
    let dir = std::fs::read_dir(DIR).expect("the test cluster keeps an audit log");
    let mut logs: Vec<_> = dir
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            name.starts_with("audit") && name.ends_with(".log")
        })
        .collect();
    logs.sort();
    assert!(!logs.is_empty(), "the test cluster keeps an audit log");
    logs
}
