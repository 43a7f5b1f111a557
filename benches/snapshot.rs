//! The cache as bytes and back, and what hits wait for meanwhile: `cargo bench --bench snapshot`.
//!
//! 100,000 entries as pods make them, into a file of the kind that a memfd is. The time of the wall is what a
//! restart waits for, on a machine with nothing else to do; that of the CPU depends less on others.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nodens::cache::Cache;
use nodens::cache::entry::Entry;
use nodens::cache::lifetime::{Bounds, MAX_TTL};
use nodens::cache::snapshot::{self, Rule};
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::Query;
use nodens::wire::response::Answer;

/// Entries of a large cache.
const ENTRIES: usize = 100_000;
/// More than they take.
const BUDGET: u64 = 1 << 28;
const RUNS: usize = 21;
/// How long hits are watched.
const WATCHED: Duration = Duration::from_secs(3);
const BOUNDS: Bounds = Bounds { min_ttl: 0, max_ttl: MAX_TTL, negative_max_ttl: 30, negative_no_soa_ttl: 0 };

fn rule(_: &Key) -> Option<Rule> {
    Some(Rule { bounds: BOUNDS, stale: Duration::from_secs(3600) })
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

/// An address, an alias with three of them, NODATA, or NXDOMAIN.
fn response(n: usize) -> Message {
    let owner = name(&format!("web-{n}.default.svc.cluster.local."));
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.add_query(Question::query(owner.clone(), RecordType::A));
    let a = |owner: &Name, last| {
        Record::from_rdata(owner.clone(), 30, RData::A(A(Ipv4Addr::new(10, 96, 0, last))))
    };
    let target = name("backend.default.svc.cluster.local.");
    match n % 4 {
        0 => message.insert_answers(vec![a(&owner, 1)]),
        1 => {
            let alias = Record::from_rdata(owner, 30, RData::CNAME(CNAME(target.clone())));
            message.insert_answers(vec![alias, a(&target, 1), a(&target, 2), a(&target, 3)]);
        }
        kind => {
            let soa = SOA::new(name("ns.dns.cluster.local."), name("host.cluster.local."), 1, 2, 3, 4, 30);
            message.insert_authorities(vec![Record::from_rdata(name("cluster.local."), 30, RData::SOA(soa))]);
            if kind == 3 {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
        }
    }
    message
}

fn filled(now: Instant) -> (Cache, Vec<KeyBuf>) {
    let cache = Cache::new(BUDGET);
    let learn = |n| {
        let message = response(n);
        let bytes = message.to_vec().expect("it fits");
        let (mut owner, question) = (Vec::new(), &message.queries[0]);
        for label in question.name().iter() {
            owner.push(label.len() as u8);
            owner.extend_from_slice(label);
        }
        owner.push(0);
        let query = Query { id: 0, flags: 0, name: &owner, qtype: 1, qclass: 1, edns: None };
        let mut key = KeyBuf::new(&query);
        key.bind(2);
        let answer = Answer::read(bytes, &key.to_key()).expect("a well-formed response");
        cache.store(key.to_key(), Arc::new(Entry::new(answer, &BOUNDS, now)));
        key
    };
    let keys = (0..ENTRIES).map(learn).collect();
    (cache, keys)
}

fn main() {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let (cache, keys) = filled(now);
    let mut file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    let write = |file: &mut File| {
        file.seek(SeekFrom::Start(0)).expect("a file");
        let written = snapshot::write(&cache, rule, now, wall, BUDGET, file).expect("room for it");
        assert_eq!(written.entries as usize, ENTRIES);
        written
    };
    println!("{} bytes for each of {ENTRIES} entries", write(&mut file).bytes / ENTRIES as u64);
    time("write", || (), |()| write(&mut file));
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("a file");
    file.read_to_end(&mut bytes).expect("a file");
    time(
        "read",
        || Cache::new(BUDGET),
        |cache| {
            let read = snapshot::read(&bytes, &cache, rule, now, wall).expect("what was written");
            assert_eq!(read.entries as usize, ENTRIES);
            cache
        },
    );
    watch("hits alone", &cache, &keys, now, || thread::sleep(Duration::from_millis(1)));
    watch("hits while it is written over and over", &cache, &keys, now, || {
        black_box(write(&mut file));
    });
}

/// Prints how long something takes that is done once for each of what is prepared. To drop what comes of it takes
/// no part.
fn time<T, R>(what: &str, prepare: impl Fn() -> T, mut run: impl FnMut(T) -> R) {
    let mut took: Vec<(f64, f64)> = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let prepared = prepare();
        let (started, cpu) = (Instant::now(), on_cpu());
        let result = run(prepared);
        took.push((started.elapsed().as_secs_f64() * 1e3, (on_cpu() - cpu) as f64 / 1e6));
        drop(result);
    }
    let sorted = |of: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = took.iter().map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        format!("{:.0} ms ({:.0}-{:.0})", all[RUNS / 2], all[0], all[RUNS - 1])
    };
    println!("{what}: {} by the wall, {} of CPU", sorted(|t| t.0), sorted(|t| t.1));
}

/// Prints how long look-ups of one thread take while another one is busy. When the scheduler gives its core
/// to somebody else, that is no wait for us; when it sleeps, it does so at a lock.
fn watch(what: &str, cache: &Cache, keys: &[KeyBuf], now: Instant, mut busy: impl FnMut()) {
    let stop = AtomicBool::new(false);
    let hits = || {
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
        (took, longest, switches().0 - before.0)
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
    let status = fs::read_to_string("/proc/thread-self/status").expect("Linux");
    let count = |what: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        line.and_then(|count| count.trim().parse().ok()).expect("a count")
    };
    (count("voluntary_ctxt_switches:"), count("nonvoluntary_ctxt_switches:"))
}

/// Nanoseconds that this thread has been on a core.
fn on_cpu() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split_ascii_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number")
}
