//! One server process of the simulation: how it works off what it is asked.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use tokio::time::Instant;

/// Bytes of a DNS header.
const HEADER: usize = 12;

/// What is to be found at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It works.
    Yes,
    /// Packets to it and from it are dropped, its kernel's among them.
    Silent,
    /// Its kernel takes connections and data, the process stands still.
    Frozen,
    /// Nobody listens, and the kernel says so.
    Refuses,
}

/// How an endpoint works.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    /// The answers of one connection come one after the other, as CoreDNS gives them.
    pub(crate) serial: bool,
    /// Work on each query.
    pub(crate) base: Duration,
    /// Up to this much more, evenly.
    pub(crate) jitter: Duration,
    /// The share of queries that take `late_by` more.
    pub(crate) late: f64,
    pub(crate) late_by: Duration,
    /// Work on a name that begins with `slow`.
    pub(crate) slow_name: Duration,
    /// From us to it and back.
    pub(crate) rtt: Duration,
    /// Closes a connection that has had nothing to do for so long.
    pub(crate) idle: Duration,
    /// Closes a connection whose first query takes longer to come.
    pub(crate) first_query: Duration,
    /// The share of datagrams lost, each way.
    pub(crate) loss: f64,
}

impl Service {
    /// CoreDNS in a pod near by.
    pub(crate) fn serial(base_ms: u64) -> Self {
        Self {
            serial: true,
            base: Duration::from_millis(base_ms),
            jitter: Duration::ZERO,
            late: 0.0,
            late_by: Duration::ZERO,
            slow_name: Duration::from_secs(2),
            rtt: Duration::from_micros(200),
            idle: Duration::from_secs(10),
            first_query: Duration::from_secs(3),
            loss: 0.0,
        }
    }

    /// A server that works on all queries of a connection at once.
    pub(crate) fn concurrent(base_ms: u64) -> Self {
        Self { serial: false, ..Self::serial(base_ms) }
    }

    /// How long it works on a query.
    fn work(&self, query: &[u8], random: &mut StdRng) -> Duration {
        if query.get(HEADER + 1..HEADER + 5) == Some(b"slow") {
            return self.slow_name;
        }
        let late = if random.random_bool(self.late) { self.late_by } else { Duration::ZERO };
        self.base + self.jitter.mul_f64(random.random::<f64>()) + late
    }
}

/// A server process.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) service: Service,
    pub(crate) reach: Reach,
    /// When it became so.
    pub(crate) since: Instant,
    /// Queries sent to it, whether they arrived or not, but for those on `slow` names.
    pub(crate) asked: u64,
    /// Connections that it took.
    pub(crate) opened: u64,
    pub(crate) open: usize,
    pub(crate) most_open: usize,
    /// Queries of each connection that has ended.
    pub(crate) per_connection: Vec<u64>,
}

impl Endpoint {
    pub(crate) fn new(service: Service) -> Self {
        Self {
            service,
            reach: Reach::Yes,
            since: Instant::now(),
            asked: 0,
            opened: 0,
            open: 0,
            most_open: 0,
            per_connection: Vec::new(),
        }
    }

    /// When the answer to a query that was sent at `now` is back, and what it is. `free_at` is when the
    /// connection has done what came before, for a server that is serial.
    pub(crate) fn answer(
        &self,
        query: &[u8],
        now: Instant,
        free_at: &mut Instant,
        random: &mut StdRng,
    ) -> (Instant, Vec<u8>) {
        let way = self.service.rtt / 2;
        let work = self.service.work(query, random);
        let begin = if self.service.serial { (now + way).max(*free_at) } else { now + way };
        let done = begin + work;
        *free_at = done;
        (done + way, answer_to(query))
    }

    /// Counts a query.
    pub(crate) fn was_asked(&mut self, query: &[u8]) {
        if query.get(HEADER + 1..HEADER + 5) != Some(b"slow") {
            self.asked += 1;
        }
    }

    /// Whether a datagram is lost on its way.
    pub(crate) fn loses(&self, random: &mut impl Rng) -> bool {
        self.service.loss > 0.0 && random.random_bool(self.service.loss)
    }
}

/// An address that follows from the first label of a name, so that a mixed-up answer is seen. Each name of the
/// load ends its first label with a number.
pub(crate) fn address_of(label: &[u8]) -> [u8; 4] {
    let digits = label.iter().filter(|byte| byte.is_ascii_digit());
    let number = digits.fold(0_u32, |number, digit| number.wrapping_mul(10) + u32::from(digit - b'0'));
    number.to_be_bytes()
}

/// An answer with one address, without OPT.
fn answer_to(query: &[u8]) -> Vec<u8> {
    let label = usize::from(query[HEADER]);
    let address = address_of(&query[HEADER + 1..HEADER + 1 + label]);
    let mut end = HEADER;
    while query[end] != 0 {
        end += 1 + usize::from(query[end]);
    }
    let mut answer = query[..end + 5].to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
    answer.extend(address);
    answer
}
