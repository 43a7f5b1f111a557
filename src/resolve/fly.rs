//! One flight, from its first query to the answer of everybody who waits, and answers that come too late
//! for it.

use std::pin::pin;
use std::sync::Arc;

use super::Resolver;
use super::flight::{Port, ReplyTo, Told, Waiter};
use super::view::Zone;
use crate::cache::entry::{Entry, Style, Ttls};
use crate::cache::failure::Cause;
use crate::clock;
use crate::config::StaleMode;
use crate::metrics::{Dropped, Source};
use crate::upstream::{self, Attempt, Exchange, LateAnswer, queue};
use crate::wire::edns::ExtendedError;
use crate::wire::key::Key;
use crate::wire::query::{OurEdns, Query};
use crate::wire::response::{Answer, Kind};
use crate::wire::{flag, rcode, u16_at};

impl Resolver {
    /// One flight, from its first query to the answer of everybody who waits. The source is that of its first query.
    pub(super) async fn fly(
        self: Arc<Self>,
        key: Key,
        zone: Arc<Zone>,
        source: queue::Source,
        expired: Option<Arc<Entry>>,
    ) {
        let flight = Landing { resolver: &self, key: &key, zone: &zone };
        let mut exchange = pin!(zone.pool.exchange(&key, source)); // once, since it is most of a flight's memory
        let now = clock::now();
        // A refresh ahead of expiry has an entry that is still fresh, and may expire on the way.
        let stale = expired.filter(|entry| {
            zone.stale.is_some()
                && (entry.remaining(now).is_some() || zone.may_serve_stale(entry, now).is_some())
        });
        let done = match (&stale, &zone.stale) {
            (Some(entry), Some(rule)) if rule.mode == StaleMode::Timer => {
                let patience = entry.remaining(now).unwrap_or_default() + rule.client_response;
                tokio::select! {
                    done = exchange.as_mut() => done,
                    () = tokio::time::sleep(patience) => {
                        if zone.may_serve_stale(entry, clock::now()).is_some() {
                            let waiting = self.flights.turn_late(&key);
                            self.answer_without(&zone, Some(entry), waiting, None, &[]);
                        }
                        exchange.as_mut().await
                    }
                }
            }
            _ => exchange.await,
        };
        flight.land(stale, done);
    }

    /// Keeps a good answer, and forgets that there was none.
    fn keep(&self, key: &Key, zone: &Zone, answer: Answer) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(answer, &zone.bounds, clock::now()));
        if entry.life() > 0 {
            self.cache.store(key.clone(), Arc::clone(&entry));
        } else {
            self.cache.remove(key);
        }
        self.failures.clear(key);
        zone.answered();
        entry
    }

    /// Keeps an answer to a query that was given up, unless it is a failure. It goes to those who wait for the
    /// next flight as well, instead of the answer to their own query or none.
    /// It goes nowhere if its zone asks other servers by now.
    pub fn keep_late(&self, late: LateAnswer) {
        let view = self.view();
        let zone = view.zone_for(&late.key).filter(|zone| zone.pool.has_asked(&late));
        let LateAnswer { key, message, asked, .. } = late;
        let truncated = u16_at(&message, 2).is_ok_and(|flags| flags & flag::TC != 0);
        if let (Some(zone), false, Ok(answer)) = (zone, truncated, Answer::read(message, &key))
            && !matches!(answer.kind, Kind::Failure(_))
        {
            zone.pool.answered();
            let now = clock::now();
            let is_newer =
                |entry: &Arc<Entry>| entry.remaining(now).is_some() && entry.age(now) < asked.elapsed();
            let newer = self.cache.get(&key).filter(is_newer);
            let entry = newer.unwrap_or_else(|| self.keep(&key, zone, answer));
            self.answer_fresh(zone, &entry, self.flights.take_waiting(&key), &[]);
        }
    }

    /// Answers those who waited for what has just come.
    fn answer_fresh(&self, zone: &Zone, entry: &Entry, waiters: Vec<Waiter>, attempts: &[Attempt]) {
        let rotate = self.view().rotate;
        for waiter in waiters {
            self.send(zone, waiter, attempts, |query, ours, out| {
                let style = Style { edns: ours, rotate, error: None };
                entry.write(query, Ttls::Aged(0), &style, out);
                (Source::Miss, entry.rcode())
            });
        }
    }

    /// Answers those for whom there is nothing fresh: stale if there is such an entry, else a failure.
    pub(super) fn answer_without(
        &self,
        zone: &Zone,
        stale: Option<&Entry>,
        waiters: impl IntoIterator<Item = Waiter>,
        cause: Option<upstream::Cause>,
        attempts: &[Attempt],
    ) {
        let now = clock::now();
        let rotate = self.view().rotate;
        let stale = stale.and_then(|entry| zone.may_serve_stale(entry, now));
        let (code, error) = cause.map_or((rcode::SERVFAIL, ExtendedError::NotReady), failure_answer);
        for waiter in waiters {
            self.send(zone, waiter, attempts, |query, ours, out| match &stale {
                Some(entry) => (Source::Stale, zone.write_stale(entry.entry, query, ours, rotate, out)),
                None => {
                    query.write_empty(code, &ours, Some(error), out);
                    (Source::Failure, code)
                }
            });
        }
    }

    /// Writes and sends one waiter's answer. Those that go out by one socket are sent together.
    fn send(
        &self,
        zone: &Zone,
        waiter: Waiter,
        attempts: &[Attempt],
        mut write: impl FnMut(&Query<'_>, OurEdns, &mut Vec<u8>) -> (Source, u16),
    ) {
        let Waiter { asked, to } = waiter;
        let to = match to {
            ReplyTo::Witness(asker) => {
                let _ = asker.send(attempts.to_vec()); // no answer, so nothing to count
                return;
            }
            to => to,
        };
        let shared = self.metrics.shared();
        let mut write = |out: &mut Vec<u8>| {
            let (source, code) = write(&asked.query(), asked.ours, out);
            zone.metrics.response(shared, source, code);
            source
        };
        let mut message = Vec::new();
        let (source, sent) = match to {
            ReplyTo::Udp { port, peer, .. } => {
                if port.put(peer, asked.received, &mut write) {
                    let parcel = Parcel(port);
                    self.runtime.spawn(async move { drop(parcel) }); // behind the flights that land with this one
                }
                return;
            }
            ReplyTo::Stream(client) => (write(&mut message), client.deliver(&message)),
            ReplyTo::Trace(asker) => {
                let source = write(&mut message);
                (source, asker.send(Told { message, source, attempts: attempts.to_vec() }).is_ok())
            }
            ReplyTo::Witness(_) => return,
        };
        if !sent {
            self.metrics.slot(shared).dropped(Dropped::Send);
        }
        let took = clock::now().saturating_duration_since(asked.received);
        self.metrics.slot(shared).took(source, took, 1);
    }
}

/// Answers that wait to be sent. They are, even if the runtime ends before.
struct Parcel(Arc<dyn Port>);

impl Drop for Parcel {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Removes a flight even if its task is dropped half-way (the runtime ends, or a panic), so that its
/// key can be asked again and nobody waits for ever.
struct Landing<'a> {
    resolver: &'a Resolver,
    key: &'a Key,
    zone: &'a Zone,
}

impl Landing<'_> {
    /// Keeps what came, and answers everybody.
    fn land(self, stale: Option<Arc<Entry>>, done: Exchange) {
        let (resolver, key, zone) = (self.resolver, self.key, self.zone);
        zone.count(&done.attempts);
        match done.result {
            Ok(answer) => {
                let entry = resolver.keep(key, zone, answer);
                resolver.answer_fresh(zone, &entry, self.end(), &done.attempts);
            }
            Err(cause) => {
                let remembered = match cause {
                    upstream::Cause::Rcode(code) => Cause::Rcode(code),
                    _ => Cause::Transport,
                };
                zone.failed(remembered);
                let generation = zone.pool.generation();
                resolver.failures.store(key, remembered, generation, &zone.times, clock::now());
                let waiters = self.end();
                resolver.answer_without(zone, stale.as_deref(), waiters, Some(cause), &done.attempts);
            }
        }
    }

    /// Ends the flight and gives those who wait. From here on the key may belong to a new flight, which
    /// is not ours to remove.
    fn end(self) -> Vec<Waiter> {
        let this = std::mem::ManuallyDrop::new(self);
        this.resolver.flights.land(this.key)
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let waiters = self.resolver.flights.land(self.key);
        self.resolver.answer_without(self.zone, None, waiters, None, &[]);
    }
}

/// The RCODE that a client gets for a failure, and its explanation.
fn failure_answer(cause: upstream::Cause) -> (u16, ExtendedError) {
    use upstream::Cause as Of;
    match cause {
        Of::Connect | Of::Timeout | Of::NoServer | Of::Certificate | Of::Tls => {
            (rcode::SERVFAIL, ExtendedError::NoReachableAuthority)
        }
        Of::Busy => (rcode::SERVFAIL, ExtendedError::NotReady),
        Of::Rcode(rcode::REFUSED) => (rcode::REFUSED, ExtendedError::Prohibited),
        Of::Closed | Of::Malformed | Of::Truncated | Of::GivenUp | Of::Rcode(_) => {
            (rcode::SERVFAIL, ExtendedError::NetworkError)
        }
    }
}
