//! Where the containers of a pod find their files.

use std::path::{Path, PathBuf};

/// The ConfigMap.
pub const CONFIG_DIR: &str = "/etc/tlsfarm/config";

/// Key of the ConfigMap, and name of the proxy's configuration file.
pub const CONFIG_KEY: &str = "config.json";

/// Key of the ConfigMap, and name of the cache's configuration file.
pub const CACHE_CONFIG_KEY: &str = "cache.json";

/// The ring Secret.
pub const RING_DIR: &str = "/etc/tlsfarm/ring";

/// Key of the ring Secret, and name of the file.
pub const RING_KEY: &str = "ring.json";

/// The certificate with which caches authenticate to each other.
pub const CACHE_CERTIFICATE_DIR: &str = "/etc/tlsfarm/cache";

/// What proxy and cache of a pod share while they run.
pub const RUN_DIR: &str = "/run/tlsfarm";

/// The cache's socket for the proxy.
pub const CACHE_SOCKET: &str = "/run/tlsfarm/cache.sock";

/// CA and client certificate for a Redis server.
pub const REDIS_TLS_DIR: &str = "/etc/tlsfarm/redis/tls";

/// User name and password for a Redis server.
pub const REDIS_CREDENTIALS_DIR: &str = "/etc/tlsfarm/redis/credentials";

const CERTIFICATE_DIR: &str = "/etc/tlsfarm/certificates";

/// A Secret with the certificate of a host.
pub fn certificate_dir(secret: &str) -> PathBuf {
    Path::new(CERTIFICATE_DIR).join(secret)
}
