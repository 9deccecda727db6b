//! How many connections a proxy holds open at most.
//!
//! Every connection may need two file descriptors, one for the client and one for the backend, and up to 64 KiB of
//! memory. The limits of the process on both are read once at the start; past the cap a new connection is closed at
//! once, so that the ones that are open, health checks and the admin port go on.

use std::fs;

/// Descriptors for everything but connections: listeners, the API server, files, the admin port.
const RESERVED_FILES: u64 = 128;

/// Memory that one open connection may take.
const CONNECTION_BYTES: u64 = 64 * 1024;

/// Most connections, whatever the limits are.
const MOST: u64 = 65_536;

/// Fewest connections, whatever the limits are.
const LEAST: u64 = 64;

/// Most connections that the limits of this process allow.
pub(crate) fn most_connections() -> usize {
    let open_files = fs::read_to_string("/proc/self/limits")
        .ok()
        .and_then(|limits| soft_open_files(&limits));
    let memory = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    cap(open_files, memory)
}

fn soft_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn cap(open_files: Option<u64>, memory: Option<u64>) -> usize {
    let by_files = open_files.map_or(MOST, |files| files.saturating_sub(RESERVED_FILES) / 2);
    // Three quarters; the rest is for certificates, routes and the program itself.
    let by_memory = memory.map_or(MOST, |bytes| bytes / 4 * 3 / CONNECTION_BYTES);
    by_files.min(by_memory).clamp(LEAST, MOST) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_limit_counts() {
        assert_eq!(cap(Some(1024), None), 448);
        assert_eq!(cap(Some(1_048_576), Some(256 << 20)), 3072);
        assert_eq!(cap(None, Some(i64::MAX as u64)), 65_536);
        assert_eq!(cap(Some(10), Some(0)), 64);
    }

    #[test]
    fn the_limits_of_this_process_are_understood() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 4096                 files     \n";
        assert_eq!(soft_open_files(limits), Some(1024));
        assert!(most_connections() >= 64);
    }
}
