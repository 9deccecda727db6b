//! Running caches.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tlsfarm::config::{self, CacheConfig, CacheListen};

use crate::harness::{Reserved, get_page, get_page_within, put, resident, send_signal, value_of, wait_for};

/// A running `tlsfarm cache` with a directory of its own.
pub struct Cache {
    pub tcp: SocketAddr,
    pub unix: PathBuf,
    pub config: CacheConfig,
    pub admin: SocketAddr,
    dir: PathBuf,
    child: Child,
    _reserved: [Reserved; 2],
}

impl Cache {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// The same with a configuration that was changed.
    pub fn start_with(change: impl FnOnce(&mut CacheConfig)) -> Self {
        Self::start_command(change, Command::new(env!("CARGO_BIN_EXE_tlsfarm")))
    }

    /// The same with room for so many open files only.
    pub fn start_with_files(open_files: u32) -> Self {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("ulimit -n {open_files}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_tlsfarm"));
        Self::start_command(|_| {}, shell)
    }

    fn start_command(change: impl FnOnce(&mut CacheConfig), command: Command) -> Self {
        static CACHES: AtomicUsize = AtomicUsize::new(0);
        let number = CACHES.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tlsfarm-cache-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory of our own");
        let reserved = [Reserved::new(), Reserved::new()];
        let [tcp, admin] = [&reserved[0], &reserved[1]].map(|port| port.address);
        let unix = dir.join("cache.sock");
        let mut config = CacheConfig {
            version: config::VERSION,
            listen: CacheListen {
                unix: Some(unix.clone()),
                tcp: Some(tcp),
                admin,
            },
            size_mib: 64,
            default_lifetime: "1h".parse().expect("valid"),
            encrypt_values: true,
            password: None,
            peers: None,
        };
        change(&mut config);
        let mut cache = Self {
            tcp,
            unix,
            child: spawn(command, &config, &dir),
            config,
            dir,
            admin,
            _reserved: reserved,
        };
        cache.wait_until_ready();
        cache
    }

    /// Starts it again after its end, with `config` as it is now.
    pub fn start_again(&mut self) {
        self.child = spawn(
            Command::new(env!("CARGO_BIN_EXE_tlsfarm")),
            &self.config,
            &self.dir,
        );
        self.wait_until_ready();
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    fn wait_until_ready(&mut self) {
        wait_for("a ready cache", || {
            let ended = self.child.try_wait().expect("our child");
            assert!(ended.is_none(), "the cache ended: {}", self.log());
            (self.get("/readyz").0 == 200).then_some(())
        });
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        get_page(self.admin, path)
    }

    /// Asks the admin port; 0 stands for no answer within this time.
    pub fn get_within(&self, path: &str, limit: Duration) -> (u16, String) {
        get_page_within(self.admin, path, limit)
    }

    pub fn metric(&self, series: &str) -> u64 {
        value_of(&format!("tlsfarm_cache_{series}"), &self.get("/metrics").1)
    }

    pub fn signal(&self, signal: &str) {
        send_signal(&self.child, signal);
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the cache", || {
            self.child.try_wait().expect("our child")
        })
    }

    /// Memory that it takes, in bytes.
    pub fn resident(&self) -> usize {
        resident(&self.child)
    }

    /// Everything that it can write to.
    pub fn memory(&self) -> Vec<u8> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let maps = fs::read_to_string(process.join("maps")).expect("the process runs");
        let memory = fs::File::open(process.join("mem")).expect("our child");
        let mut found = Vec::new();
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let (begin, end) = line
                .split_once(' ')
                .and_then(|(range, _)| range.split_once('-'))
                .expect("a range");
            let address = |text| u64::from_str_radix(text, 16).expect("an address");
            let mut part = vec![0; (address(end) - address(begin)) as usize];
            // Some special mappings cannot be read.
            if memory.read_exact_at(&mut part, address(begin)).is_ok() {
                found.extend(part);
            }
        }
        found
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).expect("the log is readable")
    }
}

fn spawn(mut command: Command, config: &CacheConfig, dir: &Path) -> Child {
    let config_file = dir.join("cache.json");
    put(&config_file, &serde_json::to_vec(config).expect("serializes"));
    command
        .args(["cache", "--log-format", "json", "--config"])
        .arg(config_file)
        .stderr(fs::File::create(dir.join("log")).expect("created"))
        .spawn()
        .expect("started")
}

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if thread::panicking() {
            eprintln!("--- log of {}:\n{log}", self.tcp);
        } else {
            assert!(!log.contains("\"ERROR\"") && !log.contains("panicked"), "{log}");
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
