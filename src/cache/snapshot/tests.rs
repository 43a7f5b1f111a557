use std::io::Cursor;

use super::*;
use crate::cache::entry::{Style, Ttls};
use crate::cache::lifetime::MAX_TTL;
use crate::wire::edns::ExtendedError;
use crate::wire::key::KeyBuf;
use crate::wire::query::{OurEdns, Query};
use crate::wire::{name, put_u16};

const BOUNDS: Bounds = Bounds { min_ttl: 0, max_ttl: MAX_TTL, negative_max_ttl: 30, negative_no_soa_ttl: 0 };
const RULE: Rule = Rule { bounds: BOUNDS, stale: HOUR };
const HOUR: Duration = Duration::from_secs(3600);
const BUDGET: u64 = 1 << 20;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Some time in 2026.
fn wall() -> SystemTime {
    UNIX_EPOCH + seconds(1_790_000_000)
}

fn query(name: &[u8]) -> Query<'_> {
    Query { id: 7, flags: flag::RD, name, qtype: 1, qclass: 1, edns: None }
}

fn key(label: &str) -> Key {
    let name = [&[label.len() as u8], label.as_bytes(), b"\x04test\x00"].concat();
    let mut key = KeyBuf::new(&query(&name));
    key.bind(1);
    key.to_key()
}

/// Two addresses for a key.
fn message(key: &Key, ttl: u8) -> Vec<u8> {
    let mut message = vec![0, 0, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0];
    message.extend_from_slice(key.name());
    message.extend([0, 1, 0, 1]);
    for last in [1, 2] {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4, 10, 0, 0, last]);
    }
    message
}

fn learn(cache: &Cache, label: &str, ttl: u8, stored: Instant) {
    let key = key(label);
    let answer = Answer::read(message(&key, ttl), &key).unwrap();
    cache.store(key, Arc::new(Entry::new(answer, &BOUNDS, stored)));
}

/// A cache of these names, each with its TTL, at `now`.
fn cache(names: &[(&str, u8)], now: Instant) -> Cache {
    let cache = Cache::new(BUDGET);
    for &(label, ttl) in names {
        learn(&cache, label, ttl, now);
    }
    cache
}

fn written(cache: &Cache, now: Instant, budget: u64) -> (Vec<u8>, Written) {
    let mut out = Cursor::new(Vec::new());
    let written = write(cache, |_| Some(RULE), now, wall(), budget, &mut out).unwrap();
    (out.into_inner(), written)
}

fn bytes(names: &[(&str, u8)], now: Instant) -> Vec<u8> {
    written(&cache(names, now), now, BUDGET).0
}

/// What reading puts into an empty cache, the clocks having gone on by this much since `bytes` were written.
fn restored(bytes: &[u8], now: Instant, since: Duration) -> (Cache, Restored) {
    let cache = Cache::new(BUDGET);
    let restored = read(bytes, &cache, |_| Some(RULE), now + since, wall() + since).unwrap();
    (cache, restored)
}

fn refused(bytes: &[u8]) -> Option<Damaged> {
    let cache = Cache::new(BUDGET);
    let result = read(bytes, &cache, |_| Some(RULE), Instant::now(), wall());
    assert!(result.is_ok() || cache.iter().next().is_none(), "nothing of what is refused is kept");
    result.err()
}

/// A whole file around these entries.
fn sealed(entries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [&[0; HEADER][..], &entries.concat()].concat();
    bytes[16..24].copy_from_slice(&1_790_000_000u64.to_be_bytes());
    bytes[28..32].copy_from_slice(&(entries.len() as u32).to_be_bytes());
    let length = (bytes.len() - HEADER) as u64;
    bytes[32..40].copy_from_slice(&length.to_be_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[HEADER..]);
    checksum.update(&bytes[COVERED..HEADER]);
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_be_bytes());
    bytes[12..16].copy_from_slice(&checksum.finalize().to_be_bytes());
    bytes
}

fn raw(binding: [u8; 2], life: u32, age: u64, message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u16).to_be_bytes();
    [&binding[..], &length, &life.to_be_bytes(), &age.to_be_bytes(), message].concat()
}

fn reply(entry: &Entry, key: &Key, now: Instant) -> Vec<u8> {
    let style = Style { edns: OurEdns { size: 1232, keepalive: None }, rotate: true, error: None };
    let mut out = Vec::new();
    entry.write(&query(key.name()), Ttls::Aged(entry.age(now).as_secs() as u32), &style, &mut out);
    out
}

#[test]
fn an_empty_cache_is_a_header() {
    let now = Instant::now();
    let (bytes, written) = written(&Cache::new(BUDGET), now, 0);
    assert_eq!(written, Written { entries: 0, bytes: HEADER as u64, left_out: 0 });
    assert_eq!(bytes.len(), HEADER);
    let (cache, restored) = restored(&bytes, now, seconds(3));
    assert_eq!(restored.entries, 0);
    assert_eq!(restored.since, seconds(3));
    assert!(cache.iter().next().is_none());
}

#[test]
fn what_is_restored_answers_as_the_original_would_by_now() {
    let start = Instant::now();
    let original = cache(&[("a", 30), ("b", 60)], start);
    let at = start + Duration::from_millis(4_700);
    let (bytes, written) = written(&original, at, BUDGET);
    let each = ENTRY + message(&key("a"), 0).len();
    assert_eq!(written, Written { entries: 2, bytes: (HEADER + 2 * each) as u64, left_out: 0 });
    assert_eq!(bytes.len() as u64, written.bytes);
    let since = Duration::from_millis(1_400);
    let (copy, restored) = restored(&bytes, at, since);
    assert_eq!(restored, Restored { entries: 2, expired: 0, left_out: 0, malformed: 0, since });
    assert_eq!((copy.totals().positive, copy.totals().bytes), (2, original.totals().bytes));
    for (key, entry) in original.iter() {
        let twin = copy.get(&key).unwrap();
        assert_eq!(reply(&twin, &key, at + since), reply(&entry, &key, at + since));
        assert_eq!(twin.age(at + since), Duration::from_millis(6_100));
        assert_eq!(twin.remaining(at + since), entry.remaining(at + since));
    }
}

#[test]
fn every_flipped_bit_and_every_missing_end_is_refused() {
    let bytes = bytes(&[("a", 30), ("b", 60)], Instant::now());
    assert_eq!(refused(&bytes), None);
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(refused(&damaged).is_some(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(refused(&bytes[..length]).is_some(), "{length} bytes");
    }
}

#[test]
fn what_is_refused_says_why() {
    let good = bytes(&[("a", 30)], Instant::now());
    let with = |at: usize, part: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + part.len()].copy_from_slice(part);
        bytes
    };
    let entry = raw([1, 0], 30, 0, &message(&key("a"), 30));
    let mut miscounted = sealed(&[&entry, b""]);
    assert_eq!(refused(&miscounted), Some(Damaged::Entries), "one entry too few");
    miscounted.truncate(HEADER);
    for (bytes, why) in [
        (Vec::new(), Damaged::Unfinished),
        (with(0, &[0; HEADER]), Damaged::Unfinished),
        (b"GIF89a".to_vec(), Damaged::Foreign),
        (with(0, b"NODENS"), Damaged::Foreign),
        (good[..HEADER - 1].to_vec(), Damaged::Short),
        (good[..good.len() - 1].to_vec(), Damaged::Short),
        (with(8, &2u32.to_be_bytes()), Damaged::Version(2)),
        (with(32, &u64::MAX.to_be_bytes()), Damaged::Short),
        (with(28, &[9]), Damaged::Checksum),
        (miscounted, Damaged::Short),
        (sealed(&[&entry[..entry.len() - 1]]), Damaged::Entries),
        (sealed(&[&entry, &[0; ENTRY - 1]]), Damaged::Entries),
        (sealed(&[&[entry.clone(), entry.clone()].concat()]), Damaged::Entries),
    ] {
        assert_eq!(refused(&bytes), Some(why));
    }
    let version = Damaged::Version(2).to_string();
    assert_eq!(version, "a snapshot of format 2, while this version reads format 1");
}

#[test]
fn time_that_passed_between_counts_by_the_wall_clock() {
    let now = Instant::now();
    let bytes = bytes(&[("short", 10), ("long", 200)], now);
    let later = |passed: u64| {
        let cache = Cache::new(BUDGET);
        // The monotonic clock may have stood still, or be another one.
        let restored = read(&bytes, &cache, |_| Some(RULE), now, wall() + seconds(passed)).unwrap();
        let left =
            |label| cache.get(&key(label)).map(|entry| entry.remaining(now).map(|left| left.as_secs()));
        ((restored.entries, restored.expired), left("short"), left("long"))
    };
    assert_eq!(later(0), ((2, 0), Some(Some(10)), Some(Some(200))));
    assert_eq!(later(9), ((2, 0), Some(Some(1)), Some(Some(191))));
    assert_eq!(later(10), ((2, 0), Some(None), Some(Some(190))), "one is stale");
    assert_eq!(later(10 + 3599), ((2, 0), Some(None), Some(None)));
    assert_eq!(later(10 + 3600), ((1, 1), None, Some(None)), "one is past its stale window");
    assert_eq!(later(1000 * 365 * 86_400), ((0, 2), None, None));
}

#[test]
fn a_clock_that_went_backwards_counts_as_no_time() {
    let now = Instant::now();
    let bytes = bytes(&[("a", 30)], now);
    for wall in [wall() - seconds(86_400), UNIX_EPOCH, UNIX_EPOCH - seconds(1)] {
        let cache = Cache::new(BUDGET);
        let restored = read(&bytes, &cache, |_| Some(RULE), now, wall).unwrap();
        assert_eq!((restored.entries, restored.since), (1, Duration::ZERO));
        assert_eq!(cache.get(&key("a")).unwrap().remaining(now), Some(seconds(30)));
    }
}

#[test]
fn an_entry_may_be_older_than_the_machine_is_up() {
    let now = Instant::now();
    let years = seconds(30 * 365 * 86_400);
    let entry = raw([1, 0], 30, years.as_nanos() as u64, &message(&key("a"), 30));
    let endless = raw([1, 0], 30, u64::MAX, &message(&key("b"), 30));
    let cache = Cache::new(BUDGET);
    let rule = Rule { stale: years * 2, ..RULE };
    let restored = read(&sealed(&[&entry, &endless]), &cache, |_| Some(rule), now, wall()).unwrap();
    assert_eq!((restored.entries, restored.expired), (1, 1));
    assert_eq!(cache.get(&key("a")).unwrap().age(now), years);
}

#[test]
fn a_stale_answer_from_the_restored_cache_says_that_it_is_stale() {
    let now = Instant::now();
    let (cache, _) = restored(&bytes(&[("a", 30)], now), now, seconds(40));
    let entry = cache.get(&key("a")).unwrap();
    assert_eq!(entry.expired_for(now + seconds(40)), Some(seconds(10)));
    let edns = OurEdns { size: 1232, keepalive: None };
    let style = Style { edns, rotate: false, error: Some(ExtendedError::StaleAnswer) };
    let mut out = Vec::new();
    entry.write(&query(key("a").name()), Ttls::Fixed(5), &style, &mut out);
    assert_eq!(out.len(), message(&key("a"), 0).len());
    assert!(out.ends_with(&[0, 0, 0, 5, 0, 4, 10, 0, 0, 2]), "{out:?}");
}

#[test]
fn fresh_entries_come_first_into_the_budget() {
    let now = Instant::now();
    let cache = cache(&[("old", 1), ("new", 60), ("gone", 1), ("mid", 60)], now);
    learn(&cache, "gone", 1, now - HOUR - seconds(1));
    let each = |label| (ENTRY + message(&key(label), 0).len()) as u64;
    let at = now + seconds(2);
    let all = HEADER as u64 + 3 * each("old");
    for (budget, entries, left_out) in
        [(0, 0, 3), (all - 2 * each("new"), 1, 2), (all - each("new"), 2, 1), (all - 1, 2, 1), (all, 3, 0)]
    {
        let (bytes, written) = written(&cache, at, budget);
        assert_eq!((written.entries, written.left_out), (entries, left_out), "{budget}");
        assert!(written.bytes <= budget.max(HEADER as u64));
        let (copy, restored) = restored(&bytes, at, Duration::ZERO);
        assert_eq!(restored.entries, entries);
        assert!(entries != 2 || copy.get(&key("old")).is_none(), "the stale one is left out first");
        assert!(copy.get(&key("gone")).is_none(), "what nobody may be served is never written");
    }
}

#[test]
fn a_younger_entry_is_not_replaced_and_an_older_one_is() {
    let now = Instant::now();
    let bytes = bytes(&[("a", 30), ("b", 30), ("c", 30)], now);
    let at = now + seconds(5);
    let there = Cache::new(BUDGET);
    learn(&there, "a", 77, at);
    learn(&there, "b", 77, now - seconds(1));
    let restored = read(&bytes, &there, |_| Some(RULE), at, wall() + seconds(5)).unwrap();
    assert_eq!((restored.entries, restored.left_out), (2, 1));
    let lives = ["a", "b", "c"].map(|label| there.get(&key(label)).unwrap().life());
    assert_eq!(lives, [77, 30, 30]);
    assert_eq!(there.totals().positive, 3);
}

#[test]
fn names_that_belong_elsewhere_by_now_are_left_out() {
    let now = Instant::now();
    let bytes = bytes(&[("a", 30), ("b", 30)], now);
    let cache = Cache::new(BUDGET);
    let only_b = |other: &Key| (*other == key("b")).then_some(RULE);
    let restored = read(&bytes, &cache, only_b, now, wall()).unwrap();
    assert_eq!((restored.entries, restored.left_out), (1, 1));
    assert!(cache.get(&key("a")).is_none() && cache.get(&key("b")).is_some());
}

#[test]
fn rules_of_today_may_shorten_a_life_and_never_lengthen_it() {
    let now = Instant::now();
    let bytes = bytes(&[("a", 30)], now);
    let life = |bounds: Bounds, passed: u64| {
        let cache = Cache::new(BUDGET);
        let rule = |_: &Key| Some(Rule { bounds, stale: Duration::ZERO });
        read(&bytes, &cache, rule, now, wall() + seconds(passed)).unwrap();
        cache.get(&key("a")).map(|entry| entry.life())
    };
    assert_eq!(life(BOUNDS, 20), Some(30));
    assert_eq!(life(Bounds { max_ttl: 25, ..BOUNDS }, 20), Some(25));
    assert_eq!(life(Bounds { max_ttl: 20, ..BOUNDS }, 20), None);
    assert_eq!(life(Bounds { max_ttl: 0, ..BOUNDS }, 0), None);
    assert_eq!(life(Bounds { min_ttl: 300, ..BOUNDS }, 20), Some(30));
    assert_eq!(life(Bounds { min_ttl: 300, ..BOUNDS }, 40), None, "it had expired");
}

#[test]
fn a_whole_file_gives_nothing_that_no_upstream_could() {
    let now = Instant::now();
    let good = message(&key("a"), 30);
    let with = |at: usize, value: u16| {
        let mut message = good.clone();
        put_u16(&mut message, at, value);
        message
    };
    let behind = good.len() - 2;
    for (what, entry) in [
        ("a query", raw([1, 0], 30, 0, &with(2, 0x0100))),
        ("truncated", raw([1, 0], 30, 0, &with(2, 0x8380))),
        ("a failure", raw([1, 0], 30, 0, &with(2, 0x8182))),
        ("an update", raw([1, 0], 30, 0, &with(2, 0xa980))),
        ("no question", raw([1, 0], 30, 0, &with(4, 0))),
        ("more records than there are", raw([1, 0], 30, 0, &with(6, 3))),
        ("fewer", raw([1, 0], 30, 0, &with(6, 1))),
        ("RDATA over the end", raw([1, 0], 30, 0, &with(behind - 4, 9))),
        ("a pointer forwards", raw([1, 0], 30, 0, &with(HEADER_AND_QUESTION, 0xc0ff))),
        ("a name without its end", raw([1, 0], 30, 0, &[&good[..12], &[63; 20]].concat())),
        ("a header", raw([1, 0], 30, 0, &good[..12])),
        ("nothing", raw([1, 0], 30, 0, b"")),
        ("a key with other bits", raw([1, 4], 30, 0, &good)),
    ] {
        let (cache, restored) = restored(&sealed(&[&entry, &raw([1, 0], 30, 0, &good)]), now, seconds(1));
        assert_eq!((restored.malformed, restored.entries), (1, 1), "{what}");
        assert_eq!(cache.iter().count(), 1, "{what}");
    }
    let (cache, _) = restored(&sealed(&[&raw([1, 0], u32::MAX, 0, &good)]), now, Duration::ZERO);
    assert_eq!(cache.get(&key("a")).unwrap().life(), 30, "a life follows from the TTLs");
    let (cache, restored) = restored(&sealed(&[&raw([1, 0], 0, 0, &good)]), now, Duration::ZERO);
    assert_eq!((restored.expired, cache.iter().count()), (1, 0), "without a life");
}

/// Where the first record of `a.test A` begins.
const HEADER_AND_QUESTION: usize = 12 + 8 + 4;

#[test]
fn what_comes_first_stays_when_the_cache_is_smaller() {
    let now = Instant::now();
    let large = Cache::new(BUDGET);
    for n in 0..500 {
        learn(&large, &format!("n{n}"), 60, now);
    }
    let (bytes, _) = written(&large, now, BUDGET);
    let small = Cache::new(64 * 1024);
    let restored = read(&bytes, &small, |_| Some(RULE), now, wall()).unwrap();
    assert_eq!(restored.entries + restored.left_out, 500);
    assert!((100..400).contains(&restored.entries), "{restored:?}");
    assert!(small.totals().bytes <= 64 * 1024);
    assert_eq!(small.totals().evictions, 1, "reading stops at the first one that has to make room");
}

#[test]
fn a_file_is_written_anew_where_an_older_one_was() {
    let now = Instant::now();
    let mut out = Cursor::new(bytes(&[("a", 30), ("b", 30), ("c", 30)], now));
    let cache = cache(&[("d", 30)], now);
    let rule = |_: &Key| Some(RULE);
    write(&cache, rule, now, wall(), BUDGET, &mut out).unwrap();
    let second = out.position() as usize;
    write(&cache, rule, now, wall(), BUDGET, &mut out).unwrap();
    for from in [0, second] {
        let (copy, restored) = restored(&out.get_ref()[from..], now, Duration::ZERO);
        assert_eq!(restored.entries, 1);
        assert!(copy.get(&key("d")).is_some());
    }
}

/// Fails once it has taken so many bytes.
struct Full(Cursor<Vec<u8>>, usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1 = self.1.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Full {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn a_file_that_is_not_finished_is_never_taken_for_whole() {
    let now = Instant::now();
    let before = bytes(&[("a", 30), ("b", 30)], now);
    let cache = cache(&[("c", 30)], now);
    let whole = HEADER + HEADER + ENTRY + message(&key("c"), 30).len();
    for room in [HEADER, whole - 1] {
        let mut out = Full(Cursor::new(before.clone()), room);
        let error = write(&cache, |_| Some(RULE), now, wall(), BUDGET, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(refused(out.0.get_ref()), Some(Damaged::Unfinished));
    }
}

#[test]
fn keys_keep_their_bits_and_long_names() {
    let now = Instant::now();
    let longest = [&b"\x3f"[..], &[b'x'; 63]].concat().repeat(3);
    let longest = [&longest[..], b"\x3d", &[b'y'; 61], b"\x00"].concat();
    assert_eq!(longest.len(), name::MAX_NAME);
    let original = Cache::new(BUDGET);
    for owner in [&b"\x00"[..], b"\x01M\x00", &longest] {
        for flags in [0, flag::CD] {
            let mut key = KeyBuf::new(&Query { flags, ..query(owner) });
            key.bind(owner.len() as u8 % 3);
            let key = key.to_key();
            let mut message = message(&key, 30);
            message[12..12 + owner.len()].copy_from_slice(owner); // in the letters of the question
            let answer = Answer::read(message, &key).unwrap();
            original.store(key, Arc::new(Entry::new(answer, &BOUNDS, now)));
        }
    }
    let (copy, restored) = restored(&written(&original, now, BUDGET).0, now, Duration::ZERO);
    assert_eq!(restored.entries, 6);
    for (key, entry) in original.iter() {
        assert_eq!(copy.get(&key).map(|twin| twin.message().to_vec()), Some(entry.message().to_vec()));
    }
}
