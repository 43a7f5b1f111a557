//! A server that does what a case tells it: it answers after a delay to the tenth of a millisecond, one query of a
//! connection after the other as CoreDNS does or all at once, keeps silent, resets its connections, goes and
//! comes back.

mod serve;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::serve::Serving;

/// Ports of scripted servers lie below those that the system gives to clients: else the agent could take the port of
/// one that is gone.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// How it answers.
#[derive(Clone)]
pub(crate) struct Manner {
    /// Whether the answers of a TCP connection come strictly one after the other.
    pub(crate) serial: bool,
    pub(crate) delay: Duration,
    /// One answer in so many takes `late` instead; 0 for none.
    pub(crate) late_of: u64,
    pub(crate) late: Duration,
    /// A connection without queries for so long is closed, as CoreDNS does it.
    pub(crate) idle: Duration,
}

impl Manner {
    /// As CoreDNS, with a delay in milliseconds.
    pub(crate) fn serial(delay_ms: u64) -> Self {
        Self {
            serial: true,
            delay: Duration::from_millis(delay_ms),
            late_of: 0,
            late: Duration::from_millis(500),
            idle: Duration::from_secs(10),
        }
    }
}

/// What a server does from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It neither answers, accepts nor closes. The kernel still acknowledges what is sent to it.
    Silent,
    /// As before it was silent. What was asked meanwhile is answered now.
    Answer,
    /// All connections are reset, and new ones accepted.
    Reset,
    /// All connections are reset, and new ones refused.
    Leave,
    /// It is back after it has left.
    Return,
    End,
}

/// What it has done.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) queries: AtomicU64,
    pub(crate) connections: AtomicU64,
}

/// A server on a thread of its own, which ends when this is dropped.
pub(crate) struct Script {
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    turns: Sender<(Turn, Sender<Result<()>>)>,
    waker: UnixStream,
    /// What it says of [`Kind::Endpoints`](crate::names::Kind::Endpoints).
    endpoints: Arc<Mutex<Vec<Ipv4Addr>>>,
    thread: Option<JoinHandle<()>>,
}

impl Script {
    /// Starts where the caller runs, with the caller's precision of timers.
    pub(crate) fn start(address: SocketAddr, manner: Manner) -> Result<Self> {
        let (turns, orders) = mpsc::channel();
        let (waker, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let counts = Arc::<Counts>::default();
        let endpoints = Arc::<Mutex<Vec<Ipv4Addr>>>::default();
        let shared = (Arc::clone(&counts), Arc::clone(&endpoints));
        let mut serving = Serving::new(address, manner, shared, orders, woken)?;
        let thread = thread::Builder::new().name("script".into()).spawn(move || serving.run())?;
        Ok(Self { address, counts, turns, waker, endpoints, thread: Some(thread) })
    }

    /// Starts one for each address.
    pub(crate) fn start_all(addresses: &[SocketAddr], manner: &Manner) -> Result<Vec<Self>> {
        addresses.iter().map(|&address| Self::start(address, manner.clone())).collect()
    }

    /// Changes what it does, and returns when it has done so.
    pub(crate) fn turn(&self, turn: Turn) -> Result<()> {
        let (done, told) = mpsc::channel();
        self.turns.send((turn, done)).ok().context("the scripted server has ended")?;
        std::io::Write::write_all(&mut &self.waker, b"!")?;
        told.recv_timeout(Duration::from_secs(5)).with_context(|| format!("{turn:?}"))?
    }

    pub(crate) fn set_endpoints(&self, addresses: &[Ipv4Addr]) {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *endpoints = addresses.to_vec();
    }

    pub(crate) fn queries(&self) -> u64 {
        self.counts.queries.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if self.turn(Turn::End).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Addresses on loopback for so many servers, with one port that is free on all of them.
pub(crate) fn addresses(count: u8) -> Result<Vec<SocketAddr>> {
    let hosts = (1..=count).map(|n| Ipv4Addr::new(127, 53, 0, n));
    let first = std::process::id() as u16 % (PORTS.end - PORTS.start);
    for n in 0..1000 {
        let port = PORTS.start + (first + n * 7) % (PORTS.end - PORTS.start);
        let all: Vec<SocketAddr> = hosts.clone().map(|host| (host, port).into()).collect();
        if all.iter().all(|&address| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()) {
            return Ok(all);
        }
    }
    bail!("no free port")
}
