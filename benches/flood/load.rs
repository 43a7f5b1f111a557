//! Load by UDP at a fixed rate from one thread, and what came back when.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::{self, Inbox};
use crate::packet::Verdict;

/// Sends are this far apart.
const TICK_NS: u64 = 1_000_000;
/// The generator was late: beyond it a burst stands where an even flow should be.
const LATE_NS: u64 = 5 * TICK_NS;
/// What a client's socket may hold: a hot name's answers come all at once.
const BUFFER: i32 = 8 << 20;

/// Makes the `n`-th packet, with this ID.
pub(crate) type Make<'a> = Box<dyn FnMut(u64, u16) -> Vec<u8> + 'a>;

/// Queries of one kind.
pub(crate) struct Source<'a> {
    per_second: u64,
    sockets: Vec<UdpSocket>,
    make: Make<'a>,
    /// For each socket and ID, who waits.
    awaited: Vec<Vec<Option<Awaited>>>,
    pub(crate) tally: Tally,
}

/// A query that has been sent.
#[derive(Clone, Copy)]
struct Awaited {
    number: u64,
    sent_ns: u64,
    late_us: u32,
}

/// The reply to a query.
#[derive(Clone, Copy)]
pub(crate) struct Reply {
    /// The how-manieth query it was.
    pub(crate) number: u64,
    /// How late the query was sent.
    pub(crate) late_us: u32,
    /// From its being sent to the reply.
    pub(crate) took_us: u32,
    pub(crate) verdict: Verdict,
}

/// What became of them.
#[derive(Default)]
pub(crate) struct Tally {
    /// Taken by a socket.
    pub(crate) sent: u64,
    pub(crate) replies: Vec<Reply>,
}

/// How well the generator kept its times.
#[derive(Default)]
pub(crate) struct Pace {
    pub(crate) ticks: u64,
    late: u64,
    latest_ns: u64,
    /// When it began, by [`net::now_ns`].
    pub(crate) start_ns: u64,
}

/// A UDP socket at `from`, connected to the agent.
pub(crate) fn socket(from: Ipv4Addr, agent: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&agent.into())?;
    let socket = socket.into();
    net::prepare(&socket, BUFFER).context("socket options")?;
    Ok(socket)
}

impl<'a> Source<'a> {
    /// So many a second, from `sockets` sockets at `from`.
    pub(crate) fn new(
        agent: SocketAddr,
        from: Ipv4Addr,
        sockets: usize,
        per_second: u64,
        make: Make<'a>,
    ) -> Result<Self> {
        let sockets = (0..sockets).map(|_| socket(from, agent)).collect::<Result<Vec<_>>>()?;
        let awaited = vec![vec![None; 1 << 16]; sockets.len()];
        Ok(Self { per_second, sockets, make, awaited, tally: Tally::default() })
    }

    /// How many are planned before this tick.
    pub(crate) fn planned(&self, tick: u64) -> u64 {
        tick * self.per_second / 1000
    }

    /// The tick of a query.
    pub(crate) fn tick(&self, number: u64) -> u64 {
        ((number + 1) * 1000).div_ceil(self.per_second) - 1
    }

    /// Sends what is due at this tick, which was planned for `planned_ns`.
    fn send(&mut self, tick: u64, planned_ns: u64) {
        let (first, end) = (self.planned(tick), self.planned(tick + 1));
        let count = self.sockets.len() as u64;
        for (index, socket) in self.sockets.iter().enumerate() {
            let numbers = (first..end).filter(|number| number % count == index as u64);
            let numbers: Vec<u64> = numbers.collect();
            let packets: Vec<_> =
                numbers.iter().map(|&number| (self.make)(number, (number / count) as u16)).collect();
            let sent_ns = net::now_ns();
            let late_us = (sent_ns.saturating_sub(planned_ns) / 1000) as u32;
            for &number in &numbers {
                let awaited = Awaited { number, sent_ns, late_us };
                self.awaited[index][usize::from((number / count) as u16)] = Some(awaited);
            }
            self.tally.sent += net::send(socket, &packets) as u64;
        }
    }

    fn receive(&mut self, inbox: &mut Inbox) {
        for (socket, awaited) in self.sockets.iter().zip(&mut self.awaited) {
            let tally = &mut self.tally;
            let mut take = |reply: &[u8], arrived: u64| {
                let (Some(verdict), Some(id)) = (Verdict::of(reply), reply.first_chunk::<2>()) else {
                    return;
                };
                let awaited = awaited[usize::from(u16::from_be_bytes(*id))].take();
                let Some(Awaited { number, sent_ns, late_us }) = awaited else { return };
                let took_us = (arrived.saturating_sub(sent_ns) / 1000) as u32;
                tally.replies.push(Reply { number, late_us, took_us, verdict });
            };
            // Bounded: a socket's buffer holds fewer than so many batches.
            for _ in 0..1000 {
                if !inbox.receive(socket, &mut take) {
                    break;
                }
            }
        }
    }
}

impl Tally {
    pub(crate) fn answered(&self) -> u64 {
        self.replies.len() as u64
    }

    pub(crate) fn count(&self, which: impl Fn(&Verdict) -> bool) -> u64 {
        self.replies.iter().filter(|reply| which(&reply.verdict)).count() as u64
    }

    /// Those that were answered with records.
    pub(crate) fn good(&self) -> u64 {
        self.count(|verdict| verdict.answers)
    }

    /// The latency that so many of a hundred did not exceed, in milliseconds.
    pub(crate) fn latency_ms(&self, percent: f64) -> f64 {
        let mut took_us: Vec<_> = self.replies.iter().map(|reply| reply.took_us).collect();
        took_us.sort_unstable();
        quantile(&took_us, percent).map_or(f64::NAN, |us| f64::from(us) / 1000.0)
    }

    pub(crate) fn by_verdict(&self) -> String {
        let mut counts = BTreeMap::<Verdict, u64>::new();
        for reply in &self.replies {
            *counts.entry(reply.verdict).or_default() += 1;
        }
        let parts = counts.iter().map(|(verdict, count)| format!("{}: {count}", verdict.label()));
        parts.collect::<Vec<_>>().join("; ")
    }
}

/// What so many of a hundred do not exceed, of values in order.
pub(crate) fn quantile(sorted: &[u32], percent: f64) -> Option<u32> {
    let at = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(at.clamp(1, sorted.len().max(1)) - 1).copied()
}

impl Pace {
    /// How late it was, and whether that matters.
    pub(crate) fn text(&self) -> String {
        let kept = if self.late * 100 <= self.ticks { "kept" } else { "NOT KEPT: the load's core was busy" };
        format!(
            "{kept}; {} of {} ticks over {} ms late, the latest {:.1} ms",
            self.late,
            self.ticks,
            LATE_NS / TICK_NS,
            self.latest_ns as f64 / 1e6
        )
    }
}

/// Sends from all sources for `time`, then waits up to `drain` for what is still to come.
pub(crate) fn drive(sources: &mut [Source<'_>], time: Duration, drain: Duration) -> Pace {
    let mut inbox = Inbox::new();
    let start = net::now_ns();
    let mut pace = Pace { ticks: time.as_millis() as u64, start_ns: start, ..Pace::default() };
    for tick in 0..pace.ticks {
        let planned = start + tick * TICK_NS;
        net::sleep_until(planned);
        let late = net::now_ns().saturating_sub(planned);
        pace.late += u64::from(late > LATE_NS);
        pace.latest_ns = pace.latest_ns.max(late);
        for source in &mut *sources {
            source.send(tick, planned);
            source.receive(&mut inbox);
        }
    }
    let end = net::now_ns() + drain.as_nanos() as u64;
    while net::now_ns() < end && sources.iter().any(|source| source.tally.answered() < source.tally.sent) {
        std::thread::sleep(Duration::from_nanos(TICK_NS));
        for source in &mut *sources {
            source.receive(&mut inbox);
        }
    }
    pace
}
