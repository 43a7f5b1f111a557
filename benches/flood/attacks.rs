//! Clients that mean harm, one kind after the other, while somebody asks for what is cached.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::agent::Agent;
use crate::cases::{DRAIN, LIMIT, Setting, flood_queries, percent, quantiles};
use crate::load::{Make, Source, drive};
use crate::net;
use crate::packet;
use crate::report::Report;
use crate::upstream::{Mode, Upstream};

/// Names that are cached before.
const CACHED: u64 = 1000;
/// The agent's default limits, which these clients take up whole.
const ADDRESSES: usize = 16;
const EACH: usize = 64;
/// Connections that a client of the kind `Churn` holds at once, of all that it makes.
const HELD: usize = 2000;
/// Between two octets of a slow client.
const OCTET: Duration = Duration::from_millis(100);
/// Those who may ask, and one who may not.
const ALLOWED: &str = "allow_from: [\"127.0.0.1/32\", \"127.16.0.0/16\"]\n";
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 17, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(127, 16, 255, 1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Attack {
    Quiet,
    SlowLoris,
    HalfFrames,
    Churn,
    Deaf,
    Malformed,
    UniqueNames,
    Strangers,
}

impl Attack {
    const ALL: [Self; 8] = [
        Self::Quiet,
        Self::SlowLoris,
        Self::HalfFrames,
        Self::Churn,
        Self::Deaf,
        Self::Malformed,
        Self::UniqueNames,
        Self::Strangers,
    ];

    fn about(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::SlowLoris => "1,024 connections, an octet each 100 ms",
            Self::HalfFrames => "1,024 connections, 8 KB of a frame of 64 KB",
            Self::Churn => "connections as fast as they go, 2,000 held",
            Self::Deaf => "512 connections, pipelined queries for 48 KB, never read",
            Self::Malformed => "malformed datagrams at the flood's rate",
            Self::UniqueNames => "unique names at the flood's rate, upstream silent",
            Self::Strangers => "queries at the flood's rate from who may not ask",
        }
    }

    /// What this kind does by TCP, until it is told to stop; the number of connections made.
    fn run(self, agent: SocketAddr, stop: &AtomicBool) -> usize {
        net::step_back();
        let big = packet::framed(&packet::query(7, &packet::name(&["big", "flood", "test"]), true));
        match self {
            Self::SlowLoris => hold(agent, ADDRESSES * EACH, OCTET, &[0xff, 0xff], b"x", stop),
            Self::HalfFrames => {
                let start = [&[0xff, 0xff][..], &[b'x'; 8192]].concat();
                hold(agent, ADDRESSES * EACH, OCTET, &start, b"", stop)
            }
            Self::Deaf => {
                hold(agent, 8 * EACH, Duration::from_millis(10), &big.repeat(100), &big.repeat(20), stop)
            }
            Self::Churn => churn(agent, stop),
            Self::Quiet | Self::Malformed | Self::UniqueNames | Self::Strangers => 0,
        }
    }

    /// What this kind sends by UDP.
    fn datagrams(self, agent: SocketAddr, rate: u64) -> Result<Option<Source<'static>>> {
        let (from, make): (_, Make<'_>) = match self {
            Self::Malformed => (GUEST, Box::new(malformed)),
            Self::UniqueNames => (GUEST, flood_queries()),
            Self::Strangers => (STRANGER, flood_queries()),
            _ => return Ok(None),
        };
        Source::new(agent, from, 8, rate, make).map(Some)
    }
}

/// One of many ways to be wrong: cut off, counts that lie, pointers, labels too long, rubbish.
fn malformed(number: u64, id: u16) -> Vec<u8> {
    let mut packet = packet::query(id, &packet::name(&["bad", "flood", "test"]), true);
    let at = (number / 8) as usize % packet.len();
    match number % 8 {
        0 => packet.truncate(at),
        1 => packet[4..12].copy_from_slice(&number.to_be_bytes()),
        2 => packet[12..14].copy_from_slice(&[0xc0, 0x0c]),
        3 => packet[12] = 64 + (number % 190) as u8,
        4 => packet.extend(vec![0xff; at * 20]),
        5 => packet[2] = number as u8,
        6 => packet[at.max(2)] ^= 0x55,
        _ => packet[12..].fill(0x3f),
    }
    packet
}

/// A TCP connection from the `n`-th address of this bench, that does not block.
fn connect(agent: SocketAddr, n: usize) -> Option<TcpStream> {
    let [high, low] = (n as u16).to_be_bytes();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).ok()?;
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 16, high, low), 0)).into()).ok()?;
    socket.connect_timeout(&agent.into(), Duration::from_secs(1)).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket.into())
}

/// Holds so many connections open, says `first` on each and `then` at every interval, and never reads.
fn hold(
    agent: SocketAddr,
    count: usize,
    interval: Duration,
    first: &[u8],
    then: &[u8],
    stop: &AtomicBool,
) -> usize {
    let mut made = 0;
    let mut streams: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    while !stop.load(Ordering::Relaxed) {
        for (index, place) in streams.iter_mut().enumerate() {
            let is_open = place.as_mut().is_some_and(|stream| match stream.write(then) {
                Err(error) => error.kind() == ErrorKind::WouldBlock,
                Ok(_) => then.is_empty() || stream.take_error().is_ok_and(|error| error.is_none()),
            });
            // Who has nothing to say learns of the end by reading.
            let is_open = is_open
                && (!then.is_empty()
                    || place.as_mut().is_some_and(|stream| !matches!(stream.read(&mut [0; 16]), Ok(0))));
            if !is_open && !stop.load(Ordering::Relaxed) {
                *place = connect(agent, index % (count / EACH));
                made += 1;
                if let Some(stream) = place {
                    let _ = stream.write(first);
                }
            }
        }
        thread::sleep(interval);
    }
    made
}

fn churn(agent: SocketAddr, stop: &AtomicBool) -> usize {
    let mut held = VecDeque::with_capacity(HELD);
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        if held.len() == HELD {
            held.pop_front();
        }
        held.extend(connect(agent, made % 200));
        made += 1;
    }
    made
}

/// Hits by UDP while each kind does its worst.
pub(crate) fn clients(setting: &Setting<'_>, title: &str) -> Result<Report> {
    nodens::serve::sys::raise_open_files().context("limit of open files")?;
    let upstream = Upstream::start(3600)?;
    let mut agent = Agent::start(upstream.address, ALLOWED, LIMIT, setting.cpus, setting.directory)?;
    let cached = |n: u64| packet::name(&[&format!("c{n}"), "flood", "test"]);
    let make: Make<'_> = Box::new(|n, id| packet::query(id, &cached(n), true));
    let mut warm = [Source::new(agent.address, Ipv4Addr::LOCALHOST, 1, CACHED, make)?];
    drive(&mut warm, Duration::from_secs(1), DRAIN);
    ensure!(warm[0].tally.good.len() as u64 == CACHED, "{}", warm[0].tally.by_verdict());
    let big = connect(agent.address, 0).context("no TCP connection")?;
    (&big).write_all(&packet::framed(&packet::query(7, &packet::name(&["big", "flood", "test"]), true)))?;

    let mut report = Report::new(title);
    for attack in Attack::ALL {
        upstream.turn(if attack == Attack::UniqueNames { Mode::Silent } else { Mode::Answer })?;
        agent.forget_peak()?;
        let before = agent.process.usage()?;
        let make: Make<'_> = Box::new(|n, id| packet::query(id, &cached(n % CACHED), true));
        let mut sources = vec![Source::new(agent.address, Ipv4Addr::LOCALHOST, 8, setting.hits, make)?];
        sources.extend(attack.datagrams(agent.address, setting.flood)?);
        let stop = AtomicBool::new(false);
        let time = Duration::from_secs(setting.seconds);
        let (pace, made) = thread::scope(|scope| {
            let attacker = scope.spawn(|| attack.run(agent.address, &stop));
            let pace = drive(&mut sources, time, Duration::from_secs(1));
            stop.store(true, Ordering::Relaxed);
            (pace, attacker.join().unwrap_or_default())
        });
        agent.process.must_live()?;
        let usage = agent.process.usage()?.since(before);
        let hits = &mut sources[0];
        let answered = percent(hits.tally.good.len() as u64, hits.tally.sent);
        let mut value = format!(
            "{answered:.2} % answered; ms {}; RSS peak {:.1} MiB; CPU {:.0} %",
            quantiles(hits),
            agent.peak_mib()?,
            usage.total.as_secs_f64() / time.as_secs_f64() * 100.0,
        );
        let p99 = hits.tally.latency_ms(99.0);
        if made > 0 {
            value += &format!("; {made} connections made");
        }
        if let Some(attackers) = sources.get(1) {
            value += &format!("; of {}: {}", attackers.tally.sent, attackers.tally.by_verdict());
        }
        report.row(attack.about(), format!("{value}; generator {}", pace.text()));
        report.at_least(&format!("{}: hits answered %", attack.about()), 99.0, answered);
        report.at_most(&format!("{}: hits p99 ms", attack.about()), 5.0, p99);
        // The unique names' flights end.
        thread::sleep(Duration::from_secs(if attack == Attack::UniqueNames { 5 } else { 1 }));
    }
    report.row("resident at the end", format!("{:.1} MiB", agent.process.resident_mib()?));
    let kills = agent.group.kills().unwrap_or(u64::MAX);
    report.at_most("processes killed for want of memory", 0.0, kills as f64);
    Ok(report)
}
