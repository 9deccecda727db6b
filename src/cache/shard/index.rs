//! Hash table from a key's hash to an entry's place, with eight bytes per slot: open addressing without tombstones.
//!
//! The standard map would need three times the memory, and would double in size when many entries are added and
//! removed.

/// Marks an empty slot or the end of a list.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Minimum number of slots of a non-empty table.
const FEWEST_SLOTS: usize = 64;

#[derive(Clone, Copy)]
struct Slot {
    tag: u32,
    place: u32,
}

const FREE: Slot = Slot {
    tag: 0,
    place: NOWHERE,
};

/// Places by tag. Several places may have the same tag; the caller compares the entries.
#[derive(Default)]
pub(super) struct Index {
    /// The number of slots is a power of two; at most three quarters are used.
    slots: Vec<Slot>,
    used: usize,
}

impl Index {
    /// Memory of the table, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>()
    }

    /// Additional memory needed by one more place, in bytes.
    pub(super) fn growth(&self) -> usize {
        match self.is_full() {
            true => self.slots.len().max(FEWEST_SLOTS) * size_of::<Slot>(),
            false => 0,
        }
    }

    /// The first place with `tag` that `is_it` accepts.
    pub(super) fn find(&self, tag: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = self.home(tag);
        loop {
            let slot = self.slots.get(at)?;
            if slot.place == NOWHERE {
                return None;
            }
            if slot.tag == tag && is_it(slot.place) {
                return Some(slot.place);
            }
            at = self.after(at);
        }
    }

    /// Adds a place.
    pub(super) fn insert(&mut self, tag: u32, place: u32) {
        if self.is_full() {
            self.resize((self.slots.len() * 2).max(FEWEST_SLOTS));
        }
        self.put(Slot { tag, place });
        self.used += 1;
    }

    /// Records that an entry moved from `from` to `to`.
    pub(super) fn relocate(&mut self, tag: u32, from: u32, to: u32) {
        if let Some(at) = self.slot_of(tag, from)
            && let Some(slot) = self.slots.get_mut(at)
        {
            slot.place = to;
        }
    }

    /// Removes a place and shifts displaced slots back.
    pub(super) fn remove(&mut self, tag: u32, place: u32) {
        let Some(mut hole) = self.slot_of(tag, place) else {
            return;
        };
        let mut at = hole;
        loop {
            at = self.after(at);
            let Some(slot) = self.slots.get(at).copied() else {
                break;
            };
            if slot.place == NOWHERE {
                break;
            }
            // Distances of the slot from its home position and from the hole.
            let behind_home = at.wrapping_sub(self.home(slot.tag)) & self.mask();
            let behind_hole = at.wrapping_sub(hole) & self.mask();
            if behind_home >= behind_hole {
                self.set(hole, slot);
                hole = at;
            }
        }
        self.set(hole, FREE);
        self.used -= 1;
        if self.used * 8 < self.slots.len() && self.slots.len() > FEWEST_SLOTS {
            self.resize(self.slots.len() / 2);
        }
    }

    fn slot_of(&self, tag: u32, place: u32) -> Option<usize> {
        let mut at = self.home(tag);
        loop {
            let slot = self.slots.get(at)?;
            match slot.place {
                NOWHERE => return None,
                found if found == place => return Some(at),
                _ => at = self.after(at),
            }
        }
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![FREE; slots]);
        let used = old.into_iter().filter(|slot| slot.place != NOWHERE);
        used.for_each(|slot| self.put(slot));
    }

    fn put(&mut self, slot: Slot) {
        let mut at = self.home(slot.tag);
        while self.slots.get(at).is_some_and(|there| there.place != NOWHERE) {
            at = self.after(at);
        }
        self.set(at, slot);
    }

    fn set(&mut self, at: usize, slot: Slot) {
        if let Some(there) = self.slots.get_mut(at) {
            *there = slot;
        }
    }

    fn is_full(&self) -> bool {
        (self.used + 1) * 4 > self.slots.len() * 3
    }

    fn home(&self, tag: u32) -> usize {
        tag as usize & self.mask()
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & self.mask()
    }

    fn mask(&self) -> usize {
        self.slots.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few tags, so that many places share one and many stand behind their homes.
        #[test]
        fn the_index_agrees_with_a_hash_map(steps in vec((any::<bool>(), 0u32..40, 0u32..100), 0..600)) {
            let mut index = Index::default();
            let mut model = BTreeMap::new();
            let mut fresh = 0;
            for (add, tag, pick) in steps {
                let tag = tag * 0x0101_0101 % 67;
                if add {
                    index.insert(tag, fresh);
                    model.insert(fresh, tag);
                    fresh += 1;
                } else if let Some((&place, &tag)) = model.range(pick..).next() {
                    index.remove(tag, place);
                    model.remove(&place);
                }
                for (&place, &tag) in &model {
                    prop_assert_eq!(index.find(tag, |found| found == place), Some(place));
                }
                prop_assert_eq!(index.used, model.len());
                prop_assert!(index.used * 4 <= index.slots.len() * 3);
                prop_assert_eq!(index.find(68, |_| true), None);
            }
        }
    }

    #[test]
    fn shrinking_frees_memory() {
        let mut index = Index::default();
        (0..10_000).for_each(|place| index.insert(place * 7919, place));
        assert!(index.bytes() <= 10_000 * 22);
        (0..9_990).for_each(|place| index.remove(place * 7919, place));
        assert!(index.bytes() <= 2048, "{}", index.bytes());
        assert_eq!(index.find(9_995 * 7919, |_| true), Some(9_995));
    }
}
