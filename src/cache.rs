//! The store of positive and negative answers: one byte budget for all zones.
//!
//! quick_cache decides what stays within the budget; this module and its clock (`now`, always an
//! argument) decide how long an answer counts as fresh. An expired entry stays until its room is
//! needed, since it may still be served stale.

pub mod entry;
pub mod failure;
pub mod front;
pub mod lifetime;
pub mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use entry::Entry;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use crate::wire::key::{Key, KeyBuf};
use crate::wire::name;
use crate::wire::response::Kind;

/// Allowance for the store's tables and the allocator's rounding. With it an answer of cluster DNS counts
/// about 400 bytes; resident memory grows by 385 for each of 10,000 (`compare --only memory`).
const OVERHEAD: usize = 150;
/// What an entry of cluster DNS weighs in all, for the first size of the store's tables.
const TYPICAL: u64 = 512;
/// Parts of the store that are locked apart. Each has its share of the budget and takes what fits
/// into 97 % of that; the largest answer (64 KiB) must fit with the smallest budget (1 MiB).
const SHARDS: usize = 8;

type Store = quick_cache::sync::Cache<Key, Arc<Entry>, Weight, ahash::RandomState, DrivenOut>;

/// The store.
pub struct Cache {
    store: Store,
    counts: Counts,
    epoch: AtomicU64,
}

/// What the store holds and has lost, for metrics.
#[derive(Debug, Default)]
struct Counts {
    positive: AtomicI64,
    negative: AtomicI64,
    evictions: AtomicU64,
}

impl Counts {
    fn add(&self, entry: &Entry, n: i64) {
        let count = if entry.kind() == Kind::Positive { &self.positive } else { &self.negative };
        count.fetch_add(n, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Key, Arc<Entry>> for Weight {
    fn weight(&self, key: &Key, entry: &Arc<Entry>) -> u64 {
        (size_of::<Key>() + key.heap() + entry.weight() + OVERHEAD) as u64
    }
}

/// Collects what an insertion drives out: the key's old entry as well as those that make room.
#[derive(Clone)]
struct DrivenOut;

impl Lifecycle<Key, Arc<Entry>> for DrivenOut {
    type RequestState = Vec<(Key, Arc<Entry>)>;

    fn on_evict(&self, out: &mut Self::RequestState, key: Key, entry: Arc<Entry>) {
        out.push((key, entry));
    }
}

/// The store's state at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Entries with records of the asked type.
    pub positive: i64,
    /// NXDOMAIN and NODATA entries.
    pub negative: i64,
    /// Bytes in use, overhead included.
    pub bytes: u64,
    /// Entries that had to make room.
    pub evictions: u64,
}

impl Cache {
    /// A store that holds at most `budget` bytes.
    pub fn new(budget: u64) -> Self {
        let mut options = OptionsBuilder::new();
        options.shards(SHARDS).estimated_items_capacity((budget / TYPICAL) as usize).weight_capacity(budget);
        let store = match options.build() {
            Ok(options) => Store::with_options(options, Weight, ahash::RandomState::new(), DrivenOut),
            Err(_) => unreachable!("both capacities are set"),
        };
        Self { store, counts: Counts::default(), epoch: AtomicU64::new(0) }
    }

    /// The entry under a key, fresh or not.
    pub fn lookup(&self, key: &KeyBuf) -> Option<Arc<Entry>> {
        self.store.get(key.as_bytes())
    }

    /// The same under a key that is kept.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.store.get(key)
    }

    /// Stores an entry, in the place of an older one.
    pub fn store(&self, key: Key, entry: Arc<Entry>) {
        self.counts.add(&entry, 1);
        let mut driven_out = Vec::new();
        self.store.insert_with_lifecycle(key.clone(), entry, &mut driven_out);
        for (other, entry) in driven_out {
            self.counts.add(&entry, -1);
            if other != key {
                self.counts.evictions.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Drops the entry under a key: what came for it last may not be stored.
    pub fn remove(&self, key: &Key) {
        if let Some((_, old)) = self.store.remove(key) {
            self.counts.add(&old, -1);
        }
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Arc<Entry>)> + '_ {
        self.store.iter()
    }

    /// The entries of one name, all types.
    pub fn of_name(&self, lower: &[u8]) -> Vec<(Key, Arc<Entry>)> {
        self.iter().filter(|(key, _)| key.name() == lower).collect()
    }

    /// Drops the entries for which `chosen` holds, and says how many they were.
    pub fn flush(&self, chosen: impl Fn(&Key) -> bool) -> usize {
        let flushed = AtomicU64::new(0);
        self.store.retain(|key, entry| {
            let keep = !chosen(key);
            if !keep {
                self.counts.add(entry, -1);
                flushed.fetch_add(1, Ordering::Relaxed);
            }
            keep
        });
        self.epoch.fetch_add(1, Ordering::Release);
        flushed.into_inner() as usize
    }

    /// Counts the flushes: what was looked up before one is no longer to be used.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Entries that had to make room.
    fn evictions(&self) -> u64 {
        self.counts.evictions.load(Ordering::Relaxed)
    }

    /// What the store holds now.
    pub fn totals(&self) -> Totals {
        Totals {
            positive: self.counts.positive.load(Ordering::Relaxed),
            negative: self.counts.negative.load(Ordering::Relaxed),
            bytes: self.store.weight(),
            evictions: self.evictions(),
        }
    }
}

/// Whether the plain, lower-cased `name` is `suffix` or lies under it.
pub fn is_under(name: &[u8], suffix: &[u8]) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| {
        rest.is_empty()
            || name::labels(name)
                .map(|label| label.len() + 1)
                .scan(0, |at, length| {
                    *at += length;
                    Some(*at)
                })
                .any(|at| at == rest.len())
    })
}
