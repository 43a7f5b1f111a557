//! The store of positive and negative answers: one byte budget for all zones.
//!
//! moka decides what stays within the budget; this module and its clock (`now`, always an argument)
//! decide how long an answer counts as fresh. An expired entry stays until its room is needed, since
//! it may still be served stale.

pub mod entry;
pub mod failure;
pub mod lifetime;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use entry::Entry;
use moka::notification::RemovalCause;

use crate::wire::key::{Key, KeyBuf};
use crate::wire::name;
use crate::wire::response::Kind;

/// Bytes that an entry costs beside its own: moka's bookkeeping and the allocator's rounding.
/// Measured as the growth of RSS for each of 100,000 entries, less their own bytes.
const OVERHEAD: usize = 300;

/// The store.
pub struct Cache {
    store: moka::sync::Cache<Key, Arc<Entry>, ahash::RandomState>,
    counts: Arc<Counts>,
}

/// What the store holds and has lost, for metrics.
#[derive(Debug, Default)]
struct Counts {
    positive: AtomicI64,
    negative: AtomicI64,
    evictions: AtomicU64,
}

impl Counts {
    fn of(&self, kind: Kind) -> &AtomicI64 {
        if kind == Kind::Positive { &self.positive } else { &self.negative }
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
        let counts = Arc::new(Counts::default());
        let listener = Arc::clone(&counts);
        let store = moka::sync::Cache::builder()
            .max_capacity(budget)
            .weigher(|key: &Key, entry: &Arc<Entry>| {
                u32::try_from(key.len() + entry.weight() + OVERHEAD).unwrap_or(u32::MAX)
            })
            .eviction_listener(move |_, entry: Arc<Entry>, cause| {
                listener.of(entry.kind()).fetch_sub(1, Ordering::Relaxed);
                if cause == RemovalCause::Size {
                    listener.evictions.fetch_add(1, Ordering::Relaxed);
                }
            })
            .build_with_hasher(ahash::RandomState::new());
        Self { store, counts }
    }

    /// The entry under a key, fresh or not.
    pub fn lookup(&self, key: &KeyBuf) -> Option<Arc<Entry>> {
        self.store.get(key.as_bytes())
    }

    /// The entry under a key, fresh or not.
    pub fn find(&self, key: &Key) -> Option<Arc<Entry>> {
        self.store.get(key)
    }

    /// Stores an entry, in the place of an older one.
    pub fn store(&self, key: Key, entry: Arc<Entry>) {
        self.counts.of(entry.kind()).fetch_add(1, Ordering::Relaxed);
        self.store.insert(key, entry);
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Arc<Entry>)> + '_ {
        self.store.iter().map(|(key, entry)| ((*key).clone(), entry))
    }

    /// The entries of one name, all types.
    pub fn of_name(&self, lower: &[u8]) -> Vec<(Key, Arc<Entry>)> {
        self.iter().filter(|(key, _)| key.name() == lower).collect()
    }

    /// Drops the entries for which `chosen` holds, and says how many they were.
    pub fn flush(&self, chosen: impl Fn(&Key) -> bool) -> usize {
        let keys: Vec<Key> = self.iter().map(|(key, _)| key).filter(|key| chosen(key)).collect();
        for key in &keys {
            self.store.invalidate(key);
        }
        keys.len()
    }

    /// What the store holds now.
    pub fn totals(&self) -> Totals {
        self.store.run_pending_tasks();
        Totals {
            positive: self.counts.positive.load(Ordering::Relaxed),
            negative: self.counts.negative.load(Ordering::Relaxed),
            bytes: self.store.weighted_size(),
            evictions: self.counts.evictions.load(Ordering::Relaxed),
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
