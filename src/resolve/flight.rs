//! One flight per key: equal questions that miss share one upstream query, however many ask.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use socket2::SockRef;
use tokio::sync::oneshot;

use crate::upstream::Attempt;
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
}

/// Where an answer goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// A datagram from the socket on which the query came.
    Udp {
        /// That socket.
        socket: Arc<UdpSocket>,
        /// Its address.
        ours: SocketAddr,
        /// The client's.
        peer: SocketAddr,
    },
    /// A TCP client.
    Stream(Arc<dyn Outlet>),
    /// Somebody who wants to know how it came about.
    Trace(oneshot::Sender<(Vec<u8>, Vec<Attempt>)>),
}

impl ReplyTo {
    /// Sends a message. False if it was lost: a full socket buffer, or a client that has gone.
    pub fn send(self, message: &[u8], attempts: &[Attempt]) -> bool {
        match self {
            Self::Udp { socket, peer, .. } => {
                let socket = SockRef::from(&*socket);
                socket.send_to_with_flags(message, &peer.into(), libc::MSG_DONTWAIT).is_ok()
            }
            Self::Stream(client) => client.deliver(message),
            Self::Trace(asker) => asker.send((message.to_vec(), attempts.to_vec())).is_ok(),
        }
    }
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
}

/// What became of a query that wanted to join.
#[derive(Debug)]
pub enum Joined {
    /// It is the first: the caller starts the flight.
    First,
    /// It waits for the one under way.
    Waiting,
    /// The flight is late, and stale answers are being given meanwhile.
    Late(Waiter),
    /// A bound is reached.
    Full(Waiter),
}

/// The flights under way.
#[derive(Debug)]
pub struct Flights {
    flights: Mutex<Underway>,
    waiting: AtomicUsize,
    max_flights: usize,
    max_waiters: usize,
}

#[derive(Debug, Default)]
struct Underway {
    by_key: HashMap<Key, Flight, ahash::RandomState>,
    /// How many there are under each suffix of a zone.
    by_suffix: HashMap<Box<[u8]>, usize, ahash::RandomState>,
}

#[derive(Debug, Default)]
struct Flight {
    waiters: Vec<Waiter>,
    /// Filled from the second waiter on.
    seen: HashSet<Identity, ahash::RandomState>,
    late: bool,
}

impl Flights {
    /// None under way, with these bounds. A zone that has few flights may always have a sixteenth of them on top.
    pub fn new(max_flights: usize, max_waiters: usize) -> Self {
        Self { flights: Mutex::default(), waiting: AtomicUsize::new(0), max_flights, max_waiters }
    }

    fn lock(&self) -> MutexGuard<'_, Underway> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client wait for the answer to `key`.
    ///
    /// `has_stale` says that there is something to answer with if the flight is late; without it
    /// the client waits like everybody before it.
    pub fn join(&self, key: &Key, waiter: Waiter, has_stale: bool) -> Joined {
        let mut flights = self.lock();
        if self.waiting.load(Ordering::Relaxed) >= self.max_waiters {
            return Joined::Full(waiter);
        }
        let full = !flights.has_room(key, self.max_flights);
        match flights.by_key.get_mut(key) {
            Some(flight) if flight.late && has_stale => Joined::Late(waiter),
            Some(flight) => {
                if flight.add(waiter) {
                    self.waiting.fetch_add(1, Ordering::Relaxed);
                }
                Joined::Waiting
            }
            None if full => Joined::Full(waiter),
            None => {
                flights.insert(key, Flight { waiters: vec![waiter], ..Flight::default() });
                self.waiting.fetch_add(1, Ordering::Relaxed);
                Joined::First
            }
        }
    }

    /// Opens a flight that nobody waits for yet. False if there is one, or no room.
    pub fn open(&self, key: &Key) -> bool {
        let mut flights = self.lock();
        if flights.by_key.contains_key(key) || !flights.has_room(key, self.max_flights) {
            return false;
        }
        flights.insert(key, Flight::default());
        true
    }

    /// Takes those who wait now; who comes later is told that the flight is late.
    pub fn turn_late(&self, key: &Key) -> Vec<Waiter> {
        let mut flights = self.lock();
        let Some(flight) = flights.by_key.get_mut(key) else { return Vec::new() };
        flight.late = true;
        flight.seen.clear();
        self.take(std::mem::take(&mut flight.waiters))
    }

    /// Takes those who wait, because there is an answer while their flight is still under way.
    pub fn take_waiting(&self, key: &Key) -> Vec<Waiter> {
        let mut flights = self.lock();
        let Some(flight) = flights.by_key.get_mut(key) else { return Vec::new() };
        flight.seen.clear();
        self.take(std::mem::take(&mut flight.waiters))
    }

    /// Ends a flight and gives those who wait for it.
    pub fn land(&self, key: &Key) -> Vec<Waiter> {
        let flight = self.lock().remove(key);
        flight.map_or_else(Vec::new, |flight| self.take(flight.waiters))
    }

    fn take(&self, waiters: Vec<Waiter>) -> Vec<Waiter> {
        self.waiting.fetch_sub(waiters.len(), Ordering::Relaxed);
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
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Underway {
    fn has_room(&self, key: &Key, max_flights: usize) -> bool {
        self.by_key.len() < max_flights
            || self.by_suffix.get(suffix(key)).copied().unwrap_or_default() < max_flights / ZONE_SHARE
    }

    fn insert(&mut self, key: &Key, flight: Flight) {
        match self.by_suffix.get_mut(suffix(key)) {
            Some(count) => *count += 1,
            None => drop(self.by_suffix.insert(suffix(key).into(), 1)),
        }
        self.by_key.insert(key.clone(), flight);
    }

    fn remove(&mut self, key: &Key) -> Option<Flight> {
        let flight = self.by_key.remove(key)?;
        if let Some(count) = self.by_suffix.get_mut(suffix(key)) {
            *count -= 1;
            if *count == 0 {
                self.by_suffix.remove(suffix(key));
            }
        }
        Some(flight)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::key::KeyBuf;

    fn query(id: u16) -> Query<'static> {
        Query { id, flags: 0, name: b"\x01n\x00", qtype: 1, qclass: 1, edns: None }
    }

    fn key(qtype: u16) -> Key {
        KeyBuf::new(&Query { qtype, ..query(1) }).to_key()
    }

    fn waiter(socket: &Arc<UdpSocket>, port: u16, id: u16) -> Waiter {
        let ours = OurEdns { size: 1232, keepalive: None };
        let asked = Asked::new(&query(id), ours, Instant::now());
        let ours = ([127, 0, 0, 53], 53).into();
        let peer = ([127, 0, 0, 1], port).into();
        Waiter { asked, to: ReplyTo::Udp { socket: Arc::clone(socket), ours, peer } }
    }

    #[test]
    fn equal_questions_share_a_flight_and_a_repeated_one_waits_once() {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let flights = Flights::new(10, 10);
        assert!(matches!(flights.join(&key(1), waiter(&socket, 9, 1), true), Joined::First));
        for (port, id) in [(9, 1), (9, 2), (8, 1), (8, 1), (9, 2)] {
            assert!(matches!(flights.join(&key(1), waiter(&socket, port, id), true), Joined::Waiting));
        }
        assert_eq!((flights.len(), flights.waiting()), (1, 3));
        assert!(!flights.open(&key(1)));
        assert_eq!(flights.land(&key(1)).len(), 3);
        assert_eq!((flights.len(), flights.waiting()), (0, 0));
    }

    /// musl sends one datagram, from one port and under one ID, to each server in resolv.conf.
    #[test]
    fn a_client_that_asks_at_two_of_our_addresses_has_an_answer_from_each() {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let flights = Flights::new(10, 10);
        for at in [1, 2, 1, 2] {
            let mut waiter = waiter(&socket, 9, 1);
            if let ReplyTo::Udp { ours, .. } = &mut waiter.to {
                *ours = ([127, 0, 0, at], 53).into();
            }
            flights.join(&key(1), waiter, true);
        }
        assert_eq!(flights.land(&key(1)).len(), 2);
    }

    #[test]
    fn flights_and_waiters_are_bounded() {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let flights = Flights::new(2, 3);
        assert!(matches!(flights.join(&key(1), waiter(&socket, 1, 1), true), Joined::First));
        assert!(matches!(flights.join(&key(2), waiter(&socket, 1, 1), true), Joined::First));
        assert!(matches!(flights.join(&key(3), waiter(&socket, 1, 1), true), Joined::Full(_)));
        assert!(!flights.open(&key(3)));
        assert!(matches!(flights.join(&key(2), waiter(&socket, 1, 2), true), Joined::Waiting));
        assert!(matches!(flights.join(&key(2), waiter(&socket, 1, 3), true), Joined::Full(_)));
    }

    #[test]
    fn a_zone_that_has_taken_all_flights_leaves_a_share_to_each_other_zone() {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let flights = Flights::new(32, 1000);
        let key = |name: &'static [u8], suffix_labels, qtype| {
            let mut key = KeyBuf::new(&Query { name, qtype, ..query(1) });
            key.bind(suffix_labels);
            key.to_key()
        };
        let join = |key: &Key| flights.join(key, waiter(&socket, 1, 1), true);
        let silent = |qtype| key(b"\x01a\x06silent\x04test\x00", 2, qtype);
        for qtype in 0..32 {
            assert!(matches!(join(&silent(qtype)), Joined::First));
        }
        assert!(matches!(join(&silent(32)), Joined::Full(_)));
        for name in [b"\x01a\x04test\x00".as_slice(), b"\x04test\x00"] {
            let labels = if name.len() > 6 { 1 } else { 0 };
            assert!(matches!(join(&key(name, labels, 1)), Joined::First), "a zone of its own");
            assert!(matches!(join(&key(name, labels, 2)), Joined::First));
            assert!(matches!(join(&key(name, labels, 3)), Joined::Full(_)));
            assert!(!flights.open(&key(name, labels, 3)));
        }
        (0..32).for_each(|qtype| assert_eq!(flights.land(&silent(qtype)).len(), 1));
        assert!(matches!(join(&silent(32)), Joined::First));
        assert_eq!(flights.lock().by_suffix.values().sum::<usize>(), 5);
        assert_eq!(flights.len(), 5);
    }

    #[test]
    fn who_comes_to_a_late_flight_is_told() {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let flights = Flights::new(2, 3);
        assert!(matches!(flights.join(&key(1), waiter(&socket, 1, 1), true), Joined::First));
        assert_eq!(flights.turn_late(&key(1)).len(), 1);
        assert!(matches!(flights.join(&key(1), waiter(&socket, 1, 2), true), Joined::Late(_)));
        let without = flights.join(&key(1), waiter(&socket, 1, 3), false);
        assert!(matches!(without, Joined::Waiting), "nothing stale to give: it waits");
        assert_eq!((flights.land(&key(1)).len(), flights.waiting()), (1, 0));
    }
}
