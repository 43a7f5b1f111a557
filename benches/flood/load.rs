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
    /// For each socket and ID: when, and the how-manieth it was. Zero is not awaited.
    awaited: Vec<Vec<(u64, u64)>>,
    pub(crate) tally: Tally,
}

/// What became of them.
#[derive(Default)]
pub(crate) struct Tally {
    /// Taken by a socket.
    pub(crate) sent: u64,
    /// Numbers of those that were answered with records.
    pub(crate) good: Vec<u64>,
    pub(crate) verdicts: BTreeMap<Verdict, u64>,
    latencies_us: Vec<u32>,
}

/// How well the generator kept its times.
#[derive(Default)]
pub(crate) struct Pace {
    ticks: u64,
    late: u64,
    latest_ns: u64,
}

/// A UDP socket at `from`, connected to the agent.
pub(crate) fn socket(from: Ipv4Addr, agent: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&agent.into())?;
    let socket = socket.into();
    net::prepare(&socket, BUFFER).context("large socket buffers: this needs root")?;
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
        let awaited = vec![vec![(0, 0); 1 << 16]; sockets.len()];
        Ok(Self { per_second, sockets, make, awaited, tally: Tally::default() })
    }

    /// Sends what is due at this tick.
    fn send(&mut self, tick: u64) {
        let due = (tick + 1) * self.per_second / 1000 - tick * self.per_second / 1000;
        let count = self.sockets.len() as u64;
        let first = tick * self.per_second / 1000;
        for (index, socket) in self.sockets.iter().enumerate() {
            let numbers = (first..first + due).filter(|number| number % count == index as u64);
            let numbers: Vec<u64> = numbers.collect();
            let packets: Vec<_> =
                numbers.iter().map(|&number| (self.make)(number, (number / count) as u16)).collect();
            let now = net::now_ns();
            for &number in &numbers {
                self.awaited[index][usize::from((number / count) as u16)] = (now, number);
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
                let (sent, number) = std::mem::take(&mut awaited[usize::from(u16::from_be_bytes(*id))]);
                if sent == 0 {
                    return;
                }
                *tally.verdicts.entry(verdict).or_default() += 1;
                tally.latencies_us.push((arrived.saturating_sub(sent) / 1000) as u32);
                if verdict.answers {
                    tally.good.push(number);
                }
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
        self.verdicts.values().sum()
    }

    pub(crate) fn count(&self, which: impl Fn(&Verdict) -> bool) -> u64 {
        self.verdicts.iter().filter(|(verdict, _)| which(verdict)).map(|(_, count)| count).sum()
    }

    /// The latency that so many of a hundred did not exceed, in milliseconds.
    pub(crate) fn latency_ms(&mut self, percent: f64) -> f64 {
        self.latencies_us.sort_unstable();
        let at = (self.latencies_us.len() as f64 * percent / 100.0).ceil() as usize;
        let at = at.clamp(1, self.latencies_us.len().max(1)) - 1;
        self.latencies_us.get(at).map_or(f64::NAN, |&us| f64::from(us) / 1000.0)
    }

    pub(crate) fn by_verdict(&self) -> String {
        let parts = self.verdicts.iter().map(|(verdict, count)| format!("{}: {count}", verdict.label()));
        parts.collect::<Vec<_>>().join("; ")
    }
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
    let mut pace = Pace { ticks: time.as_millis() as u64, ..Pace::default() };
    let start = net::now_ns();
    for tick in 0..pace.ticks {
        let planned = start + tick * TICK_NS;
        net::sleep_until(planned);
        let late = net::now_ns().saturating_sub(planned);
        pace.late += u64::from(late > LATE_NS);
        pace.latest_ns = pace.latest_ns.max(late);
        for source in &mut *sources {
            source.send(tick);
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
