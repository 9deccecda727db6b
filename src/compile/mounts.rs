//! Mount paths of the containers of a pod.

use std::path::{Path, PathBuf};

/// Mount path of the ConfigMap.
pub const CONFIG_DIR: &str = "/etc/tlsfarm/config";

/// Key of the ConfigMap, and name of the proxy's configuration file.
pub const CONFIG_KEY: &str = "config.json";

/// Key of the ConfigMap, and name of the cache's configuration file.
pub const CACHE_CONFIG_KEY: &str = "cache.json";

/// Mount path of the ring Secret.
pub const RING_DIR: &str = "/etc/tlsfarm/ring";

/// Key of the ring Secret, and name of the file.
pub const RING_KEY: &str = "ring.json";

/// Mount path of the Secret with the certificate that caches present to each other.
pub const CACHE_CERTIFICATE_DIR: &str = "/etc/tlsfarm/cache";

/// Directory that the proxy and the cache of a pod share.
pub const RUN_DIR: &str = "/run/tlsfarm";

/// Unix socket of the cache that the proxy connects to.
pub const CACHE_SOCKET: &str = "/run/tlsfarm/cache.sock";

/// Mount path of the Secret with the CA and client certificates for a Redis server.
pub const REDIS_TLS_DIR: &str = "/etc/tlsfarm/redis/tls";

/// Mount path of the Secret with user name and password for a Redis server.
pub const REDIS_CREDENTIALS_DIR: &str = "/etc/tlsfarm/redis/credentials";

const CERTIFICATE_DIR: &str = "/etc/tlsfarm/certificates";

/// Mount path of a Secret with the certificate of a host.
pub fn certificate_dir(secret: &str) -> PathBuf {
    Path::new(CERTIFICATE_DIR).join(secret)
}
