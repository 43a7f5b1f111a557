//! The cache as bytes, for the process that comes after this one.
//!
//! A header, then the entries one behind the other; numbers are in network order. An entry is the part of
//! its key that its message does not say, its life and age, and its message. All else follows from the
//! message as it did when that came from upstream: it is read by the same code, so that bytes which are
//! damaged, or made to do harm, give what an upstream could have had us store, or nothing.
//!
//! As at a reload, an entry stays as long as its name still belongs to the suffix that it was bound to
//! (`Key`), whoever that zone asks by now. Failures are not kept.

use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Cache;
use super::entry::Entry;
use super::lifetime::Bounds;
use crate::wire::key::Key;
use crate::wire::response::{Answer, Kind};
use crate::wire::{flag, u16_at};

/// What the bytes begin with. As long as they are being written there are zeros.
const MAGIC: [u8; 8] = *b"nodens\x1a\n";
/// The form described here.
const VERSION: u32 = 1;
/// Magic (8), version (4), checksum (4) of all that follows, entries first, then the rest of the header:
/// time of writing (8 + 4, seconds and nanoseconds since 1970), number of entries (4), their bytes (8).
pub const HEADER: usize = 40;
/// Where what the checksum covers begins.
const COVERED: usize = 16;
/// Binding of the key (2), length of the message (2), life in seconds (4), age in nanoseconds (8).
pub const ENTRY: usize = 16;
/// Bytes that are collected before they are written.
const CHUNK: usize = 64 * 1024;

/// What the zone of a key says of its entry.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Lifetime rules.
    pub bounds: Bounds,
    /// How long an expired entry may still be served; zero is not at all.
    pub stale: Duration,
}

impl Rule {
    /// Whether an entry that has expired this long ago is of use to anybody.
    fn keeps(&self, expired_for: Option<Duration>) -> bool {
        expired_for.is_none_or(|since| since < self.stale)
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Entries.
    pub entries: u32,
    /// Bytes, the header included.
    pub bytes: u64,
    /// Entries for which there was no room.
    pub left_out: u32,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Entries that are in the cache now, stale ones included.
    pub entries: u32,
    /// Entries too old to be served even stale, or without a life by the rules of today.
    pub expired: u32,
    /// Entries whose name belongs to another zone or none, that the cache had no room for, or of which it
    /// has a younger one.
    pub left_out: u32,
    /// Entries that are no answers.
    pub malformed: u32,
    /// Time since they were written.
    pub since: Duration,
}

/// Why bytes are refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Damaged {
    #[error("empty, or its writer did not finish")]
    Unfinished,
    #[error("not a snapshot of the cache")]
    Foreign,
    #[error("a snapshot of format {0}, while this version reads format {VERSION}")]
    Version(u32),
    #[error("ends before its last entry")]
    Short,
    #[error("its checksum does not fit")]
    Checksum,
    #[error("its entries are not where they should be")]
    Entries,
}

/// Writes the entries that are of use by the zones' rules, at the place where `out` is: fresh ones first, then
/// those that may be served stale, as many as fit into `budget` bytes. How often an entry is used is not known
/// here; which of the fresh ones are left out is a matter of chance. The header comes last, so that what
/// is half written is never taken for whole.
///
/// A look-up or an insertion never waits for longer than it takes to copy one key.
///
/// # Errors
/// Those of `out`.
pub fn write(
    cache: &Cache,
    rule: impl Fn(&Key) -> Option<Rule>,
    now: Instant,
    wall: SystemTime,
    budget: u64,
    out: &mut (impl Write + Seek),
) -> io::Result<Written> {
    let start = out.stream_position()?;
    out.write_all(&[0; HEADER])?;
    let mut writer = Writer {
        out,
        chunk: Vec::with_capacity(2 * CHUNK),
        checksum: crc32fast::Hasher::new(),
        budget,
        written: Written { entries: 0, bytes: HEADER as u64, left_out: 0 },
    };
    for fresh in [true, false] {
        for (key, entry) in cache.iter() {
            let expired_for = entry.expired_for(now);
            if expired_for.is_none() == fresh && rule(&key).is_some_and(|rule| rule.keeps(expired_for)) {
                writer.entry(&key, &entry, now)?;
            }
        }
    }
    writer.finish(start, wall)
}

struct Writer<'a, W> {
    out: &'a mut W,
    chunk: Vec<u8>,
    checksum: crc32fast::Hasher,
    budget: u64,
    written: Written,
}

impl<W: Write + Seek> Writer<'_, W> {
    fn entry(&mut self, key: &Key, entry: &Entry, now: Instant) -> io::Result<()> {
        let message = entry.message();
        let bytes = self.written.bytes + (ENTRY + message.len()) as u64;
        let Ok(length) = u16::try_from(message.len()) else { return Ok(()) };
        if bytes > self.budget || self.written.entries == u32::MAX {
            self.written.left_out += 1;
            return Ok(());
        }
        let age = u64::try_from(entry.age(now).as_nanos()).unwrap_or(u64::MAX);
        self.chunk.extend(key.binding());
        self.chunk.extend(length.to_be_bytes());
        self.chunk.extend(entry.life().to_be_bytes());
        self.chunk.extend(age.to_be_bytes());
        self.chunk.extend_from_slice(message);
        self.written.bytes = bytes;
        self.written.entries += 1;
        if self.chunk.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.checksum.update(&self.chunk);
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }

    fn finish(mut self, start: u64, wall: SystemTime) -> io::Result<Written> {
        self.flush()?;
        let Written { entries, bytes, .. } = self.written;
        let wall = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut rest = [0; HEADER - COVERED];
        rest[..8].copy_from_slice(&wall.as_secs().to_be_bytes());
        rest[8..12].copy_from_slice(&wall.subsec_nanos().to_be_bytes());
        rest[12..16].copy_from_slice(&entries.to_be_bytes());
        rest[16..].copy_from_slice(&(bytes - HEADER as u64).to_be_bytes());
        self.checksum.update(&rest);
        let checksum = self.checksum.finalize().to_be_bytes();
        let header = [&MAGIC[..], &VERSION.to_be_bytes(), &checksum, &rest].concat();
        self.out.seek(SeekFrom::Start(start))?;
        self.out.write_all(&header)?;
        self.out.seek(SeekFrom::Start(start + bytes))?;
        self.out.flush()?;
        Ok(self.written)
    }
}

/// Puts the entries into the cache, older by the time since they were written, and never in the place of a
/// younger one. What stands behind the last entry is not looked at. A clock that went backwards
/// since then counts as if no time had passed.
///
/// An entry is held against its zone's rules of today: it may live shorter for them, and never longer.
///
/// # Errors
/// Bytes that are not all what [`write()`] has written. The cache is as it was.
pub fn read(
    bytes: &[u8],
    cache: &Cache,
    rule: impl Fn(&Key) -> Option<Rule>,
    now: Instant,
    wall: SystemTime,
) -> Result<Restored, Damaged> {
    let (written_at, entries) = open(bytes)?;
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(written_at);
    let evictions = cache.evictions();
    let mut restored = Restored { entries: 0, expired: 0, left_out: 0, malformed: 0, since };
    for raw in entries {
        let age = raw.age.saturating_add(since);
        let Some((key, answer)) = raw.answer() else {
            restored.malformed += 1;
            continue;
        };
        let Some(rule) = rule(&key).filter(|_| cache.evictions() == evictions) else {
            restored.left_out += 1;
            continue;
        };
        let entry = Entry::restore(answer, &rule.bounds, raw.life, age, now);
        match entry.filter(|entry| entry.life() > 0 && rule.keeps(entry.expired_for(now))) {
            None => restored.expired += 1,
            Some(_) if cache.get(&key).is_some_and(|there| there.age(now) <= age) => restored.left_out += 1,
            Some(entry) => {
                cache.store(key, Arc::new(entry));
                restored.entries += 1;
            }
        }
    }
    Ok(restored)
}

/// When the bytes were written, and their entries.
fn open(bytes: &[u8]) -> Result<(Duration, Entries<'_>), Damaged> {
    let magic = &bytes[..MAGIC.len().min(bytes.len())];
    if magic.iter().all(|&octet| octet == 0) {
        return Err(Damaged::Unfinished);
    }
    if !MAGIC.starts_with(magic) {
        return Err(Damaged::Foreign);
    }
    let (header, body) = bytes.split_first_chunk::<HEADER>().ok_or(Damaged::Short)?;
    let u32_at = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
    match u32_at(8) {
        VERSION => {}
        other => return Err(Damaged::Version(other)),
    }
    let length = usize::try_from(u64_at(32)).map_err(|_| Damaged::Short)?;
    let entries = body.get(..length).ok_or(Damaged::Short)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(entries);
    checksum.update(&header[COVERED..]);
    if checksum.finalize() != u32_at(12) {
        return Err(Damaged::Checksum);
    }
    let written_at = Duration::from_secs(u64_at(16)).saturating_add(Duration::from_nanos(u32_at(24).into()));
    let mut walk = Entries(entries);
    let count = walk.by_ref().count();
    if !walk.0.is_empty() || u32::try_from(count) != Ok(u32_at(28)) {
        return Err(Damaged::Entries);
    }
    Ok((written_at, Entries(entries)))
}

/// The entries in these bytes, up to the first that does not fit.
struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = Raw<'a>;

    fn next(&mut self) -> Option<Raw<'a>> {
        let (&[labels, bits, l1, l0, f3, f2, f1, f0, age @ ..], rest) =
            self.0.split_first_chunk::<ENTRY>()?;
        let (message, rest) = rest.split_at_checked(u16::from_be_bytes([l1, l0]).into())?;
        self.0 = rest;
        let age = Duration::from_nanos(u64::from_be_bytes(age));
        Some(Raw { binding: [labels, bits], life: u32::from_be_bytes([f3, f2, f1, f0]), age, message })
    }
}

/// An entry of which nothing has been checked but where it ends.
struct Raw<'a> {
    binding: [u8; 2],
    life: u32,
    age: Duration,
    message: &'a [u8],
}

impl Raw<'_> {
    /// Its key and its message, if that could have been stored: a whole response to the key, and no failure.
    fn answer(&self) -> Option<(Key, Answer)> {
        let key = Key::of_answer(self.binding, self.message).ok()?;
        if !key.is_answered_by(self.message) || u16_at(self.message, 2).ok()? & flag::TC != 0 {
            return None;
        }
        let answer = Answer::read(self.message.to_vec(), &key).ok()?;
        (!matches!(answer.kind, Kind::Failure(_))).then_some((key, answer))
    }
}

#[cfg(test)]
mod tests;
