//! What one cache keeps: entries with a lifetime, within a bound on memory.
//!
//! When there is no room the oldest go, whatever their lifetimes: what was stored last is likeliest to be asked for. The
//! entries are spread over buckets by a keyed hash, each with its own lock and its own part of the memory, so "oldest"
//! means oldest in its bucket. Nothing here ever looks through all entries at once.

mod bucket;
mod index;
mod vault;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use self::bucket::Bucket;
pub(crate) use self::bucket::Figures;
use self::vault::{Id, Vault};

/// Memory of one bucket, where there are several.
const BUCKET_BYTES: usize = 4 << 20;

/// Most buckets.
const MOST_BUCKETS: usize = 64;

/// Entries that are looked at, after each that is stored, for whether they have expired.
const SWEPT_AT_ONCE: usize = 2;

/// The entries of one process.
pub struct Shard {
    vault: Vault,
    /// A power of two of them.
    buckets: Vec<Mutex<Bucket>>,
    epoch: Instant,
    limit: usize,
}

/// What became of a value that was to be stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoreOutcome {
    /// It is stored.
    Yes,
    /// There is one already, and it was not to be replaced.
    Exists,
    /// It does not fit, or the cipher failed.
    No,
}

/// The system has no randomness.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the system has no randomness for keys")]
pub struct NoRandomness;

impl Shard {
    /// An empty shard that may take `limit` bytes. Values are sealed in memory if `encrypt` says so; `now` is the
    /// earliest time that it will ever be told.
    ///
    /// # Errors
    ///
    /// When no key can be made.
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

    /// The value of a key.
    pub fn get(&self, key: &[u8], now: Instant) -> Option<Zeroizing<Vec<u8>>> {
        let id = self.vault.id(key)?;
        let mut bucket = self.bucket(&id)?;
        let (kept, _) = bucket.get(&id, self.millis(now))?;
        self.vault.open(&id, kept)
    }

    /// The value of a key, which it loses: of all who ask for it, one gets it.
    pub fn take(&self, key: &[u8], now: Instant) -> Option<Zeroizing<Vec<u8>>> {
        let id = self.vault.id(key)?;
        let kept = self.bucket(&id)?.take(&id, self.millis(now))?;
        self.vault.open(&id, &kept)
    }

    /// Stores a value for so long; `only_new` keeps one that is there.
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

    /// Forgets a key; whether there was one.
    pub fn delete(&self, key: &[u8], now: Instant) -> bool {
        let taken = || {
            let id = self.vault.id(key)?;
            self.bucket(&id)?.take(&id, self.millis(now))
        };
        taken().is_some()
    }

    /// How long a key will be there yet; None when it is not.
    pub fn time_left(&self, key: &[u8], now: Instant) -> Option<Duration> {
        let id = self.vault.id(key)?;
        let now = self.millis(now);
        let (_, expires) = self.bucket(&id)?.get(&id, now)?;
        Some(Duration::from_millis(expires.saturating_sub(now)))
    }

    /// Gives a key another lifetime, counted from now; whether there was one.
    pub fn expire(&self, key: &[u8], lifetime: Duration, now: Instant) -> bool {
        let now = self.millis(now);
        let changed = || {
            let id = self.vault.id(key)?;
            let expires = now.saturating_add(millis(lifetime));
            Some(self.bucket(&id)?.set_expiry(&id, expires, now))
        };
        changed().unwrap_or(false)
    }

    /// Looks at the next so many entries of each bucket and removes those that have expired.
    pub(crate) fn sweep(&self, most: usize, now: Instant) {
        let now = self.millis(now);
        for bucket in &self.buckets {
            lock(bucket).sweep(most, now);
        }
    }

    /// How much there is and has been.
    pub(crate) fn figures(&self) -> Figures {
        let figures = self.buckets.iter().map(|bucket| lock(bucket).figures());
        figures.fold(Figures::default(), |sum, one| Figures {
            entries: sum.entries + one.entries,
            bytes: sum.bytes + one.bytes,
            evicted: sum.evicted + one.evicted,
            expired: sum.expired + one.expired,
        })
    }

    /// Memory that the entries may take.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    fn bucket(&self, id: &Id) -> Option<MutexGuard<'_, Bucket>> {
        // Not the bytes that choose a place within the bucket.
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
