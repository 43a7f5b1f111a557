//! One question's way to an answer, inside a deadline: which server, how often, when a second time
//! elsewhere.
//!
//! A try that fails is followed by the next at once. One by a connection whose answer is late is joined by a
//! second one as long as the budget of hedges lasts, and in any case when its connection has gone silent;
//! the first answer counts. One by UDP repeats its datagram from the same port under the same ID, and gives
//! way when another server should be asked: two outstanding queries would help whoever guesses IDs
//! (RFC 5452 §5).

mod look;
mod tries;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tries::{Asked, Try};

use super::connections::Proof;
use super::health::{Candidate, choose};
use super::queue::Source;
use super::server::{Errand, Sending, Server};
use super::{Attempt, Cause, Exchange, Pool, Why};
use crate::clock;
use crate::wire::key::Key;
use crate::wire::response::{Answer, Kind};

/// dns-rules: tries of one flight at one server, repeated datagrams included.
const TRIES: u32 = 3;

/// A question on its way.
pub(super) struct Asking<'a> {
    pool: &'a Pool,
    key: &'a Key,
    source: Source,
    deadline: Instant,
    /// The pool's servers when it last looked.
    listed: Arc<Vec<Arc<Server>>>,
    /// All that were there while it was on its way.
    servers: Arc<Vec<Arc<Server>>>,
    /// What has been asked of each server.
    asked: Vec<Asked>,
    /// The tries under way, oldest first.
    open: Vec<Try>,
    tried: usize,
    /// It has been asked elsewhere because of silence.
    moved: bool,
    attempts: Vec<Attempt>,
    /// When the last try has to be looked at.
    wake: Instant,
    /// What a client is told if nothing better comes. A server's word says more than another one's silence.
    cause: Cause,
    /// Good answers of the pool when it began.
    answers_before: u64,
}

impl<'a> Asking<'a> {
    pub(super) fn new(pool: &'a Pool, key: &'a Key, source: Source, deadline: Instant) -> Self {
        let servers = pool.servers();
        pool.budget.earn();
        pool.moves.earn();
        Self {
            pool,
            key,
            source,
            deadline,
            asked: vec![Asked::default(); servers.len()],
            listed: Arc::clone(&servers),
            servers,
            open: Vec::new(),
            tried: 0,
            moved: false,
            attempts: Vec::new(),
            wake: deadline,
            cause: Cause::NoServer,
            answers_before: pool.answers.load(Ordering::Relaxed),
        }
    }

    pub(super) async fn run(mut self) -> Exchange {
        let timer = tokio::time::sleep_until(self.deadline);
        tokio::pin!(timer);
        loop {
            if !self.is_promising() && !self.go_on() {
                self.give_up(None);
                return Exchange { result: Err(self.cause), attempts: self.attempts };
            }
            let due = self.deadline.min(self.wake);
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                biased; // an answer that is there counts, even if the deadline has come meanwhile
                (index, result) = poll_fn(|cx| self.poll(cx)) => {
                    if let Some(answer) = self.ended(index, result) {
                        return Exchange { result: Ok(answer), attempts: self.attempts };
                    }
                }
                () = &mut timer => {
                    self.look_for_servers();
                    if Instant::now() >= self.deadline || self.is_hopeless() {
                        self.cut_off();
                        return Exchange { result: Err(self.cause), attempts: self.attempts };
                    }
                    self.look();
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Result<Answer, Cause>)> {
        for (index, open) in self.open.iter_mut().enumerate() {
            if let Poll::Ready(result) = open.answer.as_mut().poll(cx) {
                return Poll::Ready((index, result));
            }
        }
        Poll::Pending
    }

    /// Whether there is a try under way that is worth waiting for. A failure RCODE is taken from one other
    /// server at most, and is a server's answer to all tries at it.
    fn is_promising(&self) -> bool {
        !self.has_failed_twice() && self.open.iter().any(|open| !self.asked[open.server].failed)
    }

    fn has_failed_twice(&self) -> bool {
        self.asked.iter().filter(|asked| asked.failed).count() > 1
    }

    /// Whether nobody is there to answer, as probes have shown meanwhile.
    fn is_hopeless(&self) -> bool {
        self.listed.iter().all(|server| server.health.is_down())
    }

    /// Starts the next try. False when there is no point in another.
    fn go_on(&mut self) -> bool {
        let next = if self.has_failed_twice() { None } else { self.next() };
        let why = if self.tried == 0 { Why::First } else { Why::Failed };
        next.map(|index| self.start(index, why)).is_some()
    }

    /// Takes in the servers that have come meanwhile. Those that have left are asked no more.
    fn look_for_servers(&mut self) {
        let listed = self.pool.servers();
        if Arc::ptr_eq(&listed, &self.listed) {
            return;
        }
        let is_in =
            |list: &[Arc<Server>], server: &Arc<Server>| list.iter().any(|known| Arc::ptr_eq(known, server));
        for (server, asked) in self.servers.iter().zip(&mut self.asked) {
            asked.tries = if is_in(&listed, server) { asked.tries } else { TRIES };
        }
        for server in listed.iter() {
            if !is_in(&self.servers, server) {
                Arc::make_mut(&mut self.servers).push(Arc::clone(server));
                self.asked.push(Asked::default());
            }
        }
        self.listed = listed;
    }

    /// The server of the next try; `None` when each was asked often enough, or is known to be down.
    fn next(&mut self) -> Option<usize> {
        self.look_for_servers();
        // What a server has said is not checked with one that is known not to answer: the client would wait
        // for nothing.
        let second_opinion = self.asked.iter().any(|asked| asked.failed);
        let now = clock::now();
        let candidate = |index: usize| {
            let (server, asked) = (&self.servers[index], &self.asked[index]);
            let passed_over = server.health.is_passed_over();
            let out = asked.failed || server.health.is_down() || (passed_over && second_opinion);
            Candidate {
                passed_over,
                tries: if out { TRIES } else { asked.tries },
                load: server.load(),
                share: server.health.share(now),
            }
        };
        let index = match self.servers.len() {
            0 => return None,
            1 => {
                let (asked, health) = (&self.asked[0], &self.servers[0].health);
                (asked.tries < TRIES && !asked.failed && !health.is_down()).then_some(0)
            }
            count => {
                let candidates: Vec<Candidate> = (0..count).map(candidate).collect();
                let turn = self.pool.turn.fetch_add(1, Ordering::Relaxed);
                choose(self.pool.definition.policy, &candidates, TRIES, turn, rand::random())
            }
        };
        if index.is_none() && self.cause == Cause::NoServer && self.tried == 0 {
            self.cause = Cause::Connect;
        }
        self.asked[index?].tries += 1;
        index
    }

    /// Asks a server. One that was asked before may have left the question on a dead connection.
    fn start(&mut self, index: usize, why: Why) {
        let now = Instant::now();
        let (server, key) = (Arc::clone(&self.servers[index]), self.key.clone());
        let asked = &mut self.asked[index];
        let lane = server.is_auto().then(|| Arc::clone(asked.lane.get_or_insert_default()));
        let is_free = lane.as_ref().is_none_or(|lane| !lane.load(Ordering::Relaxed));
        let udp_first = is_free && (server.is_udp_first() || asked.no_tcp);
        let sending = Arc::new(Sending::new(udp_first).with(lane));
        let proof = asked.since.map(|since| {
            let by = |open: &Try| open.sending.sent().connection;
            let mut under_way = self.open.iter().filter(|open| open.server == index).map(by);
            let (not, ended) = match (under_way.next(), under_way.next()) {
                (None, _) => (asked.last, true),
                (Some(one), None) => ([one, asked.last[0]], false),
                (Some(one), Some(other)) => ([one, other], false),
            };
            Proof { since, not, ended }
        });
        asked.since.get_or_insert(now);
        let errand = Errand { source: self.source, proof, deadline: self.deadline };
        self.tried += 1;
        server.counts.tries[why as usize].add(1);
        let sent = Arc::clone(&sending);
        let answer = Box::pin(async move { server.ask(&key, &errand, &sent).await });
        self.open.push(Try {
            server: index,
            why,
            started: now,
            looks: 0,
            hedged: false,
            judged: false,
            sending,
            answer,
        });
        self.plan();
    }

    /// Writes down a try that ended, and gives the answer if it is good.
    fn ended(&mut self, index: usize, result: Result<Answer, Cause>) -> Option<Answer> {
        let done = self.open.remove(index);
        let server = &self.servers[done.server];
        self.asked[done.server].went_by(&done.sending);
        let failed = match &result {
            Ok(answer) => {
                // By UDP, and what TCP has to say is still awaited.
                if self.open.iter().any(|open| open.server == done.server && open.accuses_tcp(server))
                    && done.sending.sent().tcp == 0
                {
                    server.doubt();
                }
                let sent = done.sending.connection().map_or(done.started, |(_, at)| at);
                server.answered(sent.elapsed());
                if server.health.answered(clock::now()) {
                    tracing::info!(server = %server.label, "answers again");
                }
                match answer.kind {
                    Kind::Failure(code) => Some(Cause::Rcode(code)),
                    _ => None,
                }
            }
            Err(cause) => {
                self.was_no_answer(&done, *cause);
                Some(*cause)
            }
        };
        if failed.is_none() {
            if done.why == Why::Hedge {
                self.pool.hedges.won.increment(1);
            }
            self.give_up(Some(done.server));
        }
        self.write_down(&done, failed);
        match (failed, result) {
            (None, Ok(answer)) => {
                self.pool.answered();
                Some(answer)
            }
            (Some(cause), _) => {
                self.asked[done.server].failed |= matches!(cause, Cause::Rcode(_));
                self.failed(cause);
                self.look_at_once();
                None
            }
            (None, Err(_)) => None,
        }
    }

    /// A try ended without an answer: does that speak against its server? One that answers badly is there, and
    /// a connection that worked before may end for many reasons.
    fn was_no_answer(&mut self, done: &Try, cause: Cause) {
        let worked = done.sending.connection().is_some_and(|(connection, _)| connection.has_answered());
        if cause == Cause::Closed {
            // Others may have ended at the same moment, and not know yet.
            self.asked[done.server].since = Some(Instant::now());
        }
        match cause {
            Cause::Malformed | Cause::Truncated => {}
            Cause::Closed if worked => {
                let asked = &mut self.asked[done.server];
                if !std::mem::replace(&mut asked.spared, true) {
                    asked.tries = asked.tries.saturating_sub(1);
                }
            }
            // It takes no more connections, and answers on those that it has.
            Cause::Connect if self.servers[done.server].works_by_tcp() => {}
            Cause::Busy => self.asked[done.server].tries = TRIES,
            Cause::Connect | Cause::Closed | Cause::Certificate | Cause::Tls => {
                self.pool.has_failed(&self.servers[done.server])
            }
            _ => self.pool.is_silent(&self.servers[done.server], done.started),
        }
    }

    /// Writes down the tries that are given up, because one at the server `answered` was or because there is no
    /// point in waiting. A server that keeps being overtaken is passed over in the end, like one that fails.
    fn give_up(&mut self, answered: Option<usize>) {
        for index in 0..self.open.len() {
            if Some(self.open[index].server) != answered {
                let late = self.servers[self.open[index].server].pace.late_after();
                self.judge_after(index, late);
            }
        }
        for open in std::mem::take(&mut self.open) {
            let server = &self.servers[open.server];
            let waited = open.started.elapsed();
            let late = waited >= server.pace.late_after();
            // It took at least so long; but a dead connection's silence says nothing about what is usual.
            if late && !open.is_silent(server) {
                server.pace.observe(waited);
            }
            self.write_down(&open, Some(if late { Cause::Timeout } else { Cause::GivenUp }));
        }
    }

    /// Ends what is running for want of an answer.
    fn cut_off(&mut self) {
        for index in 0..self.open.len() {
            self.judge(index);
        }
        for open in std::mem::take(&mut self.open) {
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
            why: done.why,
            sent: done.sending.sent(),
            started: done.started,
            waited: done.sending.connection().map(|(_, at)| at.saturating_duration_since(done.started)),
            took: done.started.elapsed(),
            failed,
        });
    }
}
