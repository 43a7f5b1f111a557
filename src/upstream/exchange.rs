//! One question's way to an answer, inside a deadline: which server, how often, when a second time
//! elsewhere.
//!
//! A try that fails is followed by the next at once. One by TCP that is merely slow is joined by a
//! second one. One by UDP repeats its datagram from the same port under the same ID, and gives way when
//! another server should be asked: two outstanding queries would help whoever guesses IDs
//! (RFC 5452 §5).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::health::{Candidate, choose};
use super::server::{Sending, Server};
use super::{Attempt, Cause, Exchange, Pool};
use crate::clock;
use crate::wire::key::Key;
use crate::wire::response::{Answer, Kind};

/// dns-rules: tries of one flight at one server, repeated datagrams included.
pub(super) const TRIES: u32 = 3;
/// An answer that is later than this is asked for again, elsewhere where there is an elsewhere.
pub(super) const PATIENCE: Duration = Duration::from_millis(1000);

type Running = Pin<Box<dyn Future<Output = (usize, Result<Answer, Cause>)> + Send>>;

/// A question on its way.
pub(super) struct Asking<'a> {
    pool: &'a Pool,
    key: &'a Key,
    servers: Arc<Vec<Arc<Server>>>,
    /// Of each server.
    tries: Vec<u32>,
    running: FuturesUnordered<Running>,
    /// The tries behind `running`.
    open: Vec<Try>,
    attempts: Vec<Attempt>,
    last: Cause,
}

/// A try under way.
struct Try {
    number: usize,
    server: usize,
    started: Instant,
    sending: Arc<Sending>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(pool: &'a Pool, key: &'a Key) -> Self {
        let servers = pool.servers();
        Self {
            pool,
            key,
            tries: vec![0; servers.len()],
            servers,
            running: FuturesUnordered::new(),
            open: Vec::new(),
            attempts: Vec::new(),
            last: Cause::NoServer,
        }
    }

    pub(super) async fn run(mut self) -> Exchange {
        let started = Instant::now();
        let deadline = started + self.pool.definition.timeout;
        let timer = tokio::time::sleep_until(deadline.min(started + PATIENCE));
        tokio::pin!(timer);
        loop {
            if self.running.is_empty() && !self.go_on() {
                return Exchange { result: Err(self.last), attempts: self.attempts };
            }
            tokio::select! {
                Some((number, result)) = self.running.next() => {
                    if let Some(answer) = self.ended(number, result) {
                        return Exchange { result: Ok(answer), attempts: self.attempts };
                    }
                }
                () = &mut timer => {
                    if Instant::now() >= deadline {
                        self.cut_off();
                        return Exchange { result: Err(Cause::Timeout), attempts: self.attempts };
                    }
                    self.is_slow();
                    timer.as_mut().reset(deadline.min(Instant::now() + PATIENCE));
                }
            }
        }
    }

    /// Starts the next try. False when there is no point in another.
    fn go_on(&mut self) -> bool {
        let failures = self.attempts.iter().filter(|attempt| attempt.answered_failure()).count();
        // A failure RCODE is taken from one other server at most.
        let next = if failures > 1 { None } else { self.next() };
        next.map(|index| self.start(index)).is_some()
    }

    /// No answer for a while.
    fn is_slow(&mut self) {
        let [running] = &*self.open else { return };
        let (current, by_udp) = (running.server, running.sending.is_udp());
        let Some(index) = self.next() else { return };
        if by_udp {
            if index == current {
                return; // it repeats itself
            }
            self.cut_off();
        }
        self.start(index);
    }

    /// The server of the next try; `None` when each was asked often enough.
    fn next(&mut self) -> Option<usize> {
        let now = clock::now();
        let candidate = |(server, &tries): (&Arc<Server>, &u32)| Candidate {
            ejected: server.health.is_ejected(now),
            tries,
            in_flight: server.in_flight(),
        };
        // A server that answered with a failure would do so again; one other may know better.
        let max_tries = if matches!(self.last, Cause::Rcode(_)) { 1 } else { TRIES };
        let index = match &**self.servers {
            [_] => (self.tries[0] < max_tries).then_some(0)?,
            servers => {
                let candidates: Vec<Candidate> =
                    servers.iter().zip(self.tries.iter()).map(candidate).collect();
                let turn = self.pool.turn.fetch_add(1, Ordering::Relaxed);
                let random = rand::random::<u32>() as usize;
                choose(self.pool.definition.policy, &candidates, max_tries, turn, random)?
            }
        };
        self.tries[index] += 1;
        self.servers[index].health.tried(now);
        Some(index)
    }

    /// Asks a server. One that was asked before may have left the question on a dead connection.
    fn start(&mut self, index: usize) {
        let number = self.attempts.len() + self.open.len();
        let (server, key) = (Arc::clone(&self.servers[index]), self.key.clone());
        let sending = Arc::new(Sending::new(server.udp));
        let again = self.tries[index] > 1;
        self.open.push(Try { number, server: index, started: Instant::now(), sending: Arc::clone(&sending) });
        self.running.push(Box::pin(async move { (number, server.ask(&key, again, &sending).await) }));
    }

    /// Writes down a try that ended, and gives the answer if it is good.
    fn ended(&mut self, number: usize, result: Result<Answer, Cause>) -> Option<Answer> {
        let at = self.open.iter().position(|open| open.number == number)?;
        let done = self.open.swap_remove(at);
        let server = &self.servers[done.server];
        let failed = match &result {
            Ok(answer) => {
                server.health.answered();
                server.durations.observe(done.started.elapsed(), 1);
                match answer.kind {
                    Kind::Failure(code) => Some(Cause::Rcode(code)),
                    _ => None,
                }
            }
            Err(cause) => {
                // Who answers, if badly, is there: no reason to pass it over for all other names.
                if *cause != Cause::Malformed {
                    server.health.failed(clock::now());
                }
                Some(*cause)
            }
        };
        self.write_down(&done, failed);
        match (failed, result) {
            (None, Ok(answer)) => {
                self.pool.answered();
                Some(answer)
            }
            (Some(cause), _) => {
                self.failed(cause);
                None
            }
            (None, Err(_)) => None,
        }
    }

    /// Ends what is running for want of an answer.
    fn cut_off(&mut self) {
        self.running.clear();
        for open in std::mem::take(&mut self.open) {
            self.servers[open.server].health.failed(clock::now());
            self.write_down(&open, Some(Cause::Timeout));
            self.failed(Cause::Timeout);
        }
    }

    fn failed(&mut self, cause: Cause) {
        self.last = cause;
        if !matches!(cause, Cause::Rcode(_)) {
            self.pool.failing.store(true, Ordering::Relaxed);
        }
    }

    fn write_down(&mut self, done: &Try, failed: Option<Cause>) {
        let server = &self.servers[done.server];
        if let Some(cause) = failed {
            server.counts.failures[cause.index()].add(1);
        }
        self.attempts.push(Attempt {
            server: Arc::clone(&server.label),
            sent: done.sending.sent(),
            took: done.started.elapsed(),
            failed,
        });
    }
}
