//! The connections to one server, those being opened, and the queries that wait for room on them.
//!
//! Queries go breadth first: CoreDNS answers those of one connection one after the other. A connection is
//! judged by what it brings, since one address may hide several servers: one that has been silent while it
//! owes answers is the last choice, and a query that is asked again goes by a connection that has brought
//! something since, or by a new one.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::{Instant, timeout};

use super::auto::Ceiling;
use super::connection::{Broken, Connection, Owner};
use super::pace::Pace;
use super::queue::{Queue, Source, Ticket, fits};
use super::server::Settings;
use super::tls;
use super::transport::Link;
use super::{Cause, Counts};
use crate::clock;
use crate::wire::key::Key;

/// A SYN is repeated after 1 s (RFC 6298 §2): what takes longer was lost twice.
const CONNECT: Duration = Duration::from_millis(1500);
/// A connection that takes longer than this to open may be on its way to a server that is gone, behind an address
/// that hides others: one more is opened beside it while queries wait.
const CONNECT_LATE: Duration = Duration::from_millis(100);
/// How many may be that late: each is an entry in connection tracking for two minutes.
const CONNECTS_LATE: usize = 3;
/// How often a connection is tried at once when it is refused. Behind an address that hides several servers, half of
/// which are gone, one connection in 64 fails then.
const CONNECTS_REFUSED: u32 = 6;
/// A connection on which nothing has been asked yet is closed after this, at the next look: there is one a second, and
/// CoreDNS closes it after 3 s.
const UNUSED: Duration = Duration::from_millis(1900);
/// Queries may be put on one connection, instead of on several, as long as they are expected to be answered
/// within this: fewer writes, and nobody notices.
const TOGETHER: Duration = Duration::from_micros(200);

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

/// A probe's connection, which is not wanted unless it has answered.
struct Trial(Arc<Connection>);

impl Drop for Trial {
    fn drop(&mut self) {
        if !self.0.has_answered() {
            self.0.cut();
        }
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

    /// Asks by a new connection, which is kept if it answers, and ends at once if it does not. `reached` tells
    /// that it was opened.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn probe(
        self: &Arc<Self>,
        key: &Key,
        edns_size: Option<u16>,
        reached: &AtomicBool,
    ) -> Result<(), Cause> {
        let connection = Trial(self.start(self.open_stream().await?));
        reached.store(true, Ordering::Relaxed);
        let place = self.take(Arc::clone(&connection.0));
        place.ask(key, edns_size).await.map_err(|Broken| Cause::Closed)?;
        {
            let mut state = self.usable();
            if self.has_room(&state) {
                state.open.push(Arc::clone(&connection.0));
            }
        }
        self.room();
        Ok(())
    }

    /// A stream that takes queries. To be refused costs next to nothing, and the next one may lead to another server.
    async fn open_stream(&self) -> Result<Link, Cause> {
        let mut left = CONNECTS_REFUSED;
        loop {
            left -= 1;
            match self.open_stream_once().await {
                Err((Cause::Connect, true)) if left > 0 => {}
                Err((cause, _)) => return Err(cause),
                Ok(link) => return Ok(link),
            }
        }
    }

    /// The same once; an error says whether it was quick.
    async fn open_stream_once(&self) -> Result<Link, (Cause, bool)> {
        let connects = &self.counts.connects;
        let (counter, stream) = match timeout(CONNECT, self.settings.network.connect(self.addr)).await {
            Ok(Ok(stream)) => match &self.tls {
                Some(tls) => match tls.handshake(stream).await {
                    Ok(stream) => (&connects.ok, Ok(stream)),
                    Err(cause) => (&connects.tls, Err((cause, false))),
                },
                None => (&connects.ok, Ok(stream)),
            },
            Ok(Err(_)) => (&connects.failed, Err((Cause::Connect, true))),
            Err(_) => (&connects.timeout, Err((Cause::Connect, false))),
        };
        counter.add(1);
        stream
    }

    /// A connection's life begins.
    fn start(self: &Arc<Self>, link: Link) -> Arc<Connection> {
        // 10 % more or less, so that connections opened together do not end together.
        let age = self.settings.connections.max_age.mul_f64(rand::random_range(0.9..1.1));
        let (counts, late) = (Arc::clone(&self.counts), self.settings.late.clone());
        let owner = Arc::downgrade(self) as Weak<dyn Owner>;
        self.alive.fetch_add(1, Ordering::Relaxed);
        Arc::new(Connection::start(link, Instant::now() + age, owner, counts, late))
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
                let place = self.take(best);
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
        self.has_room(state) && (is_bare || alive < 2 * self.settings.connections.max)
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
        let cost = |of: &&Arc<Connection>| {
            let wait = of.expected_wait();
            let wait = if wait < TOGETHER { Duration::ZERO } else { wait };
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
            let mut next = 0;
            while let Some(&(proof, ..)) = state.again.get(next) {
                match self.choose(&state, now, Some(proof)) {
                    Some(best) if best.unanswered() == 0 || opening == 0 => {
                        let call = state.again.remove(next).map(|(.., call)| call);
                        gone.extend(call.and_then(|call| call.send(Ok(self.take(best))).err()));
                    }
                    _ => next += 1,
                }
            }
            // Each of the connections that are being opened gets its part.
            while !state.queue.is_empty()
                && let Some(best) = self.choose(&state, now, None)
                && (opening == 0 || best.unanswered() * (opening + 1) <= state.queue.len())
                && let Some(call) = state.queue.pop()
            {
                state.rate.departed(now);
                gone.extend(call.send(Ok(self.take(best))).err());
            }
            self.count_waiting(&state);
        }
    }

    /// Opens one more in the background, as long as the bound allows it.
    fn open_another(self: &Arc<Self>, state: &mut State) {
        if self.may_open(state) {
            state.opening += 1;
            tokio::spawn(Arc::clone(self).open_one());
        }
    }

    async fn open_one(self: Arc<Self>) {
        let opening = self.open_stream();
        tokio::pin!(opening);
        let opened = tokio::select! {
            opened = &mut opening => opened,
            () = tokio::time::sleep(CONNECT_LATE) => {
                {
                    let mut state = self.state();
                    state.late += 1;
                    if state.late < CONNECTS_LATE && self.waiting.load(Ordering::Relaxed) > 0 {
                        self.open_another(&mut state);
                    }
                }
                self.room();
                let opened = opening.await;
                self.state().late -= 1;
                opened
            }
        };
        let (mut failed, mut cause) = (Vec::new(), Cause::Connect);
        let mut gone = Vec::new(); // given back outside the lock
        {
            let mut state = self.usable();
            state.opening -= 1;
            if opened.is_err() {
                self.meet_limit(&mut state, None);
            }
            match opened {
                Ok(link) => state.open.push(self.start(link)),
                Err(why) if state.opening == 0 => {
                    cause = why;
                    let (now, silence) = (Instant::now(), self.pace.silent_after());
                    for (proof, _, call) in std::mem::take(&mut state.again) {
                        match self.choose_unproven(&state, now, proof) {
                            Some(other) => gone.extend(call.send(Ok(self.take(other))).err()),
                            None => failed.push(call),
                        }
                    }
                    if state.open.iter().all(|connection| connection.is_stuck(now, silence)) {
                        failed.extend(std::iter::from_fn(|| state.queue.pop()));
                    }
                }
                Err(_) => {}
            }
            self.count_waiting(&state);
        }
        for call in failed {
            let _ = call.send(Err(cause));
        }
        self.room();
    }

    /// One was refused, or cut off before it brought anything: where others work, there are too many.
    fn meet_limit(&self, state: &mut State, number: Option<u64>) {
        let (now, silence) = (Instant::now(), self.pace.silent_after());
        let works = |of: &&Arc<Connection>| of.is_open() && of.has_answered() && !of.is_stuck(now, silence);
        let working = state.open.iter().filter(works).count();
        // A new one that is open may still be cut off, but is no reason to be refused the next.
        let stands = if number.is_some() { working } else { state.open.len() };
        if self.adapts
            && working > 0
            && let Some((most, pause)) = state.ceiling.refused(number, stands, clock::now())
        {
            let server = format_args!("auto://{}", self.addr);
            tracing::info!(%server, most, ?pause, "refuses more connections: no more are opened for now");
        }
    }

    /// One ended before it brought anything.
    pub fn was_cut_off(&self, number: u64) {
        self.meet_limit(&mut self.usable(), Some(number));
    }

    /// A new one has answered.
    pub fn answers(&self) {
        if self.adapts {
            self.state().ceiling.works();
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

    /// Nobody waits for one any more: there is another way.
    pub fn give_up(&self) {
        let mut calls = Vec::new();
        {
            let mut state = self.state();
            calls.extend(state.again.drain(..).map(|(.., call)| call));
            calls.extend(std::iter::from_fn(|| state.queue.pop()));
            self.count_waiting(&state);
        }
        for call in calls {
            let _ = call.send(Err(Cause::Connect));
        }
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

/// How fast queries leave the queue.
#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    departed: u32,
    last: Option<f64>,
}

impl Rate {
    /// As long as it is counted before it counts.
    const WINDOW: Duration = Duration::from_millis(500);

    fn departed(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let window = now.saturating_duration_since(since);
        if window >= Self::WINDOW {
            self.last = Some(f64::from(self.departed) / window.as_secs_f64());
            (self.since, self.departed) = (Some(now), 0);
        }
        self.departed += 1;
    }

    /// `None` while nothing is known: for the first half second, and when nothing has left for long.
    fn per_second(&self, now: Instant) -> Option<f64> {
        let since = self.since?;
        let stalled = now.saturating_duration_since(since) > Self::WINDOW * 4;
        if stalled { None } else { self.last }
    }
}
