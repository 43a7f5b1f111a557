//! The receive loop of one UDP worker: a thread that never waits for one client.

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::is_allowed;
use super::socket::Place;
use crate::cache::front::Front;
use crate::metrics::{Dropped, Metrics, Source, Transport};
use crate::readiness::Pulse;
use crate::resolve::flight::{Port, ReplyTo};
use crate::resolve::view::View;
use crate::resolve::{Client, Resolver, Step, Takeoff};
use crate::sys::{BATCH, Inbox, Outbox, Peer};
use crate::wire::query::OurEdns;

/// Batches that a stopping worker still takes from its socket's queue: more than the queue holds.
const LAST_BATCHES: usize = 1024;

/// Bytes of an answer by UDP that has no need of more memory than others.
const USUAL: usize = 4096;

/// Pause before the next try at a socket that failed twice in a row: an error that stays must not cost a core.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// What a worker found at its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Datagrams, which were dealt with.
    Served,
    /// Nothing.
    Idle,
    /// An error.
    Failed,
}

/// What became of a datagram.
enum Fate {
    /// Its answer is written.
    Answered(Source),
    /// There is none.
    Dropped,
    /// It waits for a flight, which is to be started if it is new.
    Waits(Option<Takeoff>),
}

/// Answers to misses that wait until they go out together.
pub struct Replies {
    socket: Arc<UdpSocket>,
    metrics: Arc<Metrics>,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    outbox: Outbox,
    /// When the query of each was received, and where its answer comes from.
    queries: Vec<(Instant, Source)>,
}

impl Replies {
    /// None, from this socket.
    pub fn new(socket: Arc<UdpSocket>, metrics: Arc<Metrics>) -> Self {
        let waiting = Waiting { outbox: Outbox::new(0), queries: Vec::with_capacity(BATCH) };
        Self { socket, metrics, waiting: Mutex::new(waiting) }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, waiting: &mut Waiting) {
        let slot = self.metrics.slot(self.metrics.shared());
        for _ in 0..waiting.outbox.send(&self.socket) {
            slot.dropped(Dropped::Send);
        }
        waiting.outbox.shrink(USUAL);
        let now = Instant::now();
        for (received, source) in waiting.queries.drain(..) {
            slot.took(source, now.saturating_duration_since(received), 1);
        }
    }
}

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answers by {:?}", self.socket)
    }
}

impl Port for Replies {
    fn put(
        &self,
        peer: SocketAddr,
        received: Instant,
        write: &mut dyn FnMut(&mut Vec<u8>) -> Source,
    ) -> bool {
        let waiting = &mut *self.waiting();
        let source = write(waiting.outbox.next());
        waiting.outbox.commit(&Peer::from(peer));
        waiting.queries.push((received, source));
        let count = waiting.queries.len();
        if count == BATCH {
            self.send(waiting);
        }
        count == 1
    }

    fn flush(&self) {
        let waiting = &mut *self.waiting();
        if !waiting.queries.is_empty() {
            self.send(waiting);
        }
    }
}

/// One worker: a socket, and where its queries go.
pub struct Worker {
    /// Its own socket of the address's group.
    pub socket: Arc<UdpSocket>,
    /// What goes out by it later.
    pub replies: Arc<Replies>,
    /// What it is bound to.
    pub place: Place,
    /// The slot of its counters.
    pub slot: usize,
    /// Its sign of life.
    pub pulse: Arc<Pulse>,
    /// Who answers.
    pub resolver: Arc<Resolver>,
    /// Whether another process may read from the socket, now or later.
    pub shared: bool,
    /// Set when no new work should be taken.
    pub stop: Arc<AtomicBool>,
}

impl Worker {
    /// Runs until it is told to stop, and answers what is queued by then.
    pub fn run(self) {
        let mut inbox = Inbox::new();
        let mut front = Front::new();
        let mut outbox = Outbox::new(usize::from(self.resolver.view().edns_size) + 512);
        let mut before = Turn::Idle;
        while !self.stop.load(Ordering::Relaxed) {
            let turn = self.turn(&mut inbox, &mut front, &mut outbox, true);
            if (before, turn) == (Turn::Failed, Turn::Failed) {
                std::thread::sleep(ERROR_PAUSE);
            }
            before = turn;
        }
        if !self.shared {
            self.leave_group();
        }
        for _ in 0..LAST_BATCHES {
            if self.turn(&mut inbox, &mut front, &mut outbox, false) != Turn::Served {
                break;
            }
        }
    }

    /// Has the kernel give datagrams to other sockets of the address, of this process or another, for flights keep this one
    /// open: one that is connected gets those of its peer alone, and none of ours is at port 1 of the address itself. It
    /// can still send to everybody.
    fn leave_group(&self) {
        let nobody = SocketAddr::new(self.place.addr.ip(), 1);
        if let Err(error) = self.socket.connect(nobody) {
            tracing::debug!(%error, "queries may still come to a socket that nobody reads");
        }
    }

    /// One batch: receive, decide, send.
    fn turn(&self, inbox: &mut Inbox, front: &mut Front, outbox: &mut Outbox, wait: bool) -> Turn {
        let received = inbox.receive(&self.socket, wait);
        let now = Instant::now();
        self.pulse.beat(now);
        let metrics = self.resolver.metrics.slot(self.slot);
        match received {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Turn::Idle;
            }
            Err(_) => {
                // On a UDP socket that is an ICMP error of an earlier reply: counted, and gone.
                metrics.receive_errors.add(1);
                return Turn::Failed;
            }
        }
        let view = self.resolver.view();
        let mut answered = [0u64; BATCH];
        let (mut takeoffs, mut waits) = (Vec::new(), false);
        for (packet, peer) in inbox.packets() {
            match self.packet(&view, packet, &peer, now, front, outbox) {
                Fate::Answered(source) => answered[source as usize] += 1,
                Fate::Waits(Some(takeoff)) => takeoffs.push(takeoff),
                Fate::Waits(None) => waits = true,
                Fate::Dropped => {}
            }
        }
        self.resolver.start(takeoffs);
        if waits {
            self.replies.flush(); // it may not be let wait
        }
        for _ in 0..outbox.send(&self.socket) {
            metrics.dropped(Dropped::Send);
        }
        let took = now.elapsed();
        for source in [Source::Hit, Source::Stale, Source::Failure, Source::Hosts, Source::Local] {
            if answered[source as usize] > 0 {
                metrics.took(source, took, answered[source as usize]);
            }
        }
        Turn::Served
    }

    fn packet(
        &self,
        view: &View,
        packet: &[u8],
        peer: &Peer,
        now: Instant,
        front: &mut Front,
        outbox: &mut Outbox,
    ) -> Fate {
        let metrics = self.resolver.metrics.slot(self.slot);
        let addr = peer.addr();
        if addr.port() == 0 || addr == self.place.addr {
            metrics.dropped(Dropped::Source);
            return Fate::Dropped;
        }
        let client = Client {
            slot: self.slot,
            transport: Transport::Udp,
            ipv6: addr.is_ipv6(),
            allowed: is_allowed(&view.allow_from, self.place, addr.ip()),
            ours: OurEdns { size: view.edns_size, keepalive: None },
        };
        match self.resolver.handle(view, &client, packet, now, front, outbox.next()) {
            Step::Reply(source) => {
                outbox.commit(peer);
                Fate::Answered(source)
            }
            Step::Drop(why) => {
                metrics.dropped(why);
                Fate::Dropped
            }
            Step::Wait(miss) => {
                let (port, ours) = (Arc::clone(&self.replies) as _, self.place.addr);
                Fate::Waits(self.resolver.join(miss, ReplyTo::Udp { port, ours, peer: addr }).1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;

    #[test]
    fn answers_to_misses_go_out_together_and_a_lost_one_costs_no_other() {
        let metrics = Arc::new(Metrics::new(1));
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let replies = Replies::new(socket, Arc::clone(&metrics));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_nonblocking(true).unwrap();
        let nobody = ([127, 0, 0, 1], 0).into(); // no datagram can be sent there
        let put = |peer, byte: u8| {
            replies.put(peer, Instant::now(), &mut |out| {
                out.clear();
                out.push(byte);
                Source::Miss
            })
        };
        let received = || {
            let mut buffer = [0; 16];
            client.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
        };
        let ours = client.local_addr().unwrap();
        assert!(put(ours, 1), "somebody has to flush");
        assert!(!put(nobody, 2) && !put(ours, 3));
        assert_eq!(received(), None, "they wait");
        replies.flush();
        assert_eq!([received(), received(), received()], [Some(vec![1]), Some(vec![3]), None]);
        let first: Vec<usize> = (0..2 * BATCH).filter(|&n| put(ours, n as u8)).collect();
        assert_eq!(first, [0, BATCH], "a full batch goes at once");
        assert_eq!(std::iter::from_fn(received).count(), 2 * BATCH);
        replies.flush();
        let mut text = String::new();
        metrics.write(&mut text, std::iter::empty());
        assert!(text.contains("nodens_dropped_total{cause=\"send\"} 1\n"), "{text}");
        metrics.write_durations(&mut text);
        assert!(text.contains(&format!("_count{{source=\"miss\"}} {}\n", 3 + 2 * BATCH)), "{text}");
    }

    #[test]
    fn a_socket_that_fails_for_good_does_not_cost_a_core() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let metrics = Arc::new(Metrics::new(1));
        let config = Config { zones: Vec::new(), ..Config::default() };
        let view = View::new(&config, |_| unreachable!("there is no zone"));
        let resolver =
            Resolver::new(view, 1 << 20, &config.limits, Arc::clone(&metrics), runtime.handle().clone());
        // Receiving from a socket that listens for TCP fails each time (ENOTCONN).
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let socket = Arc::new(UdpSocket::from(OwnedFd::from(listener)));
        let worker = Worker {
            replies: Arc::new(Replies::new(Arc::clone(&socket), Arc::clone(&metrics))),
            socket,
            place: Place { addr, intercepted: false },
            slot: 0,
            pulse: Arc::new(Pulse::new()),
            resolver,
            shared: false,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::spawn(move || worker.run());
        let errors = || metrics.slot(0).receive_errors.value();
        let end = Instant::now() + Duration::from_secs(5);
        while errors() < 10 {
            assert!(Instant::now() < end, "it does not try again");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (before, started) = (errors(), Instant::now());
        std::thread::sleep(ERROR_PAUSE * 10);
        let tries = errors() - before;
        let most = started.elapsed().as_millis() / ERROR_PAUSE.as_millis() + 1;
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        assert!(u128::from(tries) <= most, "{tries} tries and not {most}");
    }
}
