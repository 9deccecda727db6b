//! The API server's record of who wrote what.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use serde_json::Value;

/// A write request to the API server.
#[derive(Debug)]
pub struct Write {
    pub verb: String,
    /// `resource/name`, with a subresource behind the resource.
    pub object: String,
}

/// The write requests of one user so far, in the order in which they were answered.
pub fn writes_of(user: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    for path in audit_logs() {
        let log = std::fs::File::open(path).expect("a log stays readable");
        let events = BufReader::new(log)
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains(user))
            .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            .filter(|event| event["user"]["username"] == user)
            .filter(|event| !["get", "list", "watch"].contains(&event["verb"].as_str().unwrap_or_default()));
        writes.extend(events.map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let of = &event["objectRef"];
            let subresource = of["subresource"].as_str().map(|name| format!("/{name}"));
            Write {
                verb: text(&event["verb"]),
                object: format!(
                    "{}{}/{}",
                    text(&of["resource"]),
                    subresource.unwrap_or_default(),
                    text(&of["name"])
                ),
            }
        }));
    }
    writes
}

/// The log's files, the oldest first: one that is full is put aside.
pub fn audit_logs() -> Vec<PathBuf> {
    let dir = std::fs::read_dir("/var/tmp/tlsfarm-cluster/log").expect("the test cluster keeps an audit log");
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
