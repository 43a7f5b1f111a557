//! A client that asks each question from a socket of its own, as stub resolvers do: each query is a new connection to
//! connection tracking.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::load::Outcome;
use crate::mix::{self, Input};
use crate::node::{POD_ADDRESSES, pod_address};
use crate::process::Process;
use crate::sys::Epoll;

/// Queries that wait for their answer at once, where there is no rate.
const OUTSTANDING: u64 = 64;
/// After so long a query is lost.
const TIMEOUT: Duration = Duration::from_millis(500);
/// The longest wait for replies before it is seen whether more is to be sent.
const LOOK: Duration = Duration::from_millis(1);
/// Part of the rate that has to be kept.
const KEPT: f64 = 0.99;
/// Between the end of the sending and that of the client.
const GRACE: Duration = Duration::from_secs(5);

/// What the client is to do.
pub(crate) struct Churn {
    pub(crate) server: SocketAddr,
    pub(crate) seconds: u32,
    /// Queries a second; else as many as it can.
    pub(crate) rate: Option<u32>,
    /// Questions, as dnsperf reads them.
    pub(crate) input: PathBuf,
}

impl Churn {
    /// Adds this to a command that is this program.
    pub(crate) fn tell(&self, command: &mut Command) {
        command.arg("--churn").arg(self.server.to_string()).arg("--seconds").arg(self.seconds.to_string());
        command.arg("--input").arg(&self.input);
        if let Some(rate) = self.rate {
            command.arg("--rate").arg(rate.to_string());
        }
    }

    /// Lets `command` be the client, and reads what it says. Unless `may_lose`, a run in which queries are lost
    /// does not count.
    pub(crate) fn run(
        &self,
        command: Command,
        input: &Input,
        may_lose: bool,
        cpus: &[usize],
        log: &Path,
    ) -> Result<(Outcome, f64)> {
        let mut client = Process::start(command, cpus, log.to_owned())?;
        let status = client.wait(Duration::from_secs(self.seconds.into()) + GRACE)?;
        ensure!(status.success(), "the client: {status}: {}", client.last_words());
        let output = client.output()?;
        let said: Value = serde_json::from_str(&output).with_context(|| output.clone())?;
        let number = |key: &str| said[key].as_f64().with_context(|| format!("no {key} in {output}"));
        let (sent, completed) = (number("sent")?, number("completed")?);
        let seconds = number("seconds")?;
        let existing = input.existing(sent as u64) as f64;
        let planned = self.rate.map_or(0.0, |rate| f64::from(rate) * seconds);
        let fault = if sent < planned * KEPT {
            Some(format!("the load's core was busy: only {sent} of {planned:.0} queries were sent"))
        } else if sent != completed && !may_lose {
            Some(format!("{} of {sent} queries lost", sent - completed))
        } else if sent == completed && number("existing")? != existing {
            Some(format!("{} names exist instead of {existing}", number("existing")?))
        } else if number("wrong")? > 0.0 {
            Some(format!("{} wrong replies", number("wrong")?))
        } else {
            None
        };
        let outcome = Outcome {
            completed: completed as u64,
            seconds,
            latency_seconds: number("latency")?,
            reply_bytes: 0.0,
            fault,
        };
        Ok((outcome, 100.0 * (sent - completed) / sent.max(1.0)))
    }
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
    waited: Duration,
}

/// The client. Where it runs, the pod's addresses must be.
pub(crate) fn be(plan: &Churn) -> Result<()> {
    let queries = mix::read(&plan.input)?;
    ensure!(!queries.is_empty(), "no questions");
    let mut client =
        Client { queries, server: plan.server, epoll: Epoll::new()?, pending: Vec::new(), waiting: 0 };
    let (tally, seconds) = client.run(Duration::from_secs(plan.seconds.into()), plan.rate)?;
    let latency = tally.waited.as_secs_f64() / tally.completed.max(1) as f64;
    let said = json!({
        "sent": tally.sent, "completed": tally.completed, "existing": tally.existing, "wrong": tally.wrong,
        "seconds": seconds, "latency": latency,
    });
    println!("{said}");
    Ok(())
}

struct Client {
    queries: Vec<Vec<u8>>,
    server: SocketAddr,
    epoll: Epoll,
    /// By descriptor.
    pending: Vec<Option<Pending>>,
    waiting: u64,
}

impl Client {
    fn run(&mut self, time: Duration, rate: Option<u32>) -> Result<(Tally, f64)> {
        let mut tally = Tally::default();
        let mut order = VecDeque::new();
        let mut ready = Vec::new();
        let start = Instant::now();
        let mut sending = Duration::ZERO;
        while sending == Duration::ZERO || self.waiting > 0 {
            let now = start.elapsed();
            if now < time {
                let due = match rate {
                    Some(rate) => (now.as_secs_f64() * f64::from(rate)) as u64 - tally.sent,
                    None => OUTSTANDING - self.waiting,
                };
                for _ in 0..due {
                    order.push_back((self.ask(tally.sent)?, tally.sent));
                    tally.sent += 1;
                }
            } else if sending == Duration::ZERO {
                sending = now;
            }
            self.epoll.wait(&mut ready, LOOK)?;
            for &fd in &ready {
                self.take(fd, &mut tally)?;
            }
            self.give_up(&mut order);
        }
        Ok((tally, sending.as_secs_f64()))
    }

    /// Sends a query from a new socket, whose port the kernel picks.
    fn ask(&mut self, number: u64) -> Result<RawFd> {
        let from = SocketAddr::from((pod_address((number % u64::from(POD_ADDRESSES)) as u8), 0));
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), None)?;
        socket.bind(&from.into())?;
        socket.connect(&self.server.into())?;
        let index = (number % self.queries.len() as u64) as usize;
        let query = &mut self.queries[index];
        query[..2].copy_from_slice(&(number as u16).to_be_bytes());
        let socket = UdpSocket::from(socket);
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
    fn take(&mut self, fd: RawFd, tally: &mut Tally) -> Result<()> {
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
            0 if is_reply => tally.existing += 1,
            3 if is_reply => {}
            _ => tally.wrong += 1,
        }
        tally.completed += 1;
        tally.waited += pending.sent.elapsed();
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
