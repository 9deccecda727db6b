//! One bucket of a shard: entries in one block of memory, linked from the oldest to the newest.

use zeroize::Zeroizing;

use super::index::{Index, NOWHERE};
use super::vault::Id;

/// Minimum capacity of a bucket that has entries.
const FEWEST: usize = 32;

/// Overhead of an allocation, and its alignment, in bytes.
const ALLOCATION_HEAD: usize = 8;
const ALLOCATION_STEP: usize = 16;

struct Entry {
    id: Id,
    /// Expiry, in milliseconds of the shard's clock.
    expires: u64,
    value: Zeroizing<Box<[u8]>>,
    older: u32,
    newer: u32,
}

/// Entries with a memory limit.
pub(super) struct Bucket {
    limit: usize,
    index: Index,
    /// Contiguous: removing an entry moves the last one to its place.
    entries: Vec<Entry>,
    oldest: u32,
    newest: u32,
    value_bytes: usize,
    /// Index of the next entry to check for expiry.
    swept: usize,
    evicted: u64,
    expired: u64,
}

/// Figures of a bucket.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Figures {
    /// Number of entries, including expired ones that have not been removed yet.
    pub(crate) entries: usize,
    /// Memory used by the entries including overhead, in bytes.
    pub(crate) bytes: usize,
    /// Number of entries evicted because the memory limit was reached.
    pub(crate) evicted: u64,
    /// Number of entries removed because they expired.
    pub(crate) expired: u64,
}

impl Bucket {
    /// Creates an empty bucket with a memory limit of `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            index: Index::default(),
            entries: Vec::new(),
            oldest: NOWHERE,
            newest: NOWHERE,
            value_bytes: 0,
            swept: 0,
            evicted: 0,
            expired: 0,
        }
    }

    /// Returns the value and its expiry time.
    pub(super) fn get(&mut self, id: &Id, now: u64) -> Option<(&[u8], u64)> {
        let place = self.find_live(id, now)?;
        let entry = self.entries.get(place as usize)?;
        Some((&entry.value, entry.expires))
    }

    /// Removes an entry and returns its value.
    pub(super) fn take(&mut self, id: &Id, now: u64) -> Option<Zeroizing<Box<[u8]>>> {
        let place = self.find_live(id, now)?;
        self.remove(place).map(|entry| entry.value)
    }

    /// Sets the expiry time of an entry.
    pub(super) fn set_expiry(&mut self, id: &Id, expires: u64, now: u64) -> bool {
        let place = self.find_live(id, now);
        let entry = place.and_then(|place| self.entries.get_mut(place as usize));
        entry.map(|entry| entry.expires = expires).is_some()
    }

    /// Stores a value as the newest entry and evicts the oldest until it fits. Returns false if it does not fit.
    pub(super) fn set(&mut self, id: Id, value: Zeroizing<Box<[u8]>>, expires: u64) -> bool {
        if let Some(place) = self.find(&id) {
            self.remove(place);
        }
        let bytes = allocation(value.len());
        // If the limit leaves no room to grow, evict the oldest entry and reuse its slot.
        while self.bytes() + bytes + self.growth() > self.limit {
            if self.remove(self.oldest).is_none() {
                return false;
            }
            self.evicted += 1;
        }
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(self.step());
        }
        let place = self.entries.len() as u32;
        self.index.insert(tag(&id), place);
        self.entries.push(Entry {
            id,
            expires,
            value,
            older: self.newest,
            newer: NOWHERE,
        });
        self.value_bytes += bytes;
        self.join(self.newest, place);
        self.join(place, NOWHERE);
        true
    }

    /// Checks the next `most` entries and removes the expired ones.
    pub(super) fn sweep(&mut self, most: usize, now: u64) {
        for _ in 0..most.min(self.entries.len()) {
            if self.swept >= self.entries.len() {
                self.swept = 0;
            }
            match self.entries.get(self.swept) {
                // Removal moves another entry into this slot, so do not advance.
                Some(entry) if entry.expires <= now => self.expire(self.swept as u32),
                _ => self.swept += 1,
            }
        }
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            entries: self.entries.len(),
            bytes: self.bytes(),
            evicted: self.evicted,
            expired: self.expired,
        }
    }

    fn find(&self, id: &Id) -> Option<u32> {
        self.index.find(tag(id), |place| {
            let entry = self.entries.get(place as usize);
            entry.is_some_and(|entry| entry.id == *id)
        })
    }

    fn find_live(&mut self, id: &Id, now: u64) -> Option<u32> {
        let place = self.find(id)?;
        if self.entries.get(place as usize)?.expires > now {
            return Some(place);
        }
        self.expire(place);
        None
    }

    fn expire(&mut self, place: u32) {
        self.remove(place);
        self.expired += 1;
    }

    /// Removes an entry; the last one moves to its place.
    fn remove(&mut self, place: u32) -> Option<Entry> {
        let (id, older, newer) = self.links(place)?;
        self.join(older, newer);
        self.index.remove(tag(&id), place);
        let last = self.entries.len().saturating_sub(1) as u32;
        let entry = self.entries.swap_remove(place as usize);
        if let Some((id, older, newer)) = self.links(place) {
            self.index.relocate(tag(&id), last, place);
            self.join(older, place);
            self.join(place, newer);
        }
        self.value_bytes -= allocation(entry.value.len());
        if self.entries.len() * 4 < self.entries.capacity() {
            self.entries.shrink_to((self.entries.len() * 2).max(FEWEST));
        }
        Some(entry)
    }

    fn links(&self, place: u32) -> Option<(Id, u32, u32)> {
        let entry = self.entries.get(place as usize)?;
        Some((entry.id, entry.older, entry.newer))
    }

    /// Links two entries; `NOWHERE` marks the end of the list.
    fn join(&mut self, older: u32, newer: u32) {
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer as usize) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    fn bytes(&self) -> usize {
        self.value_bytes + self.index.bytes() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Memory needed by one more entry, without its value, in bytes.
    fn growth(&self) -> usize {
        let block = match self.entries.len() == self.entries.capacity() {
            true => self.step() * size_of::<Entry>(),
            false => 0,
        };
        block + self.index.growth()
    }

    /// Number of entries by which the block grows: an eighth, a compromise between unused memory and copying.
    fn step(&self) -> usize {
        (self.entries.capacity() / 8).max(FEWEST)
    }
}

fn tag(id: &Id) -> u32 {
    let [a, b, c, d, ..] = id.0;
    u32::from_le_bytes([a, b, c, d])
}

/// Size of the allocation of a value, in bytes.
fn allocation(length: usize) -> usize {
    (length + ALLOCATION_HEAD)
        .next_multiple_of(ALLOCATION_STEP)
        .max(2 * ALLOCATION_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_sweep_removes_every_expired_entry() {
        let mut bucket = Bucket::new(1 << 20);
        for number in 0..4 {
            let id = Id(u128::to_be_bytes(number << 64 | number));
            assert!(bucket.set(id, Zeroizing::new(Box::new([0; 8])), 10));
        }
        bucket.sweep(4, 9);
        assert_eq!(bucket.figures().entries, 4, "none has expired");
        bucket.sweep(4, 10);
        assert_eq!(bucket.figures().entries, 0);
    }
}
