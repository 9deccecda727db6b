//! The entries of one cache, with lifetimes and a memory limit.
//!
//! When the memory limit is reached, the oldest entries are evicted, whatever their lifetimes, because the newest are
//! the most likely to be requested. Entries are distributed over buckets by a keyed hash, each with its own lock and
//! its own share of the memory, so "oldest" means oldest in its bucket. No operation iterates over all entries.

mod bucket;
mod index;
mod vault;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use self::bucket::Bucket;
pub(crate) use self::bucket::Figures;
use self::vault::{Id, Vault};

/// Memory limit of one bucket, if there are several.
const BUCKET_BYTES: usize = 4 << 20;

/// Maximum number of buckets.
const MOST_BUCKETS: usize = 64;

/// Number of entries checked for expiry after each store.
const SWEPT_AT_ONCE: usize = 2;

/// The entries of one process.
pub struct Shard {
    vault: Vault,
    /// The number of buckets is a power of two.
    buckets: Vec<Mutex<Bucket>>,
    epoch: Instant,
    limit: usize,
}

/// Outcome of a store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoreOutcome {
    /// The value was stored.
    Yes,
    /// The key exists and `only_new` was set.
    Exists,
    /// The value does not fit, or encryption failed.
    No,
}

/// The operating system returned no random bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("failed to get random bytes for keys from the operating system")]
pub struct NoRandomness;

impl Shard {
    /// Creates an empty shard with a memory limit of `limit` bytes. Values are encrypted in memory if `encrypt` is set.
    /// No later call may pass a time before `now`.
    ///
    /// # Errors
    ///
    /// Fails if the operating system returns no random bytes.
    pub fn new(limit: usize, encrypt: bool, now: Instant) -> Result<Self, NoRandomness> {
        let count = (limit / BUCKET_BYTES).clamp(1, MOST_BUCKETS);
        // Rounded down, so that part of a hash selects one.
        let count = 1 << count.ilog2();
        let bucket = || Mutex::new(Bucket::new(limit / count));
        Ok(Self {
            vault: Vault::new(encrypt).ok_or(NoRandomness)?,
            buckets: std::iter::repeat_with(bucket).take(count).collect(),
            epoch: now,
            limit,
        })
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &[u8], now: Instant) -> Option<Zeroizing<Vec<u8>>> {
        let id = self.vault.id(key)?;
        let mut bucket = self.bucket(&id)?;
        let (kept, _) = bucket.get(&id, self.millis(now))?;
        self.vault.open(&id, kept)
    }

    /// Removes an entry and returns its value. Of concurrent callers only one gets it.
    pub fn take(&self, key: &[u8], now: Instant) -> Option<Zeroizing<Vec<u8>>> {
        let id = self.vault.id(key)?;
        let kept = self.bucket(&id)?.take(&id, self.millis(now))?;
        self.vault.open(&id, &kept)
    }

    /// Stores a value with a lifetime; `only_new` keeps an existing value.
    pub fn set(
        &self,
        key: &[u8],
        value: &[u8],
        lifetime: Duration,
        only_new: bool,
        now: Instant,
    ) -> StoreOutcome {
        let sealed = || {
            let id = self.vault.id(key)?;
            Some((id, self.vault.seal(&id, value)?))
        };
        let Some((id, kept)) = sealed() else {
            return StoreOutcome::No;
        };
        let Some(mut bucket) = self.bucket(&id) else {
            return StoreOutcome::No;
        };
        let now = self.millis(now);
        if only_new && bucket.get(&id, now).is_some() {
            return StoreOutcome::Exists;
        }
        let stored = bucket.set(id, kept, now.saturating_add(millis(lifetime)));
        bucket.sweep(SWEPT_AT_ONCE, now);
        match stored {
            true => StoreOutcome::Yes,
            false => StoreOutcome::No,
        }
    }

    /// Deletes an entry; returns whether it existed.
    pub fn delete(&self, key: &[u8], now: Instant) -> bool {
        let taken = || {
            let id = self.vault.id(key)?;
            self.bucket(&id)?.take(&id, self.millis(now))
        };
        taken().is_some()
    }

    /// Remaining lifetime of an entry; None if it does not exist.
    pub fn time_left(&self, key: &[u8], now: Instant) -> Option<Duration> {
        let id = self.vault.id(key)?;
        let now = self.millis(now);
        let (_, expires) = self.bucket(&id)?.get(&id, now)?;
        Some(Duration::from_millis(expires.saturating_sub(now)))
    }

    /// Sets the lifetime of an entry, from `now` on; returns whether it existed.
    pub fn expire(&self, key: &[u8], lifetime: Duration, now: Instant) -> bool {
        let now = self.millis(now);
        let changed = || {
            let id = self.vault.id(key)?;
            let expires = now.saturating_add(millis(lifetime));
            Some(self.bucket(&id)?.set_expiry(&id, expires, now))
        };
        changed().unwrap_or(false)
    }

    /// Checks the next `most` entries of each bucket and removes the expired ones.
    pub(crate) fn sweep(&self, most: usize, now: Instant) {
        let now = self.millis(now);
        for bucket in &self.buckets {
            lock(bucket).sweep(most, now);
        }
    }

    /// Current and cumulative figures of the shard.
    pub(crate) fn figures(&self) -> Figures {
        let figures = self.buckets.iter().map(|bucket| lock(bucket).figures());
        figures.fold(Figures::default(), |sum, one| Figures {
            entries: sum.entries + one.entries,
            bytes: sum.bytes + one.bytes,
            evicted: sum.evicted + one.evicted,
            expired: sum.expired + one.expired,
        })
    }

    /// Memory limit of the entries, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    fn bucket(&self, id: &Id) -> Option<MutexGuard<'_, Bucket>> {
        // Other bytes than those that select the slot within the bucket.
        let [.., last] = id.0;
        let bucket = self.buckets.get(last as usize & (self.buckets.len() - 1))?;
        Some(lock(bucket))
    }

    fn millis(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.epoch))
    }
}

fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
