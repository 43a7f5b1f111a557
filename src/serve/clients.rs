//! Who is connected by TCP, what is buffered for each, and who has to go when there is not enough for all.
//!
//! Two things are shared by all TCP clients: places and memory. At the bound of either, the one that has
//! most of it gives way to one that has less, so that whoever takes much takes it from himself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use metrics::{Gauge, gauge};
use tokio::sync::{Notify, mpsc};

use crate::config::Limits;
use crate::metrics::TCP_CONNECTIONS;
use crate::resolve::flight::Outlet;

/// Bytes that may be buffered for all TCP clients, half-read queries and unread answers together: an eighth
/// of the memory limit that the agent is made for (64 MiB), which leaves the cache its quarter twice over.
pub const BUFFERED: usize = 8 << 20;
/// Beyond [`BUFFERED`] a client still gets its answer while the one that holds most is being closed, up to here.
const BUFFERED_MOST: usize = BUFFERED + BUFFERED / 2;
/// What a client may hold however much the others do: some queries and answers of usual size.
const OWN: usize = 4096;

/// All TCP clients of the process.
pub struct Clients {
    limits: Limits,
    places: Mutex<HashMap<IpAddr, Vec<Arc<Connected>>, ahash::RandomState>>,
    buffered: AtomicUsize,
    started: Instant,
    gauge: Gauge,
}

/// One client, as others see it.
pub(super) struct Connected {
    clients: Arc<Clients>,
    ip: IpAddr,
    /// Milliseconds from `Clients::started` to its last whole query or the last progress of its answers.
    active_ms: AtomicU64,
    /// Its queries that wait for their flights.
    waiting: AtomicUsize,
    /// Bytes buffered for it.
    held: AtomicUsize,
    replies: mpsc::UnboundedSender<Vec<u8>>,
    dismissed: AtomicBool,
    wake: Notify,
}

/// A client's place, given back when it leaves.
pub(super) struct Place {
    pub(super) client: Arc<Connected>,
}

type Places = HashMap<IpAddr, Vec<Arc<Connected>>, ahash::RandomState>;

impl Clients {
    /// Nobody yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            places: Mutex::default(),
            buffered: AtomicUsize::new(0),
            started: Instant::now(),
            gauge: gauge!(TCP_CONNECTIONS),
        })
    }

    /// Clients connected now.
    pub fn count(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more client of this address, and where its late answers come out; `None` if the
    /// limits do not allow it.
    pub(super) fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<(Place, mpsc::UnboundedReceiver<Vec<u8>>)> {
        let mut places = self.lock();
        let of_address = places.get(&ip).map_or(0, Vec::len);
        let total: usize = places.values().map(Vec::len).sum();
        if of_address >= self.limits.tcp_connections_per_address
            || (total >= self.limits.tcp_connections && !make_room(&mut places, of_address))
        {
            return None;
        }
        let (replies, ready) = mpsc::unbounded_channel();
        let client = Arc::new(Connected {
            clients: Arc::clone(self),
            ip,
            active_ms: AtomicU64::new(self.now_ms(Instant::now())),
            waiting: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            replies,
            dismissed: AtomicBool::new(false),
            wake: Notify::new(),
        });
        places.entry(ip).or_default().push(Arc::clone(&client));
        self.gauge.increment(1.0);
        Some((Place { client }, ready))
    }

    fn now_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64
    }

    /// Closes the client that holds most, if that is more than `held`. False if it is not.
    fn dismiss_hungriest(&self, held: usize) -> bool {
        let mut places = self.lock();
        let hungriest = places.values().flatten().max_by_key(|client| client.held());
        let Some(hungriest) = hungriest.filter(|client| client.held() > held).cloned() else { return false };
        dismiss(&mut places, &hungriest);
        true
    }
}

/// At the limit, the address with most connections loses the one that was quiet for longest, if it has more
/// than the newcomer's. RFC 7766 §6.2.3 allows to close idle connections at once under load; one with
/// queries in flight is only taken if the newcomer's address has less afterwards, too.
fn make_room(places: &mut Places, newcomers: usize) -> bool {
    let most = places.values().map(Vec::len).max().unwrap_or_default();
    let of_greediest = places.values().filter(|clients| clients.len() == most).flatten();
    let Some(victim) = of_greediest.min_by_key(|client| (client.is_waiting(), client.active_ms())) else {
        return false;
    };
    let more = if victim.is_waiting() { 2 } else { 1 };
    let victim = (most >= newcomers + more).then(|| Arc::clone(victim));
    victim.inspect(|victim| dismiss(places, victim)).is_some()
}

/// Takes a client's place away and lets its task end.
fn dismiss(places: &mut Places, client: &Arc<Connected>) {
    remove(places, client);
    client.dismissed.store(true, Ordering::Relaxed);
    client.wake.notify_one();
}

/// A client that was dismissed has no place to give back any more.
fn remove(places: &mut Places, client: &Arc<Connected>) {
    let Some(of_address) = places.get_mut(&client.ip) else { return };
    if let Some(at) = of_address.iter().position(|other| Arc::ptr_eq(other, client)) {
        of_address.swap_remove(at);
        client.clients.gauge.decrement(1.0);
    }
    if of_address.is_empty() {
        places.remove(&client.ip);
    }
}

impl Connected {
    /// Returns when the client has to go.
    pub(super) async fn dismissed(&self) {
        while !self.dismissed.load(Ordering::Relaxed) {
            self.wake.notified().await;
        }
    }

    /// Notes a whole query, or progress of its answers.
    pub(super) fn was_active(&self, now: Instant) {
        self.active_ms.store(self.clients.now_ms(now), Ordering::Relaxed);
    }

    fn active_ms(&self) -> u64 {
        self.active_ms.load(Ordering::Relaxed)
    }

    /// Counts a query that waits for its flight, until it is delivered.
    pub(super) fn waits(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one of its queries waits for its flight.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Lets this client hold so many bytes more. If all together hold too much, the one that holds most
    /// is closed for it. False, and nothing is held, if that is this client, or if nothing is left at all.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        let all = self.clients.buffered.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held <= OWN || all <= BUFFERED {
            return true;
        }
        if self.clients.dismiss_hungriest(held) && all <= BUFFERED_MOST {
            return true;
        }
        self.release(bytes);
        false
    }

    /// Gives back what [`Connected::hold`] took.
    pub(super) fn release(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.clients.buffered.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Outlet for Connected {
    fn deliver(&self, message: &[u8]) -> bool {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.replies.is_closed() {
            return false; // it has left, and nobody has to make room for it
        }
        if !self.hold(message.len()) {
            // An answer is lost, and the client must see that: it is closed.
            self.dismissed.store(true, Ordering::Relaxed);
            self.wake.notify_one();
            return false;
        }
        let sent = self.replies.send(message.to_vec()).is_ok();
        if !sent {
            self.release(message.len());
        }
        sent
    }

    fn source(&self) -> Option<IpAddr> {
        Some(self.ip)
    }
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Connected({})", self.ip)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let clients = &self.client.clients;
        remove(&mut clients.lock(), &self.client);
        self.client.release(self.client.held());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn clients(tcp_connections: usize, tcp_connections_per_address: usize) -> Arc<Clients> {
        Clients::new(Limits { tcp_connections, tcp_connections_per_address, ..Limits::default() })
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// A client of this address that was active so many seconds after the start.
    fn admit(clients: &Arc<Clients>, last: u8, active: u64) -> Option<Place> {
        let (place, _) = clients.admit(ip(last))?;
        place.client.was_active(clients.started + Duration::from_secs(active));
        Some(place)
    }

    fn has_to_go(place: &Place) -> bool {
        place.client.dismissed.load(Ordering::Relaxed)
    }

    #[test]
    fn at_the_limit_the_greediest_address_loses_its_longest_idle_client() {
        let clients = clients(5, 4);
        let greedy: Vec<Place> =
            [7, 3, 9].into_iter().map(|active| admit(&clients, 1, active).unwrap()).collect();
        let modest: Vec<Place> =
            [1, 2].into_iter().map(|active| admit(&clients, 2, active).unwrap()).collect();
        let new = admit(&clients, 3, 10).expect("a place");
        assert_eq!(greedy.iter().map(has_to_go).collect::<Vec<_>>(), [false, true, false]);
        assert!(!modest.iter().chain([&new]).any(has_to_go));
        assert_eq!(clients.count(), 5);
    }

    #[test]
    fn nobody_gives_way_to_an_address_that_has_as_much() {
        let clients = clients(4, 4);
        let held: Vec<Place> = [1, 1, 2, 2].into_iter().filter_map(|last| admit(&clients, last, 1)).collect();
        assert_eq!(held.len(), 4);
        assert!(admit(&clients, 1, 2).is_none());
        assert!(!held.iter().any(has_to_go));
        drop(held);
        assert_eq!(clients.count(), 0);
        assert!(admit(&clients, 1, 2).is_some());
    }

    #[test]
    fn who_waits_for_an_answer_goes_last_and_not_for_an_equal() {
        let clients = clients(2, 2);
        let waiting = admit(&clients, 1, 1).unwrap();
        waiting.client.waits();
        let idle = admit(&clients, 1, 5).unwrap();
        let second = admit(&clients, 2, 6).expect("the idle one gives way, though it was active later");
        assert!(has_to_go(&idle) && !has_to_go(&waiting));
        second.client.waits();
        assert!(admit(&clients, 3, 7).is_none(), "one that waits is not exchanged for another");
        assert!(!has_to_go(&waiting) && !has_to_go(&second));
    }

    #[test]
    fn an_address_never_has_more_than_its_limit() {
        let clients = clients(10, 2);
        let _held: Vec<Place> = (0..2).filter_map(|_| admit(&clients, 1, 1)).collect();
        assert!(admit(&clients, 1, 1).is_none());
        assert!(admit(&clients, 2, 1).is_some());
    }

    #[test]
    fn at_the_end_of_memory_the_hungriest_client_is_closed() {
        let clients = clients(10, 10);
        let [small, middle, large] = [1, 2, 3].map(|last| admit(&clients, last, 1).unwrap());
        assert!(small.client.hold(10_000));
        assert!(middle.client.hold(BUFFERED / 4));
        assert!(large.client.hold(BUFFERED / 2));
        assert!(small.client.hold(BUFFERED / 4), "it holds less than the largest afterwards");
        assert!(has_to_go(&large) && !has_to_go(&middle) && !has_to_go(&small));
        drop(large);
        assert!(middle.client.hold(10_000) && !has_to_go(&small));
        assert!(!middle.client.hold(BUFFERED), "it would be the hungriest itself");
        assert!(middle.client.hold(10_000), "what was refused is not held");
        drop((small, middle));
        assert_eq!(clients.buffered.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn memory_is_bounded_even_before_the_hungriest_have_left() {
        let clients = clients(1000, 1000);
        let places: Vec<Place> = (0..1000).filter_map(|_| admit(&clients, 1, 1)).collect();
        let answer = vec![0; 65_535];
        for place in places.iter().cycle().take(10_000) {
            place.client.waits();
            place.client.deliver(&answer);
        }
        assert!(clients.buffered.load(Ordering::Relaxed) <= BUFFERED_MOST);
        // Each has its own small share, whatever the others hold.
        assert!(places.iter().all(|place| place.client.held() > 0 || place.client.hold(OWN)));
    }

    #[test]
    fn an_answer_for_a_client_that_has_left_holds_nothing() {
        let clients = clients(2, 2);
        let (place, ready) = clients.admit(ip(1)).unwrap();
        let client = Arc::clone(&place.client);
        client.waits();
        drop((place, ready));
        assert!(!client.deliver(b"late"));
        assert_eq!(clients.buffered.load(Ordering::Relaxed), 0);
        assert!(!client.is_waiting());
    }

    #[test]
    fn an_answer_for_a_client_that_has_left_closes_nobody_else() {
        let clients = clients(3, 3);
        let large = admit(&clients, 1, 1).unwrap();
        assert!(large.client.hold(BUFFERED));
        let (gone, ready) = clients.admit(ip(2)).unwrap();
        let client = Arc::clone(&gone.client);
        drop((gone, ready));
        client.waits();
        assert!(!client.deliver(&[0; 2 * OWN]));
        assert!(!has_to_go(&large));
    }
}
