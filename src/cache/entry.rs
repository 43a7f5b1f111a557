//! One cached answer: the message as it came, and what is patched into each copy of it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::lifetime::Bounds;
use crate::wire::edns::{ExtendedError, Opt};
use crate::wire::query::{OurEdns, Query};
use crate::wire::response::{Answer, Kind, Rotation};
use crate::wire::{HEADER, Record, flag, put_u16, put_u32, u32_at};

/// How the TTLs of a copy are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttls {
    /// Aged by this many seconds, stopping at 0.
    Aged(u32),
    /// All the same: a stale answer (RFC 8767 §4).
    Fixed(u32),
}

/// What a copy for a client depends on, beside its query.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Our side of EDNS.
    pub edns: OurEdns,
    /// Whether address RRsets are rotated.
    pub rotate: bool,
    /// Explanation for a client that sent OPT.
    pub error: Option<ExtendedError>,
}

/// A cached answer.
#[derive(Debug)]
pub struct Entry {
    /// The message without OPT, its TTLs clamped; behind it the offsets of the TTLs, two bytes each.
    /// In one piece, since a hit costs little more than the cache lines that it touches.
    bytes: Box<[u8]>,
    /// Bytes of the message.
    length: usize,
    flags: u16,
    kind: Kind,
    rotation: Option<Rotation>,
    stored: Instant,
    life: u32,
    hits: AtomicU32,
    refreshing: AtomicBool,
}

impl Entry {
    /// An entry of an answer that came at `now`. A life of 0 means: deliver it, store it not.
    pub fn new(mut answer: Answer, bounds: &Bounds, now: Instant) -> Self {
        let life = bounds.apply(answer.kind, answer.soa, &mut answer.ttls);
        let mut bytes = answer.message;
        let length = bytes.len();
        put_u16(&mut bytes, 10, answer.additionals);
        bytes.reserve_exact(2 * answer.ttls.len());
        for &(at, ttl) in &answer.ttls {
            put_u32(&mut bytes, usize::from(at), ttl);
            bytes.extend(at.to_be_bytes());
        }
        Self {
            bytes: bytes.into_boxed_slice(),
            length,
            flags: answer.flags,
            kind: answer.kind,
            rotation: answer.rotation,
            stored: now,
            life,
            hits: AtomicU32::new(0),
            refreshing: AtomicBool::new(false),
        }
    }

    /// An entry that was stored `age` ago, with what its message was then, and that had at most a life of
    /// `life` seconds. `None` if the clock does not reach so far back.
    pub fn restore(answer: Answer, bounds: &Bounds, life: u32, age: Duration, now: Instant) -> Option<Self> {
        let entry = Self::new(answer, bounds, now.checked_sub(age)?);
        Some(Self { life: entry.life.min(life), ..entry })
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its RCODE.
    pub fn rcode(&self) -> u16 {
        self.flags & flag::RCODE
    }

    /// Its life when it was stored, seconds.
    pub fn life(&self) -> u32 {
        self.life
    }

    /// How long ago it was stored.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    /// What is left of its life; `None` once it has expired.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        Duration::from_secs(self.life.into()).checked_sub(self.age(now)).filter(|left| !left.is_zero())
    }

    /// How long ago it expired; `None` while it is fresh.
    pub fn expired_for(&self, now: Instant) -> Option<Duration> {
        self.age(now).checked_sub(Duration::from_secs(self.life.into()))
    }

    /// Bytes on the heap.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }

    /// The whole message as stored.
    pub fn message(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Offsets of its TTLs.
    fn ttls(&self) -> impl Iterator<Item = usize> {
        let table = self.bytes[self.length..].chunks_exact(2);
        table.map(|at| usize::from(u16::from_be_bytes([at[0], at[1]])))
    }

    /// Counts a hit, and says whether this one should refresh the entry: it was asked at least
    /// `hits` times and less than the share `at` of its life is left. True once in an entry's life.
    pub fn wants_refresh(&self, hits: u32, at: f64, now: Instant) -> bool {
        let so_far = self.hits.load(Ordering::Relaxed);
        if so_far < hits {
            // Counting stops at the threshold, so that a hot entry's line is not written for ever.
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        so_far + 1 >= hits
            && self.age(now).as_secs_f64() > f64::from(self.life) * (1.0 - at)
            && !self.refreshing.swap(true, Ordering::Relaxed)
    }

    /// The refresh that a hit should have started did not come about: a later hit may.
    pub fn refresh_later(&self) {
        self.refreshing.store(false, Ordering::Relaxed);
    }

    /// Writes the reply to `query`: a copy with the client's ID, flags and letters, its TTLs
    /// written anew, addresses rotated, our OPT if the client sent one, and cut to what it can take.
    pub fn write(&self, query: &Query<'_>, ttls: Ttls, style: &Style, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.message());
        put_u16(out, 0, query.id);
        put_u16(out, 2, query.reply_flags(self.flags));
        out[HEADER..HEADER + query.name.len()].copy_from_slice(query.name);
        for at in self.ttls() {
            let ttl = match ttls {
                Ttls::Aged(age) => u32_at(out, at).unwrap_or(0).saturating_sub(age),
                Ttls::Fixed(ttl) => ttl,
            };
            put_u32(out, at, ttl);
        }
        if let Some(run) = self.rotation.filter(|_| style.rotate) {
            self.rotate(run, query.id, out);
        }
        let opt = query.opt(&style.edns, style.error);
        let limit = query.reply_limit(&style.edns) - opt.as_ref().map_or(0, Opt::len);
        if out.len() > limit {
            truncate(out, limit);
        }
        if let Some(opt) = opt {
            let count = u16::from_be_bytes([out[10], out[11]]) + 1;
            put_u16(out, 10, count);
            opt.write(out);
        }
    }

    /// Writes the run's RDATA in turn, beginning with one that the query's ID chooses: IDs are
    /// random, so clients spread without any counter that workers would have to share.
    fn rotate(&self, run: Rotation, id: u16, out: &mut [u8]) {
        let (first, stride, size) = (usize::from(run.first), usize::from(run.stride), usize::from(run.size));
        let count = usize::from(run.count);
        let shift = usize::from(id) % count;
        for to in 0..count {
            let from = first + stride * ((to + shift) % count);
            let to = first + stride * to;
            out[to..to + size].copy_from_slice(&self.bytes[from..from + size]);
        }
    }
}

/// Keeps the whole records that fit into `limit` bytes. TC is set when one of the answer or authority
/// section is left out; leaving out additional ones alone does not make an answer partial (RFC 2181 §9).
fn truncate(out: &mut Vec<u8>, limit: usize) {
    let count = |out: &[u8], at: usize| u16::from_be_bytes([out[at], out[at + 1]]);
    let mut at = match crate::wire::name::skip_plain(out, HEADER) {
        Ok(end) => end + 4,
        Err(_) => HEADER,
    };
    let mut full = false;
    for section in [6, 8, 10] {
        let mut kept = 0;
        while !full && kept < count(out, section) {
            match Record::read(out, at) {
                Ok(record) if record.end <= limit => at = record.end,
                _ => {
                    full = true;
                    if section != 10 {
                        let flags = count(out, 2) | flag::TC;
                        put_u16(out, 2, flags);
                    }
                    break;
                }
            }
            kept += 1;
        }
        put_u16(out, section, kept);
    }
    out.truncate(at);
}
