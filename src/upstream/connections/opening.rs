//! Opening connections: by need and by probes, with what is known of those that were refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{CONNECTS_LATE, Connections, State};
use crate::clock;
use crate::upstream::Cause;
use crate::upstream::connection::{Broken, Connection, Owner};
use crate::upstream::transport::Link;
use crate::wire::key::Key;

/// A SYN is repeated after 1 s (RFC 6298 §2): what takes longer was lost twice.
const CONNECT: Duration = Duration::from_millis(1500);
/// A connection that takes longer than this to open may be on its way to a server that is gone, behind an address
/// that hides others: one more is opened beside it while queries wait.
const CONNECT_LATE: Duration = Duration::from_millis(100);
/// How often a connection is tried at once when it is refused. Behind an address that hides several servers, half of
/// which are gone, one connection in 64 fails then.
const CONNECTS_REFUSED: u32 = 6;

impl Connections {
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

    /// Opens one more in the background, as long as the bound allows it.
    pub(super) fn open_another(self: &Arc<Self>, state: &mut State) {
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
