//! A client that asks each question from a socket of its own, as stub resolvers do: each query is a new connection to
//! connection tracking.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::load::Outcome;
use crate::mix::Input;
use crate::node::pod_address;
use crate::sys::Epoll;

/// Queries that wait for their answer at once, where there is no rate.
const OUTSTANDING: u64 = 64;
/// After so long a query is lost.
const TIMEOUT: Duration = Duration::from_millis(500);
/// The longest wait for replies before it is seen whether more is to be sent.
const LOOK: Duration = Duration::from_millis(1);
/// Part of the rate that has to be kept.
const KEPT: f64 = 0.99;

/// How much is asked.
pub(crate) struct Churn {
    /// Of the input.
    pub(crate) queries: Vec<Vec<u8>>,
    pub(crate) time: Duration,
    /// Queries at most; it ends earlier then.
    pub(crate) most: u64,
    /// Queries a second; else as many as it can.
    pub(crate) rate: Option<u32>,
}

/// The client. Runs where the pod's addresses are.
pub(crate) fn run(server: SocketAddr, input: &Input, mut plan: Churn) -> Result<Outcome> {
    let queries = mem::take(&mut plan.queries);
    let mut client = Client {
        queries,
        server,
        epoll: Epoll::new()?,
        pending: Vec::new(),
        waiting: 0,
        tally: Tally::default(),
    };
    let sending = client.run(&plan)?.as_secs_f64();
    let tally = client.tally;
    let (existing, planned) = (input.existing(tally.sent), plan.rate.map_or(0.0, f64::from) * sending);
    let fault = if (tally.sent as f64) < planned * KEPT {
        Some(format!("the load's core was busy: only {} of {planned:.0} queries were sent", tally.sent))
    } else if tally.sent != tally.completed {
        Some(format!("{} of {} queries lost", tally.sent - tally.completed, tally.sent))
    } else if tally.existing != existing || tally.wrong > 0 {
        Some(format!("{} names exist instead of {existing}, {} wrong replies", tally.existing, tally.wrong))
    } else {
        None
    };
    Ok(Outcome {
        completed: tally.completed,
        seconds: sending,
        latency_seconds: tally.waited.as_secs_f64() / tally.completed.max(1) as f64,
        reply_bytes: tally.bytes as f64 / tally.completed.max(1) as f64,
        fault,
    })
}

/// A query that waits for its answer.
struct Pending {
    socket: UdpSocket,
    number: u64,
    sent: Instant,
}

#[derive(Default)]
struct Tally {
    sent: u64,
    completed: u64,
    existing: u64,
    wrong: u64,
    bytes: usize,
    waited: Duration,
}

struct Client {
    queries: Vec<Vec<u8>>,
    server: SocketAddr,
    epoll: Epoll,
    /// By descriptor.
    pending: Vec<Option<Pending>>,
    waiting: u64,
    tally: Tally,
}

impl Client {
    /// For how long it has sent.
    fn run(&mut self, plan: &Churn) -> Result<Duration> {
        let (mut order, mut ready) = (VecDeque::new(), Vec::new());
        let (start, mut sending) = (Instant::now(), None);
        while sending.is_none() || self.waiting > 0 {
            let now = start.elapsed();
            if now < plan.time && self.tally.sent < plan.most {
                let due = match plan.rate {
                    Some(rate) => (now.as_secs_f64() * f64::from(rate)) as u64 - self.tally.sent,
                    None => OUTSTANDING - self.waiting,
                };
                for _ in 0..due.min(plan.most - self.tally.sent) {
                    order.push_back((self.ask()?, self.tally.sent));
                    self.tally.sent += 1;
                }
            } else {
                sending.get_or_insert(now);
            }
            self.epoll.wait(&mut ready, LOOK)?;
            for &fd in &ready {
                self.take(fd)?;
            }
            self.give_up(&mut order);
        }
        Ok(sending.unwrap_or_default())
    }

    /// Sends a query from a new socket, whose port the kernel picks.
    fn ask(&mut self) -> Result<RawFd> {
        let number = self.tally.sent;
        let socket = UdpSocket::bind((pod_address(number), 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(self.server)?;
        let index = (number % self.queries.len() as u64) as usize;
        let query = &mut self.queries[index];
        query[..2].copy_from_slice(&(number as u16).to_be_bytes());
        self.epoll.add(&socket)?;
        socket.send(query)?;
        let fd = socket.as_raw_fd();
        let slot = usize::try_from(fd)?;
        if self.pending.len() <= slot {
            self.pending.resize_with(slot + 1, || None);
        }
        self.pending[slot] = Some(Pending { socket, number, sent: Instant::now() });
        self.waiting += 1;
        Ok(fd)
    }

    /// Takes a reply, after which the socket is closed.
    fn take(&mut self, fd: RawFd) -> Result<()> {
        let slot = &mut self.pending[usize::try_from(fd)?];
        let Some(pending) = slot else { return Ok(()) };
        let mut reply = [0; 1500];
        let length = match pending.socket.recv(&mut reply) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("a reply"),
        };
        let is_reply =
            length >= 12 && reply[..2] == (pending.number as u16).to_be_bytes() && reply[2] & 0x80 != 0;
        match reply[3] & 0x0f {
            0 if is_reply => self.tally.existing += 1,
            3 if is_reply => {}
            _ => self.tally.wrong += 1,
        }
        self.tally.completed += 1;
        self.tally.bytes += length;
        self.tally.waited += pending.sent.elapsed();
        *slot = None;
        self.waiting -= 1;
        Ok(())
    }

    /// Forgets queries that have waited too long.
    fn give_up(&mut self, order: &mut VecDeque<(RawFd, u64)>) {
        while let Some(&(fd, number)) = order.front() {
            let slot = usize::try_from(fd).ok().and_then(|slot| self.pending.get_mut(slot));
            if let Some(slot) = slot
                && let Some(pending) = slot
                && pending.number == number
            {
                if pending.sent.elapsed() < TIMEOUT {
                    return;
                }
                *slot = None;
                self.waiting -= 1;
            }
            order.pop_front();
        }
    }
}
