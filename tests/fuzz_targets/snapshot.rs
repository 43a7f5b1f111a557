//! Any bytes as the cache of the process before: what of them gets into ours, and what clients get of that.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nodens::cache::Cache;
use nodens::cache::lifetime::{Bounds, MAX_TTL};
use nodens::cache::snapshot::{self, Damaged, ENTRY, HEADER, Restored, Rule};
use nodens::wire::key::Key;
use nodens::wire::response::Kind;

use super::response;

/// More than any input takes.
const BUDGET: u64 = 1 << 26;
/// When every input is read, seconds since 1970.
const READ_AT: u64 = 1_800_000_000;

/// Names of a zone as it is by default, of one that has every bound set and no stale answers, and of none.
fn rule(key: &Key) -> Option<Rule> {
    let plain = Bounds { min_ttl: 0, max_ttl: MAX_TTL, negative_max_ttl: 30, negative_no_soa_ttl: 0 };
    let tight = Bounds { min_ttl: 5, max_ttl: 60, negative_max_ttl: 10, negative_no_soa_ttl: 5 };
    match key.suffix_labels() {
        0..3 => Some(Rule { bounds: plain, stale: Duration::from_secs(86_400) }),
        3..5 => Some(Rule { bounds: tight, stale: Duration::ZERO }),
        _ => None,
    }
}

fn read(bytes: &[u8], now: Instant, wall: SystemTime) -> (Cache, Result<Restored, Damaged>) {
    let cache = Cache::new(BUDGET);
    let read = snapshot::read(bytes, &cache, rule, now, wall);
    (cache, read)
}

/// The input with a header that lets its entries be read: all but the time of writing made anew.
/// Nothing if the entries do not end where the input does.
fn sealed(input: &[u8]) -> Option<(Vec<u8>, u32)> {
    let (header, entries) = input.split_at_checked(HEADER)?;
    let (mut count, mut rest) = (0u32, entries);
    while !rest.is_empty() {
        let (entry, behind) = rest.split_at_checked(ENTRY)?;
        rest = behind.split_at_checked(u16::from_be_bytes([entry[2], entry[3]]).into())?.1;
        count += 1;
    }
    let length = (entries.len() as u64).to_be_bytes();
    let covered = [&header[16..28], &count.to_be_bytes(), &length].concat();
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(entries);
    checksum.update(&covered);
    let checksum = checksum.finalize().to_be_bytes();
    Some(([b"nodens\x1a\n", &[0, 0, 0, 1][..], &checksum, &covered, entries].concat(), count))
}

/// Every entry: what it is, its life, how old it is, and its message.
fn content(cache: &Cache, now: Instant) -> BTreeMap<Vec<u8>, (Kind, u32, Duration, Vec<u8>)> {
    let entry = |(key, entry): (Key, std::sync::Arc<nodens::cache::entry::Entry>)| {
        let message = entry.message().to_vec();
        let key =
            [&key.binding(), &key.qtype().to_be_bytes(), &key.qclass().to_be_bytes(), key.name()].concat();
        (key, (entry.kind(), entry.life(), entry.age(now), message))
    };
    cache.iter().map(entry).collect()
}

/// Reads `input` as it is, and again with a header that fits its entries. What that gave.
pub(crate) fn check(input: &[u8]) -> Option<Restored> {
    let (now, wall) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(READ_AT));
    let (cache, result) = read(input, now, wall);
    assert!(result.is_ok() || cache.iter().next().is_none(), "what is refused leaves nothing");
    let (bytes, count) = sealed(input)?;
    let (cache, restored) = read(&bytes, now, wall);
    let restored = restored.expect("a header that fits");
    let Restored { entries, expired, left_out, malformed, .. } = restored;
    assert_eq!(entries + expired + left_out + malformed, count, "each entry is counted once");
    let found = content(&cache, now);
    assert!(found.len() <= entries as usize);
    assert_eq!(found.is_empty(), entries == 0);
    for (key, entry) in cache.iter() {
        let rule = rule(&key).expect("an entry of a zone");
        assert!(key.is_answered_by(entry.message()));
        assert!((1..=rule.bounds.max_ttl).contains(&entry.life()), "a life of {}", entry.life());
        assert!(entry.expired_for(now).is_none_or(|since| since < rule.stale), "too old");
        assert!(entry.age(now) >= restored.since, "older by the time that passed");
        assert_eq!(response::check(entry.message()), Some(entry.kind()), "an answer like any other");
    }
    check_again(&cache, &found, now, wall);
    Some(restored)
}

/// Writes what was read, and reads it again: it stays what it is.
fn check_again(
    cache: &Cache,
    found: &BTreeMap<Vec<u8>, (Kind, u32, Duration, Vec<u8>)>,
    now: Instant,
    wall: SystemTime,
) {
    let mut out = Cursor::new(Vec::new());
    let written = snapshot::write(cache, rule, now, wall, BUDGET, &mut out).expect("room for it");
    assert_eq!((written.entries as usize, written.left_out), (found.len(), 0));
    assert_eq!(written.bytes, out.get_ref().len() as u64);
    let (again, restored) = read(out.get_ref(), now, wall);
    assert_eq!(restored.expect("what was just written").entries, written.entries);
    assert!(content(&again, now) == *found, "written and read again");
}
