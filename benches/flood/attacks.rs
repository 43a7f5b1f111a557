//! Clients that mean harm, one kind after the other, while somebody asks for what is cached.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::agent::Agent;
use crate::cases::{DRAIN, Setting, flood_queries, limited, percent, quantiles, start};
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
/// Between two queries by TCP of somebody who means no harm, and how long he waits.
const PROBE: Duration = Duration::from_millis(5);
const PROBE_LIMIT: Duration = Duration::from_secs(1);
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
            Self::SlowLoris => "slow loris",
            Self::HalfFrames => "half frames",
            Self::Churn => "connections",
            Self::Deaf => "deaf, pipelined",
            Self::Malformed => "malformed",
            Self::UniqueNames => "unique names",
            Self::Strangers => "strangers",
        }
    }

    /// What this kind does by TCP, until it is told to stop; the number of connections made.
    fn run(self, agent: SocketAddr, stop: &AtomicBool) -> usize {
        net::step_back();
        let big = packet::framed(&packet::query(7, &big_name(), true));
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

/// A name with 48 KB of addresses.
fn big_name() -> Vec<u8> {
    packet::name(&["big", "flood", "test"])
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

/// What somebody got who asks for cached names by TCP, each tenth time on a new connection.
#[derive(Default)]
struct Probe {
    asked: usize,
    latencies_ms: Vec<f64>,
}

impl Probe {
    fn run(agent: SocketAddr, query: &[u8], stop: &AtomicBool) -> Self {
        let (mut probe, mut stream) = (Self::default(), None);
        while !stop.load(Ordering::Relaxed) {
            if probe.asked.is_multiple_of(10) {
                stream = None;
            }
            probe.asked += 1;
            let started = Instant::now();
            match ask(&mut stream, agent, query) {
                Ok(()) => probe.latencies_ms.push(started.elapsed().as_secs_f64() * 1e3),
                Err(_) => stream = None,
            }
            thread::sleep(PROBE);
        }
        probe.latencies_ms.sort_by(f64::total_cmp);
        probe
    }

    fn p99_ms(&self) -> f64 {
        let at = (self.latencies_ms.len() * 99).div_ceil(100).max(1) - 1;
        self.latencies_ms.get(at).copied().unwrap_or(f64::NAN)
    }
}

fn ask(stream: &mut Option<TcpStream>, agent: SocketAddr, query: &[u8]) -> std::io::Result<()> {
    let stream = match stream {
        Some(stream) => stream,
        None => stream.insert(TcpStream::connect_timeout(&agent, PROBE_LIMIT)?),
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PROBE_LIMIT))?;
    stream.write_all(query)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    stream.read_exact(&mut vec![0; usize::from(u16::from_be_bytes(length))])
}

fn cached(number: u64) -> Vec<u8> {
    packet::name(&[&format!("c{}", number % CACHED), "flood", "test"])
}

fn hits<'a>() -> Make<'a> {
    Box::new(|number, id| packet::query(id, &cached(number), true))
}

/// Hits by UDP, and some by TCP, while each kind does its worst.
pub(crate) fn clients(setting: &Setting<'_>, title: &str) -> Result<Report> {
    nodens::sys::raise_open_files().context("limit of open files")?;
    let upstream = Upstream::start(3600)?;
    let group = limited()?;
    let mut agent = start(&upstream, ALLOWED, &group, setting)?;
    let mut warm = [Source::new(agent.address, Ipv4Addr::LOCALHOST, 1, CACHED, hits())?];
    drive(&mut warm, Duration::from_secs(1), DRAIN);
    ensure!(warm[0].tally.good() == CACHED, "{}", warm[0].tally.by_verdict());
    ask(&mut None, agent.address, &packet::framed(&packet::query(7, &big_name(), true)))?;

    let columns = [
        "",
        "UDP hits %",
        "ms p50, p99, p99.9, max",
        "TCP hits %",
        "p99 ms",
        "RSS peak MiB",
        "CPU %",
        "connections made",
        "of the datagrams",
        "generator",
    ];
    let mut report = Report::with_columns(title, &columns);
    for attack in Attack::ALL {
        upstream.turn(if attack == Attack::UniqueNames { Mode::Silent } else { Mode::Answer })?;
        one(attack, &mut agent, setting, &mut report)?;
        // The unique names' flights end.
        thread::sleep(Duration::from_secs(if attack == Attack::UniqueNames { 5 } else { 1 }));
    }
    let kills = group.kills().unwrap_or(u64::MAX);
    report.at_most("processes killed for want of memory", 0.0, kills as f64);
    Ok(report)
}

/// One kind.
fn one(attack: Attack, agent: &mut Agent, setting: &Setting<'_>, report: &mut Report) -> Result<()> {
    agent.forget_peak()?;
    let before = agent.process.usage()?;
    let address = agent.address;
    let mut sources = vec![Source::new(address, Ipv4Addr::LOCALHOST, 8, setting.hits, hits())?];
    sources.extend(attack.datagrams(address, setting.flood)?);
    let stop = AtomicBool::new(false);
    let time = Duration::from_secs(setting.seconds);
    let query = packet::framed(&packet::query(9, &cached(0), true));
    let (pace, made, probe) = thread::scope(|scope| {
        let attacker = scope.spawn(|| attack.run(address, &stop));
        let probe = scope.spawn(|| Probe::run(address, &query, &stop));
        let pace = drive(&mut sources, time, Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        (pace, attacker.join().unwrap_or_default(), probe.join().unwrap_or_default())
    });
    agent.process.must_live()?;
    let used = agent.process.usage()?.since(before).total;
    let hits = &sources[0];
    let answered = percent(hits.tally.good(), hits.tally.sent);
    let by_tcp = percent(probe.latencies_ms.len() as u64, probe.asked as u64);
    let (times, p99) = (quantiles(hits), hits.tally.latency_ms(99.0));
    let datagrams = sources.get(1).map(|source| &source.tally);
    report.line(vec![
        attack.about().to_owned(),
        format!("{answered:.2}"),
        times,
        format!("{by_tcp:.1}"),
        format!("{:.2}", probe.p99_ms()),
        format!("{:.1}", agent.peak_mib()?),
        format!("{:.0}", used.as_secs_f64() / time.as_secs_f64() * 100.0),
        if made > 0 { made.to_string() } else { "-".into() },
        datagrams.map_or("-".into(), |tally| format!("{} sent; {}", tally.sent, tally.by_verdict())),
        pace.text(),
    ]);
    report.at_least(&format!("{}: UDP hits %", attack.about()), 99.0, answered);
    report.at_most(&format!("{}: p99 ms", attack.about()), 5.0, p99);
    report.at_least(&format!("{}: TCP hits %", attack.about()), 99.0, by_tcp);
    Ok(())
}
