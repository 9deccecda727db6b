//! The shard against a simple map, against its bound, and against many threads.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn shard(limit: usize) -> (Shard, Instant) {
    let now = Instant::now();
    (Shard::new(limit, true, now).expect("randomness"), now)
}

#[derive(Clone, Debug)]
enum Step {
    Get(u8),
    Take(u8),
    Set(u8, usize, u64, bool),
    Delete(u8),
    Expire(u8, u64),
    TimeLeft(u8),
    Wait(u64),
    Sweep(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0u8..24;
    prop_oneof![
        key().prop_map(Step::Get),
        key().prop_map(Step::Take),
        (key(), 0usize..200, 1u64..50, any::<bool>()).prop_map(|(k, n, l, new)| Step::Set(k, n, l, new)),
        key().prop_map(Step::Delete),
        (key(), 1u64..50).prop_map(|(key, lifetime)| Step::Expire(key, lifetime)),
        key().prop_map(Step::TimeLeft),
        (0u64..20).prop_map(Step::Wait),
        (0usize..30).prop_map(Step::Sweep),
    ]
}

proptest! {
    #[test]
    fn without_want_of_room_it_is_a_map_with_lifetimes(steps in vec(step(), 0..400), encrypt: bool) {
        let start = Instant::now();
        let shard = Shard::new(1 << 20, encrypt, start).expect("randomness");
        let mut model: BTreeMap<u8, (Vec<u8>, u64)> = BTreeMap::new();
        let mut time = 0;
        for (number, step) in steps.into_iter().enumerate() {
            let now = start + Duration::from_millis(time);
            model.retain(|_, (_, expires)| *expires > time);
            match step {
                Step::Get(key) => {
                    let expected = model.get(&key).map(|(value, _)| value.clone());
                    prop_assert_eq!(shard.get(&[key], now).map(|value| value.to_vec()), expected);
                }
                Step::Take(key) => {
                    let expected = model.remove(&key).map(|(value, _)| value);
                    prop_assert_eq!(shard.take(&[key], now).map(|value| value.to_vec()), expected);
                }
                Step::Set(key, length, lifetime, only_new) => {
                    let value = vec![number as u8; length];
                    let stored = shard.set(&[key], &value, Duration::from_millis(lifetime), only_new, now);
                    if only_new && model.contains_key(&key) {
                        prop_assert_eq!(stored, Stored::Exists);
                    } else {
                        prop_assert_eq!(stored, Stored::Yes);
                        model.insert(key, (value, time + lifetime));
                    }
                }
                Step::Delete(key) => {
                    prop_assert_eq!(shard.delete(&[key], now), model.remove(&key).is_some());
                }
                Step::Expire(key, lifetime) => {
                    let entry = model.get_mut(&key).map(|(_, expires)| *expires = time + lifetime);
                    prop_assert_eq!(shard.expire(&[key], Duration::from_millis(lifetime), now), entry.is_some());
                }
                Step::TimeLeft(key) => {
                    let expected = model.get(&key).map(|(_, expires)| Duration::from_millis(expires - time));
                    prop_assert_eq!(shard.time_left(&[key], now), expected);
                }
                Step::Wait(millis) => time += millis,
                Step::Sweep(most) => shard.sweep(most, now),
            }
            prop_assert!(shard.figures().entries >= model.len());
        }
        let now = start + Duration::from_millis(time);
        model.retain(|_, (_, expires)| *expires > time);
        shard.sweep(1000, now);
        shard.sweep(1000, now);
        prop_assert_eq!(shard.figures().entries, model.len());
        prop_assert_eq!(shard.figures().evicted, 0);
    }

    #[test]
    fn the_bound_holds_and_the_oldest_go(values in vec((0u16..300, 0usize..4096), 1..600)) {
        let (shard, now) = shard(256 << 10);
        let mut order: Vec<u16> = Vec::new();
        for (key, length) in values {
            let key_bytes = key.to_be_bytes();
            prop_assert_eq!(shard.set(&key_bytes, &vec![1; length], HOUR, false, now), Stored::Yes);
            order.retain(|other| *other != key);
            order.push(key);
            let figures = shard.figures();
            prop_assert!(figures.bytes <= 256 << 10);
            // Those that are there are the newest, without gaps.
            let kept = order.len() - figures.entries;
            for (at, other) in order.iter().enumerate() {
                prop_assert_eq!(shard.time_left(&other.to_be_bytes(), now).is_some(), at >= kept);
            }
            order.drain(..kept);
        }
    }
}

#[test]
fn of_all_who_take_a_value_one_gets_it() {
    const ROUNDS: usize = 100_000;
    const THREADS: usize = 4;
    let (shard, now) = shard(1 << 20);
    let (barrier, winners) = (Barrier::new(THREADS), AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (shard, barrier, winners) = (&shard, &barrier, &winners);
            scope.spawn(move || {
                // In batches, so that the threads meet often but need not wait for each other each time.
                for batch in 0..ROUNDS / 1000 {
                    let keys = (batch * 1000..(batch + 1) * 1000).map(usize::to_be_bytes);
                    if thread == 0 {
                        keys.clone().for_each(|key| {
                            assert_eq!(shard.set(&key, b"once", HOUR, false, now), Stored::Yes);
                        });
                    }
                    barrier.wait();
                    let won = keys.filter(|key| shard.take(key, now).is_some()).count();
                    winners.fetch_add(won, Ordering::Relaxed);
                    barrier.wait();
                }
            });
        }
    });
    assert_eq!(winners.into_inner(), ROUNDS);
    assert_eq!(shard.figures().entries, 0);
    assert_eq!(shard.figures().evicted, 0);
}

#[test]
fn what_has_expired_goes_without_being_asked_for() {
    let (shard, now) = shard(1 << 20);
    for key in 0u16..1000 {
        shard.set(&key.to_be_bytes(), b"short", Duration::from_secs(1), false, now);
    }
    let later = now + Duration::from_secs(2);
    for key in 0u16..1500 {
        shard.set(b"another", &key.to_be_bytes(), HOUR, false, later);
    }
    let figures = shard.figures();
    assert_eq!((figures.entries, figures.expired), (1, 1000));
    assert!(figures.bytes < 10_000, "memory comes back: {figures:?}");
}

/// The accounting against what the system says, and the goal of the design: 300 bytes over the data.
#[test]
fn an_entry_takes_what_is_accounted_for_it() {
    const ENTRIES: usize = 200_000;
    const DATA: usize = 32 + 150;
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").expect("readable");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("there");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<usize>().ok())
            .expect("a number")
            * 1024
    };
    let (shard, now) = shard(1 << 30);
    let before = resident();
    for number in 0..ENTRIES {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        shard.set(&key, &[3; 150], HOUR, false, now);
    }
    let (accounted, taken) = (shard.figures().bytes, resident().saturating_sub(before));
    assert!(
        accounted < ENTRIES * (DATA + 300),
        "{} bytes an entry",
        accounted / ENTRIES
    );
    // Other tests run beside this one.
    assert!(
        taken < accounted + accounted / 4 + (64 << 20),
        "{taken} taken, {accounted} accounted for"
    );
    println!(
        "{} bytes over the data",
        accounted as isize / ENTRIES as isize - DATA as isize
    );
}
