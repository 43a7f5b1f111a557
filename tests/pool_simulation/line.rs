//! One connection of the simulation, seen from both ends: what is on its way, and how it ends.

use std::collections::BTreeMap;
use std::io;
use std::task::Waker;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::endpoint::{Endpoint, Reach};

/// The kernel gives up on data that nobody acknowledges (TCP_USER_TIMEOUT), at the first repeat after a second.
const USER_TIMEOUT: Duration = Duration::from_millis(1400);
/// The first repeat of a segment; each takes twice as long (RFC 6298 §5, and Linux's least).
const REPEAT: Duration = Duration::from_millis(200);

/// What the client reads.
pub(crate) enum Read {
    Bytes(Vec<u8>),
    End(io::Result<()>),
    /// Nothing yet; look again then, if nothing is said before.
    Wait(Option<Instant>),
}

/// A connection.
pub(crate) struct Line {
    pub(crate) endpoint: usize,
    pub(crate) queries: u64,
    /// Answers by when they arrive; the number keeps those apart that arrive together.
    answers: BTreeMap<(Instant, u64), Vec<u8>>,
    numbers: u64,
    /// The beginning of a query that was not written whole.
    partial: Vec<u8>,
    /// Queries that did not arrive, or that the process has not looked at.
    held: Vec<Vec<u8>>,
    /// Since when the client's kernel waits for an acknowledgement.
    unacknowledged: Option<Instant>,
    free_at: Instant,
    /// The last query or answer.
    busy_until: Instant,
    opened: Instant,
    /// Why and when it ends, as the client sees it.
    end: Option<(Instant, io::ErrorKind)>,
    /// The process that it led to has gone: what is sent meets a reset, or nothing.
    pub(crate) orphaned: bool,
    pub(crate) waker: Option<Waker>,
}

impl Line {
    pub(crate) fn new(endpoint: usize, now: Instant) -> Self {
        Self {
            endpoint,
            queries: 0,
            answers: BTreeMap::new(),
            numbers: 0,
            partial: Vec::new(),
            held: Vec::new(),
            unacknowledged: None,
            free_at: now,
            busy_until: now,
            opened: now,
            end: None,
            orphaned: false,
            waker: None,
        }
    }

    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// When the server closes it for want of queries.
    fn closes_at(&self, of: &Endpoint) -> Option<Instant> {
        let at = match self.queries {
            0 => self.opened + of.service.first_query,
            _ => self.busy_until.max(self.free_at) + of.service.idle,
        };
        (!self.orphaned && of.reach == Reach::Yes).then_some(at)
    }

    /// The client writes.
    pub(crate) fn write(&mut self, bytes: &[u8], now: Instant, of: &mut Endpoint, random: &mut StdRng) {
        self.partial.extend_from_slice(bytes);
        while let Some((length, rest)) = self.partial.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(query) = rest.get(..length) else { break };
            let query = query.to_vec();
            self.partial.drain(..2 + length);
            of.was_asked(&query);
            self.ask(query, now, of, random);
        }
        self.wake(); // its reader waits for another moment now
    }

    fn ask(&mut self, query: Vec<u8>, now: Instant, of: &Endpoint, random: &mut StdRng) {
        let way = of.service.rtt / 2;
        if self.closes_at(of).is_some_and(|at| at <= now + way) {
            self.end.get_or_insert((now + way, io::ErrorKind::UnexpectedEof));
        }
        self.queries += 1;
        match of.reach {
            Reach::Silent => {
                self.unacknowledged.get_or_insert(now);
                self.held.push(query);
            }
            _ if self.orphaned => self.reset(now + of.service.rtt),
            Reach::Refuses => self.reset(now + of.service.rtt),
            Reach::Frozen => self.held.push(query),
            Reach::Yes if self.end.is_some() => {}
            Reach::Yes => {
                let (at, answer) = of.answer(&query, now, &mut self.free_at, random);
                self.busy_until = self.busy_until.max(at);
                self.put(at, answer);
            }
        }
    }

    fn put(&mut self, at: Instant, answer: Vec<u8>) {
        self.numbers += 1;
        self.answers.insert((at, self.numbers), answer);
    }

    /// It ends in a reset that the client sees at `at`; what is on its way then is lost.
    pub(crate) fn reset(&mut self, at: Instant) {
        self.end.get_or_insert((at, io::ErrorKind::ConnectionReset));
        self.wake();
    }

    /// Its endpoint works again after it `was` something else since then.
    pub(crate) fn back(&mut self, now: Instant, was: (Reach, Instant), of: &Endpoint, random: &mut StdRng) {
        let answers = std::mem::take(&mut self.answers);
        let held = std::mem::take(&mut self.held);
        let unacknowledged = self.unacknowledged.take();
        // What was lost is sent again by the kernel that sent it.
        let at = unacknowledged.map_or(now, |since| repeated(since, now));
        if self.orphaned {
            if unacknowledged.is_some() {
                self.reset(at + of.service.rtt);
            }
            return;
        }
        let stood_still = if was.0 == Reach::Frozen { now - was.1 } else { Duration::ZERO };
        if !answers.is_empty() {
            self.free_at += stood_still; // it goes on where it was
        }
        self.free_at = self.free_at.max(now);
        for ((due, _), answer) in answers {
            let is_lost = was.0 == Reach::Silent && due < now;
            self.put(if is_lost { repeated(due, now) } else { due + stood_still }, answer);
        }
        for query in held {
            let (at, answer) = of.answer(&query, at, &mut self.free_at, random);
            self.busy_until = self.busy_until.max(at);
            self.put(at, answer);
        }
        self.wake();
    }

    /// The client reads.
    pub(crate) fn read(&mut self, now: Instant, of: &Endpoint) -> Read {
        let is_heard = of.reach != Reach::Silent;
        let works = of.reach == Reach::Yes;
        if let Some((_, kind)) = self.end.filter(|(at, _)| is_heard && *at <= now) {
            return Read::End(if kind == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(kind.into()) });
        }
        let gives_up = self.unacknowledged.map(|since| since + USER_TIMEOUT);
        if gives_up.is_some_and(|at| at <= now) {
            return Read::End(Err(io::ErrorKind::TimedOut.into()));
        }
        // What a process had said before it stood still arrives.
        let until = match of.reach {
            Reach::Frozen => now.min(of.since),
            _ => now,
        };
        let listens = is_heard && !self.orphaned;
        if listens {
            let later = self.answers.split_off(&(until + Duration::from_nanos(1), 0));
            let due = std::mem::replace(&mut self.answers, later);
            if !due.is_empty() {
                let mut bytes = Vec::new();
                for answer in due.into_values() {
                    bytes.extend((answer.len() as u16).to_be_bytes());
                    bytes.extend(answer);
                }
                return Read::Bytes(bytes);
            }
        }
        let closes = self.closes_at(of).map(|at| at + of.service.rtt / 2);
        if closes.is_some_and(|at| at <= now) {
            return Read::End(Ok(()));
        }
        let answer = self.answers.keys().next().map(|(at, _)| *at).filter(|_| works && !self.orphaned);
        let end = self.end.map(|(at, _)| at).filter(|_| is_heard);
        Read::Wait([answer, end, gives_up, closes].into_iter().flatten().min())
    }
}

/// When a segment that was first sent at `first` is sent again, after `now`.
fn repeated(first: Instant, now: Instant) -> Instant {
    let (mut at, mut pause) = (first + REPEAT, REPEAT);
    while at < now {
        pause *= 2;
        at += pause;
    }
    at
}
