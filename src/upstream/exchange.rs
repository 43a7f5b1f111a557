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
const TRIES: u32 = 3;
/// An answer that is later than this is asked for again, elsewhere where there is an elsewhere.
const PATIENCE: Duration = Duration::from_millis(1000);
/// The same for a server that was passed over until now, while another one works: whether it is back is no
/// client's burden.
const TRIAL: Duration = Duration::from_millis(250);

type Running = Pin<Box<dyn Future<Output = (usize, Result<Answer, Cause>)> + Send>>;

/// A question on its way.
pub(super) struct Asking<'a> {
    pool: &'a Pool,
    key: &'a Key,
    /// The pool's servers when it last looked.
    listed: Arc<Vec<Arc<Server>>>,
    /// All that were there while it was on its way.
    servers: Vec<Arc<Server>>,
    /// Of each server.
    tries: Vec<u32>,
    /// Those that answered with a failure: they would do so again.
    failed: Vec<bool>,
    running: FuturesUnordered<Running>,
    /// The tries behind `running`.
    open: Vec<Try>,
    attempts: Vec<Attempt>,
    /// When the last try counts as slow.
    slow_at: Instant,
    /// What a client is told if nothing better comes. A server's word says more than another one's silence.
    cause: Cause,
    /// Good answers of the pool when it began.
    answers_before: u64,
}

/// A try under way.
struct Try {
    number: usize,
    server: usize,
    started: Instant,
    /// It has been joined by another, or could have been.
    overdue: bool,
    sending: Arc<Sending>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(pool: &'a Pool, key: &'a Key) -> Self {
        let listed = pool.servers();
        Self {
            pool,
            key,
            tries: vec![0; listed.len()],
            failed: vec![false; listed.len()],
            servers: listed.to_vec(),
            listed,
            running: FuturesUnordered::new(),
            open: Vec::new(),
            attempts: Vec::new(),
            slow_at: Instant::now(),
            cause: Cause::NoServer,
            answers_before: pool.answers.load(Ordering::Relaxed),
        }
    }

    pub(super) async fn run(mut self, deadline: Instant) -> Exchange {
        let timer = tokio::time::sleep_until(deadline);
        tokio::pin!(timer);
        loop {
            if !self.is_promising() && !self.go_on() {
                self.give_up(None);
                return Exchange { result: Err(self.cause), attempts: self.attempts };
            }
            let due = deadline.min(self.slow_at);
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                biased; // an answer that is there counts, even if the deadline has come meanwhile
                Some((number, result)) = self.running.next() => {
                    if let Some(answer) = self.ended(number, result) {
                        return Exchange { result: Ok(answer), attempts: self.attempts };
                    }
                    if matches!(&*self.open, [open] if open.overdue) {
                        self.is_slow();
                    }
                }
                () = &mut timer => {
                    if Instant::now() >= deadline {
                        self.cut_off();
                        return Exchange { result: Err(self.cause), attempts: self.attempts };
                    }
                    self.is_slow();
                }
            }
        }
    }

    /// Whether there is a try under way that is worth waiting for. A failure RCODE is taken from one other
    /// server at most, and is a server's answer to all tries at it.
    fn is_promising(&self) -> bool {
        !self.has_failed_twice() && self.open.iter().any(|open| !self.failed[open.server])
    }

    fn has_failed_twice(&self) -> bool {
        self.failed.iter().filter(|&&failed| failed).count() > 1
    }

    /// Starts the next try. False when there is no point in another.
    fn go_on(&mut self) -> bool {
        let next = if self.has_failed_twice() { None } else { self.next() };
        next.map(|index| self.start(index)).is_some()
    }

    /// No answer for a while.
    fn is_slow(&mut self) {
        self.slow_at = Instant::now() + PATIENCE;
        let [running] = &mut *self.open else { return };
        running.overdue = true;
        let (current, sending) = (running.server, Arc::clone(&running.sending));
        let Some(index) = self.next() else { return };
        if sending.is_udp() {
            if index == current {
                return sending.repeat();
            }
            self.cut_off();
        }
        self.start(index);
    }

    /// Takes in the servers that have come meanwhile. Those that have left are asked no more.
    fn look_for_servers(&mut self) {
        let listed = self.pool.servers();
        if Arc::ptr_eq(&listed, &self.listed) {
            return;
        }
        let stays = |server: &Arc<Server>| listed.iter().any(|listed| Arc::ptr_eq(listed, server));
        for (server, tries) in self.servers.iter().zip(&mut self.tries) {
            *tries = if stays(server) { *tries } else { TRIES };
        }
        for server in listed.iter() {
            if !self.servers.iter().any(|known| Arc::ptr_eq(known, server)) {
                self.servers.push(Arc::clone(server));
                self.tries.push(0);
                self.failed.push(false);
            }
        }
        self.listed = listed;
    }

    /// The server of the next try; `None` when each was asked often enough.
    fn next(&mut self) -> Option<usize> {
        self.look_for_servers();
        let now = clock::now();
        // What a server has said is not checked with one that is known not to answer: the client would wait
        // for nothing.
        let second_opinion = self.failed.contains(&true);
        let candidate = |index: usize| {
            let server = &self.servers[index];
            let ejected = server.health.is_ejected(now);
            let passed_over = self.failed[index] || (ejected && second_opinion);
            let tries = if passed_over { TRIES } else { self.tries[index] };
            Candidate { ejected, tries, in_flight: server.in_flight() }
        };
        let index = match self.servers.len() {
            1 => (self.tries[0] < TRIES && !self.failed[0]).then_some(0)?,
            count => {
                let candidates: Vec<Candidate> = (0..count).map(candidate).collect();
                let turn = self.pool.turn.fetch_add(1, Ordering::Relaxed);
                let random = rand::random::<u32>() as usize;
                choose(self.pool.definition.policy, &candidates, TRIES, turn, random)?
            }
        };
        self.tries[index] += 1;
        let was_passed_over = self.servers[index].health.tried(now);
        let works = |(other, server): (usize, &Arc<Server>)| other != index && !server.health.is_ejected(now);
        let is_trial = was_passed_over && self.servers.iter().enumerate().any(works);
        self.slow_at = Instant::now() + if is_trial { TRIAL } else { PATIENCE };
        Some(index)
    }

    /// Asks a server. One that was asked before may have left the question on a dead connection.
    fn start(&mut self, index: usize) {
        let number = self.attempts.len() + self.open.len();
        let (server, key) = (Arc::clone(&self.servers[index]), self.key.clone());
        let sending = Arc::new(Sending::new(server.is_udp_first()));
        let again = self.tries[index] > 1;
        self.open.push(Try {
            number,
            server: index,
            started: Instant::now(),
            overdue: false,
            sending: Arc::clone(&sending),
        });
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
        if failed.is_none() {
            self.give_up(Some(done.server));
        }
        self.write_down(&done, failed);
        match (failed, result) {
            (None, Ok(answer)) => {
                self.pool.answered();
                Some(answer)
            }
            (Some(cause), _) => {
                self.failed[done.server] |= matches!(cause, Cause::Rcode(_));
                self.failed(cause);
                None
            }
            (None, Err(_)) => None,
        }
    }

    /// Writes down the tries that are given up, because one at the server `answered` was or because there is no
    /// point in waiting. A server that keeps being overtaken is passed over in the end, like one that fails.
    fn give_up(&mut self, answered: Option<usize>) {
        for open in std::mem::take(&mut self.open) {
            let was_slow = open.overdue || open.started.elapsed() >= PATIENCE;
            if was_slow && Some(open.server) != answered && !self.failed[open.server] {
                self.servers[open.server].health.failed(clock::now());
            }
            self.write_down(&open, Some(if was_slow { Cause::Timeout } else { Cause::GivenUp }));
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
        let is_word = |cause| matches!(cause, Cause::Rcode(_));
        if !is_word(self.cause) || is_word(cause) {
            self.cause = cause;
        }
        // While others are answered it is this name that fails, and the next answer is no recovery.
        if !is_word(cause) && self.pool.answers.load(Ordering::Relaxed) == self.answers_before {
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
