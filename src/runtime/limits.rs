//! Connection limit of a process.
//!
//! Every connection needs file descriptors and memory. The limits of the process on both are read at the start. Beyond
//! the connection limit new connections are closed on accept, so that open connections, health checks and the admin
//! port keep working.

use std::fs;

/// File descriptors reserved for listeners, the API server, files and the admin port.
const RESERVED_FILES: u64 = 128;

/// Upper bound on the number of connections.
const MOST: u64 = 65_536;

/// Lower bound on the number of connections.
const LEAST: u64 = 64;

/// Resources needed per connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionCost {
    /// File descriptors per connection.
    pub(crate) files: u64,
    /// Memory per connection, in bytes.
    pub(crate) bytes: u64,
    /// Memory reserved for other purposes, in bytes.
    pub(crate) reserved: u64,
}

/// Maximum number of connections within the limits of this process.
pub(crate) fn most_connections(cost: ConnectionCost) -> usize {
    let open_files = fs::read_to_string("/proc/self/limits")
        .ok()
        .and_then(|limits| soft_open_files(&limits));
    let memory = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    cap(cost, open_files, memory)
}

fn soft_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn cap(cost: ConnectionCost, open_files: Option<u64>, memory: Option<u64>) -> usize {
    let by_files = open_files.map_or(MOST, |files| files.saturating_sub(RESERVED_FILES) / cost.files);
    // Three quarters; the rest is for the program itself and its loaded data.
    let by_memory = memory.map_or(MOST, |bytes| {
        bytes.saturating_sub(cost.reserved) / 4 * 3 / cost.bytes
    });
    by_files.min(by_memory).clamp(LEAST, MOST) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: ConnectionCost = ConnectionCost {
        files: 2,
        bytes: 64 * 1024,
        reserved: 0,
    };

    #[test]
    fn the_tighter_limit_counts() {
        assert_eq!(cap(COST, Some(1024), None), 448);
        assert_eq!(cap(COST, Some(1_048_576), Some(256 << 20)), 3072);
        assert_eq!(cap(COST, None, Some(i64::MAX as u64)), 65_536);
        assert_eq!(cap(COST, Some(10), Some(0)), 64);
        let beside_entries = ConnectionCost {
            reserved: 64 << 20,
            ..COST
        };
        assert_eq!(cap(beside_entries, Some(1_048_576), Some(320 << 20)), 3072);
    }

    #[test]
    fn the_limits_of_this_process_are_understood() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 4096                 files     \n";
        assert_eq!(soft_open_files(limits), Some(1024));
        assert!(most_connections(COST) >= 64);
    }
}
