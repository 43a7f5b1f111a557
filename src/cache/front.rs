//! A worker's own short memory of entries it has just used.
//!
//! A look-up in the store writes to lines that all workers share: the shard's lock and the entry's
//! count of owners. Here a worker keeps the entries that it uses, and touches nothing of others.

use std::sync::Arc;
use std::time::Instant;

use super::Cache;
use super::entry::Entry;
use crate::wire::HEADER;
use crate::wire::key::KeyBuf;

/// Places, each 16 bytes. A node's pods ask a few hundred names over and over.
const SLOTS: usize = 2048;
/// Larger entries are not kept: 2,048 of these that the store has let go are 1 MiB a worker.
const LARGEST: usize = 512;
/// After this many uses the store is asked again, so that it knows what is in demand.
const USES: u8 = 64;

/// The memory of one thread.
pub struct Front {
    slots: Box<[Option<Slot>]>,
    hasher: ahash::RandomState,
    epoch: u64,
    /// An entry that is not kept, for the time of its use.
    passing: Option<Arc<Entry>>,
}

struct Slot {
    /// All of the key but its name, which the entry itself has.
    prefix: [u8; KeyBuf::PREFIX],
    uses: u8,
    entry: Arc<Entry>,
}

impl Front {
    /// For a thread that does little else than look up.
    pub fn new() -> Self {
        Self::with(SLOTS)
    }

    /// Keeps nothing: for threads with other things to do.
    pub fn none() -> Self {
        Self::with(0)
    }

    fn with(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| None).collect(),
            hasher: ahash::RandomState::new(),
            epoch: 0,
            passing: None,
        }
    }

    /// The entry under a key, as [`Cache::lookup`]. One from here is always fresh.
    pub fn lookup(&mut self, cache: &Cache, key: &KeyBuf, now: Instant) -> Option<&Arc<Entry>> {
        if self.slots.is_empty() {
            self.passing = cache.lookup(key);
            return self.passing.as_ref();
        }
        let epoch = cache.epoch();
        if self.epoch != epoch {
            self.slots.fill_with(|| None);
            self.epoch = epoch;
        }
        let place = self.hasher.hash_one(key.as_bytes()) as usize % self.slots.len();
        let slot = &mut self.slots[place];
        let known = slot.as_mut().is_some_and(|slot| slot.serves(key, now));
        if !known {
            let entry = cache.lookup(key)?;
            if entry.weight() > LARGEST {
                self.passing = Some(entry);
                return self.passing.as_ref();
            }
            *slot = Some(Slot { prefix: *key.prefix(), uses: 0, entry });
        }
        slot.as_ref().map(|slot| &slot.entry)
    }
}

impl Default for Front {
    fn default() -> Self {
        Self::new()
    }
}

impl Slot {
    /// Whether it holds what `key` asks for, still fresh and not used too often.
    fn serves(&mut self, key: &KeyBuf, now: Instant) -> bool {
        let name = key.name();
        let is_it = self.prefix == *key.prefix()
            && self.entry.message().get(HEADER..HEADER + name.len()) == Some(name);
        // The store may not have it any more, so that it stays here, used up.
        self.uses = self.uses.saturating_add(u8::from(is_it));
        is_it && self.uses < USES && self.entry.remaining(now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::lifetime::{Bounds, MAX_TTL};
    use crate::wire::key::Key;
    use crate::wire::query::Query;
    use crate::wire::response::Answer;

    const BOUNDS: Bounds =
        Bounds { min_ttl: 0, max_ttl: MAX_TTL, negative_max_ttl: 30, negative_no_soa_ttl: 0 };

    fn key(name: &[u8], flags: u16) -> KeyBuf {
        KeyBuf::new(&Query { id: 0, flags, name, qtype: 1, qclass: 1, edns: None })
    }

    fn entry(key: &Key, last: u8, ttl: u8, now: Instant) -> Arc<Entry> {
        let mut message = vec![0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        message.extend_from_slice(key.name());
        message.extend([0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4, 10, 0, 0, last]);
        Arc::new(Entry::new(Answer::read(message, key).unwrap(), &BOUNDS, now))
    }

    #[test]
    fn a_worker_uses_its_own_entry_until_it_expires_or_the_cache_is_flushed() {
        let (cache, now) = (Cache::new(1 << 20), Instant::now());
        let name = key(b"\x01n\x00", 0);
        let mut front = Front::new();
        assert!(front.lookup(&cache, &name, now).is_none());
        let first = entry(&name.to_key(), 1, 10, now);
        cache.store(name.to_key(), Arc::clone(&first));
        assert!(Arc::ptr_eq(front.lookup(&cache, &name, now).unwrap(), &first));
        let second = entry(&name.to_key(), 2, 10, now + Duration::from_secs(5));
        cache.store(name.to_key(), Arc::clone(&second));
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(Arc::ptr_eq(front.lookup(&cache, &name, at(9)).unwrap(), &first), "still fresh");
        assert!(Arc::ptr_eq(front.lookup(&cache, &name, at(10)).unwrap(), &second));
        cache.flush(|_| true);
        assert!(front.lookup(&cache, &name, at(10)).is_none());
    }

    #[test]
    fn other_keys_in_the_same_place_are_not_mistaken() {
        let (cache, now) = (Cache::new(1 << 20), Instant::now());
        let mut front = Front::with(1);
        let names: [&[u8]; 3] = [b"\x01n\x00", b"\x01m\x00", b"\x02nn\x00"];
        let keys: Vec<KeyBuf> =
            names.iter().flat_map(|name| [key(name, 0), key(name, crate::wire::flag::CD)]).collect();
        let entries: Vec<Arc<Entry>> = keys.iter().map(|key| entry(&key.to_key(), 1, 10, now)).collect();
        for (key, entry) in keys.iter().zip(&entries).take(5) {
            cache.store(key.to_key(), Arc::clone(entry));
        }
        for round in 0..3 {
            for (index, key) in keys.iter().enumerate() {
                let found = front.lookup(&cache, key, now);
                let right = found.is_some_and(|found| Arc::ptr_eq(found, &entries[index]));
                assert_eq!(right, index < 5, "round {round}, key {index}");
            }
        }
    }

    #[test]
    fn other_keys_that_are_not_cached_use_up_nothing() {
        let (cache, now) = (Cache::new(1 << 20), Instant::now());
        let (known, unknown) = (key(b"\x01n\x00", 0), key(b"\x01m\x00", 0));
        cache.store(known.to_key(), entry(&known.to_key(), 1, 10, now));
        let mut front = Front::with(1);
        front.lookup(&cache, &known, now);
        cache.remove(&known.to_key());
        assert!((0..1000).all(|_| front.lookup(&cache, &unknown, now).is_none()));
        assert!(front.lookup(&cache, &known, now).is_some(), "its place is its own still");
    }

    #[test]
    fn the_store_hears_of_what_is_in_demand() {
        let (cache, now) = (Cache::new(1 << 20), Instant::now());
        let name = key(b"\x01n\x00", 0);
        cache.store(name.to_key(), entry(&name.to_key(), 1, 10, now));
        let mut front = Front::new();
        front.lookup(&cache, &name, now);
        cache.remove(&name.to_key());
        let from_here = (0..1000).take_while(|_| front.lookup(&cache, &name, now).is_some()).count();
        assert_eq!(from_here, usize::from(USES) - 1);
        assert!((0..1000).all(|_| front.lookup(&cache, &name, now).is_none()));
    }
}
