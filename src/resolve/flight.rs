//! One flight per key: equal questions that miss share one upstream query, however many ask.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::share::{Bound, Taken};
use crate::metrics;
use crate::upstream::Attempt;
use crate::upstream::queue::Source;
use crate::wire::edns::Edns;
use crate::wire::key::Key;
use crate::wire::name;
use crate::wire::query::{OurEdns, Query};

/// A zone may always have this part of the flights, however many the others have: one whose servers are
/// silent must not keep the names of another from being asked for.
const ZONE_SHARE: usize = 16;

/// A query that outlives its packet.
#[derive(Debug)]
pub struct Asked {
    id: u16,
    flags: u16,
    name: Box<[u8]>,
    qtype: u16,
    qclass: u16,
    edns: Option<Edns>,
    /// Our side of EDNS on the way that it came.
    pub ours: OurEdns,
    /// When it came.
    pub received: Instant,
}

impl Asked {
    /// Keeps a query.
    pub fn new(query: &Query<'_>, ours: OurEdns, received: Instant) -> Self {
        let Query { id, flags, name, qtype, qclass, edns } = *query;
        Self { id, flags, name: name.into(), qtype, qclass, edns, ours, received }
    }

    /// The query as it was.
    pub fn query(&self) -> Query<'_> {
        let Self { id, flags, ref name, qtype, qclass, edns, .. } = *self;
        Query { id, flags, name, qtype, qclass, edns }
    }
}

/// A client that has a bound of its own on what waits for it.
pub trait Outlet: std::fmt::Debug + Send + Sync {
    /// Takes a message, once for each query that waited. False if it is lost.
    fn deliver(&self, message: &[u8]) -> bool;

    /// Whose share its queries come out of.
    fn source(&self) -> Source;
}

/// A socket with many clients, whose answers go out together.
pub trait Port: std::fmt::Debug + Send + Sync {
    /// Takes an answer that `write` writes, to a query that was received then. True if none was there before it:
    /// [`Port::flush`] is to be called once those that come with it are here too.
    fn put(
        &self,
        peer: SocketAddr,
        received: Instant,
        write: &mut dyn FnMut(&mut Vec<u8>) -> metrics::Source,
    ) -> bool;

    /// Sends what is there.
    fn flush(&self);
}

/// Where an answer goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// A datagram from the socket on which the query came.
    Udp {
        /// That socket.
        port: Arc<dyn Port>,
        /// Its address.
        ours: SocketAddr,
        /// The client's.
        peer: SocketAddr,
    },
    /// A TCP client.
    Stream(Arc<dyn Outlet>),
    /// Somebody who wants to know how it came about.
    Trace(oneshot::Sender<Told>),
    /// Somebody who has an answer, and wants to know what becomes of the flight.
    Witness(oneshot::Sender<Vec<Attempt>>),
}

/// An answer, and how it came about.
#[derive(Debug)]
pub struct Told {
    /// The answer.
    pub message: Vec<u8>,
    /// Where it came from.
    pub source: metrics::Source,
    /// The tries that have ended.
    pub attempts: Vec<Attempt>,
}

/// Our address, the client's, and its query's ID.
type Identity = (SocketAddr, SocketAddr, u16);

/// A client that waits for a flight.
#[derive(Debug)]
pub struct Waiter {
    /// Its query.
    pub asked: Asked,
    /// Where its answer goes.
    pub to: ReplyTo,
}

impl Waiter {
    /// What makes a repeated datagram the same waiter. A client that asks at two of our addresses awaits an
    /// answer from each.
    fn identity(&self) -> Option<Identity> {
        match &self.to {
            ReplyTo::Udp { ours, peer, .. } => Some((*ours, *peer, self.asked.id)),
            _ => None,
        }
    }

    /// Whose share it comes out of: the client's address, or nobody's for the control socket.
    pub fn source(&self) -> Source {
        match &self.to {
            ReplyTo::Udp { peer, .. } => Some(peer.ip()),
            ReplyTo::Stream(client) => client.source(),
            ReplyTo::Trace(_) | ReplyTo::Witness(_) => None,
        }
    }
}

/// What became of a query that wanted to join.
#[derive(Debug)]
pub enum Joined {
    /// It is the first: the caller starts the flight, for this source.
    First(Source),
    /// It waits for the one under way.
    Waiting,
    /// The flight is late, and stale answers are being given meanwhile.
    Late(Waiter),
    /// A bound is reached.
    Full(Waiter, Bound),
}

/// The flights under way.
#[derive(Debug)]
pub struct Flights {
    flights: Mutex<Underway>,
    max_flights: usize,
    max_waiters: usize,
}

#[derive(Debug, Default)]
struct Underway {
    by_key: HashMap<Key, Flight, ahash::RandomState>,
    /// Those that are not on top.
    common: Taken,
    /// All under each suffix of a zone.
    by_suffix: HashMap<Box<[u8]>, Taken, ahash::RandomState>,
    waiters: Taken,
}

/// Out of what a flight has its place.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Out of what all zones have together.
    #[default]
    Common,
    /// On top of that, because its zone has few.
    OnTop,
}

#[derive(Debug, Default)]
struct Flight {
    /// Who opened it, for as long as it is under way.
    source: Source,
    place: Place,
    waiters: Vec<Waiter>,
    /// Filled from the second waiter on.
    seen: HashSet<Identity, ahash::RandomState>,
    late: bool,
}

impl Flights {
    /// None under way, with these bounds. A zone that has few flights may always have a sixteenth of them on top.
    pub fn new(max_flights: usize, max_waiters: usize) -> Self {
        Self { flights: Mutex::default(), max_flights, max_waiters }
    }

    fn lock(&self) -> MutexGuard<'_, Underway> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client wait for the answer to `key`.
    ///
    /// `has_stale` says that there is something to answer with if the flight is late; without it
    /// the client waits like everybody before it.
    pub fn join(&self, key: &Key, waiter: Waiter, has_stale: bool) -> Joined {
        let source = waiter.source();
        let flights = &mut *self.lock();
        let places = self.max_waiters.saturating_sub(flights.waiters.total());
        if let Some(bound) = Bound::Waiters.refuses(flights.waiters.of(source), places) {
            let has_place = flights.by_key.get(key).is_some_and(|flight| flight.has(&waiter));
            return if has_place { Joined::Waiting } else { Joined::Full(waiter, bound) };
        }
        match flights.by_key.get_mut(key) {
            Some(flight) if flight.late && has_stale => Joined::Late(waiter),
            Some(flight) => {
                if flight.add(waiter) {
                    flights.waiters.add(source);
                }
                Joined::Waiting
            }
            None => match flights.place(key, source, self.max_flights) {
                Ok(place) => {
                    flights.insert(key, Flight { source, place, waiters: vec![waiter], ..Flight::default() });
                    flights.waiters.add(source);
                    Joined::First(source)
                }
                Err(bound) => Joined::Full(waiter, bound),
            },
        }
    }

    /// Lets somebody wait for the end of a flight, late or not. False if there is none.
    pub fn attend(&self, key: &Key, waiter: Waiter) -> bool {
        let flights = &mut *self.lock();
        let Some(flight) = flights.by_key.get_mut(key) else { return false };
        let source = waiter.source();
        if flight.add(waiter) {
            flights.waiters.add(source);
        }
        true
    }

    /// Opens a flight of the agent's own, that nobody waits for yet. False if there is one, or no room.
    pub fn open(&self, key: &Key) -> bool {
        let mut flights = self.lock();
        if flights.by_key.contains_key(key) {
            return false;
        }
        let place = flights.place(key, None, self.max_flights);
        place.map(|place| flights.insert(key, Flight { place, ..Flight::default() })).is_ok()
    }

    /// Takes those who wait now; who comes later is told that the flight is late.
    pub fn turn_late(&self, key: &Key) -> Vec<Waiter> {
        self.lock().take(key, |flight| flight.late = true)
    }

    /// Takes those who wait, because there is an answer while their flight is still under way.
    pub fn take_waiting(&self, key: &Key) -> Vec<Waiter> {
        self.lock().take(key, |_| ())
    }

    /// Ends a flight and gives those who wait for it.
    pub fn land(&self, key: &Key) -> Vec<Waiter> {
        let mut flights = self.lock();
        let waiters = flights.take(key, |_| ());
        flights.remove(key);
        waiters
    }

    /// Flights under way.
    pub fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Clients that wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiters.total()
    }
}

impl Underway {
    /// A place for one more flight of a source, or what keeps it from that. What is on top is shared like the rest, and
    /// takes nothing from it: however many zones a source floods, a newcomer finds room.
    fn place(&self, key: &Key, source: Source, max_flights: usize) -> Result<Place, Bound> {
        let free = max_flights.saturating_sub(self.common.total());
        let Some(bound) = Bound::Flights.refuses(self.common.of(source), free) else {
            return Ok(Place::Common);
        };
        let zone = self.by_suffix.get(suffix(key));
        let (of_zone, own) = zone.map_or((0, 0), |zone| (zone.total(), zone.of(source)));
        let on_top = (max_flights / ZONE_SHARE).saturating_sub(of_zone);
        bound.refuses(own, on_top).map_or(Ok(Place::OnTop), |_| Err(bound))
    }

    fn insert(&mut self, key: &Key, flight: Flight) {
        let source = flight.source;
        if flight.place == Place::Common {
            self.common.add(source);
        }
        match self.by_suffix.get_mut(suffix(key)) {
            Some(zone) => zone.add(source),
            None => self.by_suffix.entry(suffix(key).into()).or_default().add(source),
        }
        self.by_key.insert(key.clone(), flight);
    }

    fn remove(&mut self, key: &Key) {
        let Some(flight) = self.by_key.remove(key) else { return };
        if flight.place == Place::Common {
            self.common.remove(flight.source);
        }
        if let Some(zone) = self.by_suffix.get_mut(suffix(key)) {
            zone.remove(flight.source);
            if zone.total() == 0 {
                self.by_suffix.remove(suffix(key));
            }
        }
    }

    /// Takes those who wait for a flight, which is marked before others come.
    fn take(&mut self, key: &Key, mark: impl FnOnce(&mut Flight)) -> Vec<Waiter> {
        let Some(flight) = self.by_key.get_mut(key) else { return Vec::new() };
        mark(flight);
        flight.seen.clear();
        let waiters = std::mem::take(&mut flight.waiters);
        waiters.iter().for_each(|waiter| self.waiters.remove(waiter.source()));
        waiters
    }
}

/// The suffix by which a key's zone was chosen.
fn suffix(key: &Key) -> &[u8] {
    let labels = name::labels(key.name()).count();
    let before = labels.saturating_sub(usize::from(key.suffix_labels()));
    let at: usize = name::labels(key.name()).take(before).map(|label| label.len() + 1).sum();
    &key.name()[at..]
}

impl Flight {
    /// Adds a waiter, unless it is one that has only repeated itself.
    fn add(&mut self, waiter: Waiter) -> bool {
        if self.seen.is_empty() {
            self.seen.extend(self.waiters.first().and_then(Waiter::identity));
        }
        let new = waiter.identity().is_none_or(|identity| self.seen.insert(identity));
        if new {
            self.waiters.push(waiter);
        }
        new
    }

    /// Whether this one has only repeated itself.
    fn has(&self, waiter: &Waiter) -> bool {
        let first = || self.waiters.first().and_then(Waiter::identity);
        waiter.identity().is_some_and(|own| self.seen.contains(&own) || first() == Some(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::key::KeyBuf;
    use std::net::IpAddr;

    /// Where no answer comes to.
    #[derive(Debug)]
    struct Nowhere;

    impl Port for Nowhere {
        fn put(&self, _: SocketAddr, _: Instant, _: &mut dyn FnMut(&mut Vec<u8>) -> metrics::Source) -> bool {
            unreachable!("no flight lands here")
        }

        fn flush(&self) {}
    }

    fn query(id: u16) -> Query<'static> {
        Query { id, flags: 0, name: b"\x01n\x00", qtype: 1, qclass: 1, edns: None }
    }

    fn key(qtype: u16) -> Key {
        KeyBuf::new(&Query { qtype, ..query(1) }).to_key()
    }

    fn waiter(port: u16, id: u16) -> Waiter {
        let ours = OurEdns { size: 1232, keepalive: None };
        let asked = Asked::new(&query(id), ours, Instant::now());
        let ours = ([127, 0, 0, 53], 53).into();
        let peer = ([127, 0, 0, 1], port).into();
        Waiter { asked, to: ReplyTo::Udp { port: Arc::new(Nowhere), ours, peer } }
    }

    /// Flights, for tests that have many clients.
    struct Crowd {
        flights: Flights,
    }

    impl Crowd {
        fn new(max_flights: usize, max_waiters: usize) -> Self {
            Self { flights: Flights::new(max_flights, max_waiters) }
        }

        /// A client of the `n`-th source asks.
        fn ask(&self, n: u8, key: &Key, id: u16) -> Joined {
            let mut waiter = waiter(9, id);
            if let ReplyTo::Udp { peer, .. } = &mut waiter.to {
                peer.set_ip([10, 0, 0, n].into());
            }
            self.flights.join(key, waiter, true)
        }

        fn opens(&self, n: u8, key: &Key) -> bool {
            matches!(self.ask(n, key, 1), Joined::First(Some(source)) if source == IpAddr::from([10, 0, 0, n]))
        }

        /// The bound that a client of the `n`-th source meets.
        fn meets(&self, n: u8, key: &Key) -> Option<Bound> {
            match self.ask(n, key, 1) {
                Joined::Full(_, bound) => Some(bound),
                _ => None,
            }
        }

        fn must_be_empty(&self) {
            let flights = self.flights.lock();
            assert_eq!((flights.by_key.len(), flights.by_suffix.len()), (0, 0));
            assert_eq!((flights.common.total(), flights.waiters.total()), (0, 0));
        }
    }

    #[test]
    fn equal_questions_share_a_flight_and_a_repeated_one_waits_once() {
        let flights = Flights::new(10, 10);
        assert!(matches!(flights.join(&key(1), waiter(9, 1), true), Joined::First(_)));
        for (port, id) in [(9, 1), (9, 2), (8, 1), (8, 1), (9, 2)] {
            assert!(matches!(flights.join(&key(1), waiter(port, id), true), Joined::Waiting));
        }
        assert_eq!((flights.len(), flights.waiting()), (1, 3));
        assert!(!flights.open(&key(1)));
        assert_eq!(flights.land(&key(1)).len(), 3);
        assert_eq!((flights.len(), flights.waiting()), (0, 0));
    }

    /// musl sends one datagram, from one port and under one ID, to each server in resolv.conf.
    #[test]
    fn a_client_that_asks_at_two_of_our_addresses_has_an_answer_from_each() {
        let flights = Flights::new(10, 10);
        for at in [1, 2, 1, 2] {
            let mut waiter = waiter(9, 1);
            if let ReplyTo::Udp { ours, .. } = &mut waiter.to {
                *ours = ([127, 0, 0, at], 53).into();
            }
            flights.join(&key(1), waiter, true);
        }
        assert_eq!(flights.land(&key(1)).len(), 2);
    }

    #[test]
    fn flights_and_waiters_are_bounded() {
        let crowd = Crowd::new(2, 3);
        assert!(crowd.opens(1, &key(1)) && crowd.opens(2, &key(2)));
        assert_eq!(crowd.meets(3, &key(3)), Some(Bound::Flights));
        assert!(!crowd.flights.open(&key(3)));
        assert!(matches!(crowd.ask(3, &key(2), 1), Joined::Waiting));
        assert_eq!(crowd.meets(4, &key(2)), Some(Bound::Waiters));
    }

    #[test]
    fn who_waits_already_may_repeat_itself_at_the_bound() {
        let crowd = Crowd::new(10, 2);
        assert!(crowd.opens(1, &key(1)));
        assert!(matches!(crowd.ask(1, &key(1), 1), Joined::Waiting), "it is the first");
        assert!(matches!(crowd.ask(2, &key(1), 1), Joined::Waiting));
        assert!(matches!(crowd.ask(2, &key(1), 1), Joined::Waiting), "all places are taken, one by itself");
        assert!(matches!(crowd.ask(2, &key(1), 2), Joined::Full(_, Bound::Waiters)));
        assert_eq!((crowd.flights.land(&key(1)).len(), crowd.flights.waiting()), (2, 0));
    }

    #[test]
    fn a_source_that_floods_unique_names_leaves_flights_to_the_others() {
        let crowd = Crowd::new(64, 1000);
        let opened = (0..200).filter(|&qtype| crowd.opens(1, &key(qtype))).count();
        assert_eq!(opened, 32, "nobody is limited up to the half");
        for other in 2..12 {
            assert!((0..2).all(|qtype| crowd.opens(other, &key(1000 + 10 * u16::from(other) + qtype))));
            assert_eq!(crowd.meets(1, &key(200)), Some(Bound::Share));
        }
        // What it gives back goes to who has less.
        (0..10).for_each(|qtype| assert_eq!(crowd.flights.land(&key(qtype)).len(), 1));
        assert_eq!(crowd.meets(1, &key(200)), Some(Bound::Share), "22 of 42, and 22 are free");
        assert!(crowd.opens(2, &key(201)));
        crowd.flights.land(&key(10));
        crowd.flights.land(&key(201));
        assert!(crowd.opens(1, &key(200)), "21 of 41, and 23 are free");
        (0..2000).for_each(|qtype| drop(crowd.flights.land(&key(qtype))));
        crowd.must_be_empty();
    }

    #[test]
    fn the_agents_own_flights_are_those_of_one_source() {
        let crowd = Crowd::new(64, 1000);
        assert_eq!((0..200).filter(|&qtype| crowd.flights.open(&key(qtype))).count(), 32);
        assert!(crowd.opens(1, &key(200)));
        (0..201).for_each(|qtype| drop(crowd.flights.land(&key(qtype))));
        crowd.must_be_empty();
    }

    #[test]
    fn a_source_that_repeats_a_hot_name_leaves_places_to_the_others() {
        let crowd = Crowd::new(10, 64);
        assert!(crowd.opens(1, &key(1)));
        let asked: Vec<Joined> = (2..101).map(|id| crowd.ask(1, &key(1), id)).collect();
        assert_eq!(asked.iter().filter(|joined| matches!(joined, Joined::Waiting)).count(), 31);
        assert_eq!(crowd.meets(1, &key(2)), Some(Bound::Share), "whatever it asks for");
        assert!((2..12).all(|other| matches!(crowd.ask(other, &key(1), 1), Joined::Waiting)));
        assert!(crowd.opens(2, &key(2)));
        assert_eq!(crowd.flights.turn_late(&key(1)).len(), 42);
        assert_eq!(crowd.flights.take_waiting(&key(2)).len(), 1);
        assert_eq!(crowd.flights.waiting(), 0);
        assert!(crowd.opens(1, &key(3)), "those that are answered wait no more");
        (1..4).for_each(|qtype| drop(crowd.flights.land(&key(qtype))));
        crowd.must_be_empty();
    }

    fn key_in(name: &[u8], suffix_labels: u8, qtype: u16) -> Key {
        let mut key = KeyBuf::new(&Query { name, qtype, ..query(1) });
        key.bind(suffix_labels);
        key.to_key()
    }

    #[test]
    fn a_zone_that_has_taken_all_flights_leaves_a_share_to_each_other_zone() {
        let crowd = Crowd::new(32, 1000);
        let silent = |qtype| key_in(b"\x01a\x06silent\x04test\x00", 2, qtype);
        assert!((0..32).all(|n| crowd.opens(n, &silent(u16::from(n)))));
        assert_eq!(crowd.meets(32, &silent(32)), Some(Bound::Flights));
        for name in [b"\x01a\x04test\x00".as_slice(), b"\x04test\x00"] {
            let labels = if name.len() > 6 { 1 } else { 0 };
            assert!(crowd.opens(1, &key_in(name, labels, 1)), "a zone of its own");
            assert_eq!(crowd.meets(1, &key_in(name, labels, 2)), Some(Bound::Flights), "half of it for one");
            assert!(crowd.opens(2, &key_in(name, labels, 2)));
            assert_eq!(crowd.meets(3, &key_in(name, labels, 3)), Some(Bound::Flights));
            assert!(!crowd.flights.open(&key_in(name, labels, 3)));
        }
        (0..32).for_each(|qtype| assert_eq!(crowd.flights.land(&silent(qtype)).len(), 1));
        assert!(crowd.opens(1, &silent(32)));
        assert_eq!(crowd.flights.lock().by_suffix.values().map(Taken::total).sum::<usize>(), 5);
        assert_eq!(crowd.flights.len(), 5);
    }

    #[test]
    fn what_a_source_awaits_of_a_silent_zone_is_not_held_against_it_in_another() {
        let crowd = Crowd::new(64, 1000);
        let asks = |n: u8, qtype| crowd.opens(n, &key_in(b"\x01a\x06silent\x04test\x00", 2, qtype));
        let opened = (0..3u8).map(|n| (0..64).filter(|&at| asks(n, u16::from(n) * 64 + at)).count());
        assert_eq!(opened.collect::<Vec<_>>(), [32, 16, 8]);
        assert!((0..3).all(|n| crowd.opens(n, &key_in(b"\x04test\x00", 0, u16::from(n)))));
    }

    #[test]
    fn a_source_that_floods_all_zones_leaves_flights_to_the_others_in_each() {
        const ZONES: u8 = 60;
        let crowd = Crowd::new(64, 1000);
        let name = [b"\x01a".repeat(usize::from(ZONES)), b"\x00".to_vec()].concat();
        let flood = |zone| (0..100).filter(|&qtype| crowd.opens(1, &key_in(&name, zone, qtype))).count();
        let opened: Vec<usize> = (0..ZONES).map(flood).collect();
        assert_eq!((opened[0], opened[1]), (32, 2), "half of all, and half of a zone's own part");
        assert!(opened[2..].iter().all(|&more| more == 2), "{opened:?}");
        assert!((0..20).all(|other| crowd.opens(2 + other, &key_in(&name, other, 1000))));
    }

    #[test]
    fn who_comes_to_a_late_flight_is_told() {
        let flights = Flights::new(2, 3);
        assert!(matches!(flights.join(&key(1), waiter(1, 1), true), Joined::First(_)));
        assert_eq!(flights.turn_late(&key(1)).len(), 1);
        assert!(matches!(flights.join(&key(1), waiter(1, 2), true), Joined::Late(_)));
        let without = flights.join(&key(1), waiter(1, 3), false);
        assert!(matches!(without, Joined::Waiting), "nothing stale to give: it waits");
        assert_eq!((flights.land(&key(1)).len(), flights.waiting()), (1, 0));
    }
}
