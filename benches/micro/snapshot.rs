//! The cache as bytes and back, and what a hit waits for meanwhile.

use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use criterion::{BatchSize, Criterion};
use nodens::cache::Cache;
use nodens::cache::entry::Entry;
use nodens::cache::lifetime::{Bounds, MAX_TTL};
use nodens::cache::snapshot::{self, Rule};
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::Query;
use nodens::wire::response::Answer;

use super::{query, response};

/// Entries of a large cache.
const ENTRIES: usize = 100_000;
const BUDGET: u64 = 1 << 30;
const BOUNDS: Bounds = Bounds { min_ttl: 0, max_ttl: MAX_TTL, negative_max_ttl: 30, negative_no_soa_ttl: 0 };
/// How long hits are watched.
const WATCHED: Duration = Duration::from_secs(3);

fn rule(_: &Key) -> Option<Rule> {
    Some(Rule { bounds: BOUNDS, stale: Duration::from_secs(3600) })
}

fn keys() -> Vec<KeyBuf> {
    let key = |n| {
        let packet = query(&format!("web-{n}.default.svc.cluster.local.")).to_vec().expect("it fits");
        let mut key = KeyBuf::new(&Query::parse(&packet).expect("a well-formed query"));
        key.bind(2);
        key
    };
    (0..ENTRIES).map(key).collect()
}

fn filled(now: Instant) -> Cache {
    let cache = Cache::new(BUDGET);
    for (n, key) in keys().iter().enumerate() {
        let bytes =
            response(&query(&format!("web-{n}.default.svc.cluster.local."))).to_vec().expect("it fits");
        let key = key.to_key();
        let answer = Answer::read(bytes, &key).expect("a well-formed response");
        cache.store(key, Arc::new(Entry::new(answer, &BOUNDS, now)));
    }
    cache
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let cache = filled(now);
    // What a memfd is made of.
    let mut file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    let mut write = || {
        file.seek(SeekFrom::Start(0)).expect("a file");
        snapshot::write(&cache, rule, now, wall, BUDGET, &mut file).expect("room for it")
    };
    let written = write();
    assert_eq!(written.entries as usize, ENTRIES);
    println!("snapshot: {} bytes for each of {ENTRIES} entries", written.bytes / ENTRIES as u64);
    let mut group = criterion.benchmark_group("snapshot, 100,000 entries");
    group.bench_function("write", |bencher| bencher.iter(&mut write));
    watch("hits alone", &cache, now, || thread::sleep(Duration::from_millis(1)));
    watch("hits while it is written over and over", &cache, now, || {
        black_box(write());
    });
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("a file");
    file.read_to_end(&mut bytes).expect("a file");
    group.bench_function("read", |bencher| {
        let read = |into: Cache| {
            let read = snapshot::read(&bytes, &into, rule, now, wall).expect("what was written");
            assert_eq!(read.entries as usize, ENTRIES);
            into
        };
        bencher.iter_batched(|| Cache::new(BUDGET), read, BatchSize::PerIteration);
    });
    group.finish();
}

/// Prints how long look-ups of one thread take while another one is busy. When the scheduler gives its core to
/// somebody else, that is no wait for us; when it sleeps, it does so at a lock.
fn watch(what: &str, cache: &Cache, now: Instant, mut busy: impl FnMut()) {
    let stop = AtomicBool::new(false);
    let hits = || {
        let keys = keys();
        let mut took = Vec::with_capacity(20_000_000);
        let (started, before) = (Instant::now(), switches());
        let (mut switched, mut longest) = (before, 0);
        for key in keys.iter().cycle() {
            let asked = Instant::now();
            let entry = cache.lookup(key).expect("it is there");
            assert!(black_box(entry.remaining(now)).is_some());
            let ns = u32::try_from(asked.elapsed().as_nanos()).unwrap_or(u32::MAX);
            took.push(ns);
            if ns > longest {
                let here = switches();
                if here.1 == switched.1 {
                    longest = ns;
                }
                switched = here;
            }
            if started.elapsed() > WATCHED || took.len() == took.capacity() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        (took, longest, switched.0.max(switches().0) - before.0)
    };
    thread::scope(|scope| {
        let hits = scope.spawn(hits);
        while !stop.load(Ordering::Relaxed) {
            busy();
        }
        let (mut took, longest, slept) = hits.join().expect("no panic");
        took.sort_unstable();
        let at = |part: f64| f64::from(took[(took.len() as f64 * part) as usize]) / 1e3;
        println!(
            "{what}: {} look-ups, median {:.2} us, p99.9 {:.2} us, longest while on its core {:.0} us, \
             slept at a lock {slept} times",
            took.len(),
            at(0.5),
            at(0.999),
            f64::from(longest) / 1e3,
        );
    });
}

/// How often this thread has slept, and how often its core was taken from it.
fn switches() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("Linux");
    let count = |what: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        line.and_then(|count| count.trim().parse().ok()).expect("a count")
    };
    (count("voluntary_ctxt_switches:"), count("nonvoluntary_ctxt_switches:"))
}
