//! The connections to one server, those being opened, and the queries that wait for room on them.
//!
//! Queries go breadth first: CoreDNS answers those of one connection one after the other. A connection is
//! judged by what it brings, since one address may hide several servers: one that has been silent while it
//! owes answers is the last choice, and a query that is asked again goes by a connection that has brought
//! something since, or by a new one.

mod opening;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::{Instant, timeout};

use super::auto::Ceiling;
use super::connection::{Broken, Connection, Owner};
use super::pace::Pace;
use super::queue::{Queue, Rate, Source, Ticket, fits};
use super::server::Settings;
use super::tls;
use super::{Cause, Counts};
use crate::clock;
use crate::wire::key::Key;

/// How many may be that late: each is an entry in connection tracking for two minutes.
const CONNECTS_LATE: usize = 3;
/// A connection on which nothing has been asked yet is closed after this, at the next look: there is one a second, and
/// CoreDNS closes it after 3 s.
const UNUSED: Duration = Duration::from_millis(1900);
/// Queries may be put on one connection, instead of on several, as long as they are expected to be answered
/// within this: fewer writes, and nobody notices.
const TOGETHER: Duration = Duration::from_micros(200);
/// Where all connections are busy, they may as long as that is expected within this many times of what is usual on
/// them: those with fewer take what comes next.
const BUSIER: u32 = 2;
/// A connection where more is expected than this is slow, and counts as this much in what is usual.
const SLOW: Duration = Duration::from_millis(5);

/// All connections to a server.
pub struct Connections {
    addr: SocketAddr,
    settings: Arc<Settings>,
    counts: Arc<Counts>,
    pace: Arc<Pace>,
    tls: Option<Arc<tls::Client>>,
    /// Whether it finds out how many the server stands.
    adapts: bool,
    state: Mutex<State>,
    /// Queries that wait, so that an answer need not take the lock to see that none does.
    waiting: AtomicUsize,
    /// Connections that have not ended, those included that have left the list and wait for their last answers.
    alive: AtomicUsize,
    began: Instant,
}

#[derive(Default)]
struct State {
    open: Vec<Arc<Connection>>,
    opening: usize,
    /// Of those, the ones that are taking long.
    late: usize,
    queue: Queue<Call>,
    /// Queries that are asked again.
    again: VecDeque<(Proof, u64, Call)>,
    next: u64,
    /// Answers, and how fast they have been coming lately.
    rate: Rate,
    ceiling: Ceiling,
}

/// What a connection must have shown to carry a query that got no answer by another.
#[derive(Debug, Clone, Copy)]
pub struct Proof {
    /// It has opened or brought an answer since then.
    pub since: Instant,
    /// It is none of these, by which it was asked before.
    pub not: [Option<u64>; 2],
    /// Those have ended their tries, so they are better than none.
    pub ended: bool,
}

impl Proof {
    fn is_given_by(&self, connection: &Connection) -> bool {
        !self.not.contains(&Some(connection.number)) && connection.has_brought_since(self.since)
    }
}

type Call = oneshot::Sender<Result<Place, Cause>>;

/// A query's place on a connection, held until its answer or until nobody waits for it any more.
pub struct Place {
    connection: Arc<Connection>,
    all: Arc<Connections>,
    /// Whether the connection had been used before.
    reused: bool,
    /// Whether the query was handed over.
    asked: bool,
}

impl Place {
    /// The connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Whether the connection had carried queries before.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Asks, and gives the response, whose ID and question match.
    ///
    /// # Errors
    /// [`Broken`] when the connection ended first.
    pub async fn ask(mut self, key: &Key, edns_size: Option<u16>) -> Result<Vec<u8>, Broken> {
        self.asked = true;
        self.connection.ask(key.clone(), edns_size).await.map_err(|_| Broken)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.leave(self.asked);
        self.all.room();
    }
}

/// A place in the queue, left when nobody waits any more.
struct Waiting<'a> {
    all: &'a Connections,
    at: Ticked,
}

enum Ticked {
    Queue(Ticket),
    Again(u64),
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state();
        match self.at {
            Ticked::Queue(ticket) => drop(state.queue.remove(ticket)),
            Ticked::Again(number) => state.again.retain(|(_, known, _)| *known != number),
        }
        self.all.count_waiting(&state);
    }
}

impl Connections {
    /// None yet. `adapts` where it is to be found out how many the server stands.
    pub fn new(
        addr: SocketAddr,
        settings: Arc<Settings>,
        counts: Arc<Counts>,
        pace: Arc<Pace>,
        tls: Option<Arc<tls::Client>>,
        adapts: bool,
    ) -> Arc<Self> {
        let (state, waiting, alive) = Default::default();
        Arc::new(Self {
            addr,
            settings,
            counts,
            pace,
            tls,
            adapts,
            state,
            waiting,
            alive,
            began: Instant::now(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The usable connections. Those that ended or are too old leave here; an old one goes on until its queries
    /// are answered.
    fn usable(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let now = Instant::now();
        state.open.retain(|connection| connection.is_open() && connection.retire_at > now);
        state
    }

    /// The most there may be at the moment.
    fn max(&self, state: &State) -> usize {
        state.ceiling.bound(self.settings.connections.max, clock::now())
    }

    fn count_waiting(&self, state: &State) {
        self.waiting.store(state.queue.len() + state.again.len(), Ordering::Relaxed);
    }

    /// Open connections.
    pub fn open(&self) -> usize {
        self.usable().open.len()
    }

    /// Queries that wait for room.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Queries whose answer is awaited, those that wait for room included.
    pub fn in_flight(&self) -> usize {
        let state = self.state();
        let sent: usize = state.open.iter().map(|connection| connection.in_flight()).sum();
        sent + state.queue.len() + state.again.len()
    }

    /// Queries that have not been answered, whoever waits, and those that wait for room.
    pub fn load(&self) -> usize {
        let state = self.state();
        let sent: usize = state.open.iter().map(|connection| connection.unanswered()).sum();
        sent + state.queue.len() + state.again.len()
    }

    /// Whether any of them brought an answer at `since` or later.
    pub fn have_answered_since(&self, since: Instant) -> bool {
        self.state().open.iter().any(|connection| connection.has_answered_since(since))
    }

    /// A place for a query of `source` that has this long to live. One that is asked again gets it on a connection
    /// that gives `proof`.
    ///
    /// # Errors
    /// Why there is none: nobody opens a connection, or the queue is too long for the time that is left.
    pub async fn place(
        self: &Arc<Self>,
        source: Source,
        proof: Option<Proof>,
        left: Duration,
    ) -> Result<Place, Cause> {
        let (call, place) = oneshot::channel();
        let waiting = {
            let mut state = self.usable();
            let now = Instant::now();
            let may_open = state.opening > state.late || self.may_open(&state);
            if (proof.is_some() || state.queue.is_empty())
                && let Some(best) = self.choose(&state, now, proof)
                && !(proof.is_some() && best.unanswered() > 0 && may_open)
            {
                let busy = best.unanswered() > 0;
                let works = !best.is_stuck(now, self.pace.silent_after());
                let place = self.take(best);
                let alive = self.alive.load(Ordering::Relaxed) + state.opening;
                if busy && works && alive < 2 * self.settings.connections.max {
                    self.make_room(&mut state, now); // dead ones must not keep new ones from being opened
                }
                if busy || state.open.len() < self.settings.connections.min {
                    self.open_another(&mut state);
                }
                return Ok(place);
            }
            let at = match proof {
                Some(proof)
                    if !self.make_room(&mut state, now)
                        && let Some(other) = self.choose_unproven(&state, now, proof) =>
                {
                    return Ok(self.take(other));
                }
                Some(proof) => {
                    let number = state.next;
                    state.next += 1;
                    state.again.push_back((proof, number, call));
                    Ticked::Again(number)
                }
                None if !state.fits(source, left, now) => return Err(Cause::Busy),
                None => {
                    if state.queue.is_empty() {
                        state.rate = Rate::default();
                    }
                    Ticked::Queue(state.queue.push(source, call))
                }
            };
            if state.opening < CONNECTS_LATE || state.opening < state.queue.len() {
                self.open_another(&mut state);
            }
            self.count_waiting(&state);
            Waiting { all: self, at }
        };
        let place = match proof {
            Some(proof) => self.pressing(place, proof).await,
            None => place.await,
        };
        drop(waiting);
        place.unwrap_or(Err(Cause::Connect))
    }

    /// Waits for a place with what is asked again: a connection that falls silent meanwhile makes room for it. Where
    /// there is no room for another, one that has shown nothing is better than none.
    async fn pressing(
        self: &Arc<Self>,
        mut place: oneshot::Receiver<Result<Place, Cause>>,
        proof: Proof,
    ) -> Result<Result<Place, Cause>, RecvError> {
        loop {
            if let Ok(place) = timeout(self.pace.silent_after(), &mut place).await {
                return place;
            }
            let mut state = self.usable();
            if state.opening > 0 {
                continue;
            }
            let now = Instant::now();
            if self.make_room(&mut state, now) {
                self.open_another(&mut state);
            } else if let Some(other) = self.choose_unproven(&state, now, proof) {
                return Ok(Ok(self.take(other)));
            }
        }
    }

    fn has_room(&self, state: &State) -> bool {
        state.open.len() + state.opening < self.max(state)
    }

    /// Whether one more may be opened now. Those that were let go of and wait for their last answers count as well, but
    /// do not keep the server from being asked at all.
    fn may_open(&self, state: &State) -> bool {
        let alive = self.alive.load(Ordering::Relaxed) + state.opening;
        let is_bare = state.open.is_empty() && state.opening == 0;
        self.has_room(state) && alive < self.settings.connections.max * if is_bare { 3 } else { 2 }
    }

    /// Whether there is room for a new connection. Where all that there may be are open, the one that has been
    /// silent longest leaves.
    fn make_room(&self, state: &mut State, now: Instant) -> bool {
        let silence = self.pace.silent_after();
        if self.has_room(state) {
            // One that leaves goes on until its last answers: where too many do, the others have to do.
            return state.opening > 0 || self.may_open(state);
        }
        let silent = state.open.iter().enumerate().filter(|(_, of)| of.is_stuck(now, silence));
        if let Some((longest, _)) = silent.max_by_key(|(_, of)| of.silent_for(now)) {
            state.open.swap_remove(longest);
            return state.opening > 0 || self.may_open(state);
        }
        state.opening > 0
    }

    /// The connection to use now: the one that is expected to answer first, those last that are silent. `None` if
    /// there is none with room, or only silent ones while another may be opened.
    fn choose(&self, state: &State, now: Instant, proof: Option<Proof>) -> Option<Arc<Connection>> {
        let limits = &self.settings.connections;
        let silence = self.pace.silent_after();
        let fits = |of: &&Arc<Connection>| {
            let proven = proof.is_none_or(|proof| proof.is_given_by(of) && !of.is_stuck(now, silence));
            of.is_open() && of.in_flight() < limits.in_flight && proven
        };
        let waits: Duration = state.open.iter().map(|of| of.expected_wait().min(SLOW)).sum();
        let all_are_busy = !self.may_open(state) && state.open.iter().all(|of| of.unanswered() > 0);
        let busier = if all_are_busy { waits * BUSIER / state.open.len().max(1) as u32 } else { TOGETHER };
        let together = busier.max(TOGETHER);
        let cost = |of: &&Arc<Connection>| {
            let wait = of.expected_wait();
            let wait = if wait < together { Duration::ZERO } else { wait };
            (of.is_stuck(now, silence), wait, Reverse(of.has_unwritten()), of.unanswered(), of.last_turn())
        };
        let best = state.open.iter().filter(fits).min_by_key(cost)?;
        let may_open = state.opening > 0 || self.may_open(state);
        (!(best.is_stuck(now, silence) && may_open)).then(|| Arc::clone(best))
    }

    /// The same at the limit of connections: any other one, else one that has ended its try badly, else a silent one.
    fn choose_unproven(&self, state: &State, now: Instant, proof: Proof) -> Option<Arc<Connection>> {
        let other = self.choose(state, now, Some(Proof { since: self.began, ..proof }));
        let same = || self.choose(state, now, Some(Proof { not: [None; 2], ..proof }));
        let is_known = |of: &Arc<Connection>| proof.not.contains(&Some(of.number));
        let silent = || self.choose(state, now, None).filter(|of| proof.ended || !is_known(of));
        other.or_else(|| if proof.ended { same() } else { None }).or_else(silent)
    }

    fn take(self: &Arc<Self>, connection: Arc<Connection>) -> Place {
        let reused = connection.is_used();
        connection.enter();
        Place { connection, all: Arc::clone(self), reused, asked: false }
    }

    /// There may be room: places go to those who wait.
    fn room(self: &Arc<Self>) {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut gone = Vec::new(); // a place that nobody takes is given back outside the lock
        {
            let mut state = self.usable();
            let now = Instant::now();
            let opening = state.opening - state.late;
            let (mut next, mut served) = (0, true);
            while std::mem::take(&mut served) {
                // What is asked again and what is asked for the first time take turns.
                while let Some(&(proof, ..)) = state.again.get(next)
                    && !served
                {
                    match self.choose(&state, now, Some(proof)) {
                        Some(best) if best.unanswered() == 0 || opening == 0 => {
                            let call = state.again.remove(next).map(|(.., call)| call);
                            gone.extend(call.and_then(|call| call.send(Ok(self.take(best))).err()));
                            served = true;
                        }
                        _ => next += 1,
                    }
                }
                // Each of the connections that are being opened gets its part.
                if !state.queue.is_empty()
                    && let Some(best) = self.choose(&state, now, None)
                    && (opening == 0 || best.unanswered() * (opening + 1) <= state.queue.len())
                    && let Some(call) = state.queue.pop()
                {
                    state.rate.departed(now);
                    gone.extend(call.send(Ok(self.take(best))).err());
                    served = true;
                }
            }
            self.count_waiting(&state);
        }
    }

    /// Whether there are some that bring answers.
    pub fn work(&self) -> bool {
        let (now, silence) = (Instant::now(), self.pace.silent_after());
        self.usable().open.iter().any(|of| of.has_answered() && !of.is_stuck(now, silence))
    }

    /// Whether one of them has ever answered.
    pub fn have_answered(&self) -> bool {
        self.usable().open.iter().any(|of| of.has_answered())
    }

    /// Whether one owes an answer and has brought none for so long.
    pub fn is_one_silent(&self, patience: Duration) -> bool {
        let now = Instant::now();
        self.state().open.iter().any(|of| of.unanswered() > 0 && of.silent_for(now) >= patience)
    }

    /// Lets go of connections that nothing has used for a while, before the server does, and of those
    /// on which nothing has been answered for `patience`. True if one owes answers and has brought none for `silence`.
    pub fn tidy(self: &Arc<Self>, patience: Duration, silence: Duration) -> bool {
        let now = Instant::now();
        let idle = self.settings.connections.idle;
        let mut silent = false;
        self.usable().open.retain(|connection| {
            let most = if connection.is_used() { idle } else { idle.min(UNUSED) };
            silent |= connection.is_stuck(now, silence);
            connection.idle_for(now) < most && !connection.is_stuck(now, patience)
        });
        self.room();
        silent
    }
}

impl Owner for Connections {
    fn ended(self: Arc<Self>) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
        self.room();
        let mut state = self.usable();
        if self.waiting.load(Ordering::Relaxed) > 0 && state.opening == 0 {
            self.open_another(&mut state);
        }
    }
}

impl State {
    /// Whether a query of `source` that is put into the queue now is reached in time, as far as one can tell.
    fn fits(&self, source: Source, left: Duration, now: Instant) -> bool {
        match self.rate.per_second(now) {
            // Half of the time, since the answer takes some too, and nobody is helped by queries sent too late for it.
            Some(rate) if !self.queue.is_empty() => fits(self.queue.waiting_before(source), rate, left / 2),
            _ => true,
        }
    }
}
