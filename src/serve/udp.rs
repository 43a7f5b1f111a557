//! The receive loop of one UDP worker: a thread that never waits for one client.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::sys::{BATCH, Inbox, Outbox, Peer};
use super::{Pulse, is_allowed};
use crate::cache::front::Front;
use crate::metrics::{Dropped, Source, Transport};
use crate::resolve::flight::ReplyTo;
use crate::resolve::view::View;
use crate::resolve::{Client, Resolver, Step};
use crate::wire::query::OurEdns;

/// Batches that a stopping worker still takes from its socket's queue: more than the queue holds.
const LAST_BATCHES: usize = 1024;

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

/// One worker: a socket, and where its queries go.
pub struct Worker {
    /// Its own socket of the address's group.
    pub socket: Arc<UdpSocket>,
    /// The address that it is bound to.
    pub addr: SocketAddr,
    /// The slot of its counters.
    pub slot: usize,
    /// Its sign of life.
    pub pulse: Arc<Pulse>,
    /// Who answers.
    pub resolver: Arc<Resolver>,
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
        for _ in 0..LAST_BATCHES {
            if self.turn(&mut inbox, &mut front, &mut outbox, false) != Turn::Served {
                break;
            }
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
        for (packet, peer) in inbox.packets() {
            if let Some(source) = self.packet(&view, packet, &peer, now, front, outbox) {
                answered[source as usize] += 1;
            }
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
    ) -> Option<Source> {
        let metrics = self.resolver.metrics.slot(self.slot);
        let addr = peer.addr();
        if addr.port() == 0 || addr == self.addr {
            metrics.dropped(Dropped::Source);
            return None;
        }
        let client = Client {
            slot: self.slot,
            transport: Transport::Udp,
            ipv6: addr.is_ipv6(),
            allowed: is_allowed(&view.allow_from, self.addr.ip(), addr.ip()),
            ours: OurEdns { size: view.edns_size, keepalive: None },
        };
        match self.resolver.handle(view, &client, packet, now, front, outbox.next()) {
            Step::Reply(source) => {
                outbox.commit(peer);
                return Some(source);
            }
            Step::Drop(why) => metrics.dropped(why),
            Step::Wait(miss) => {
                let (socket, ours) = (Arc::clone(&self.socket), self.addr);
                self.resolver.wait(miss, ReplyTo::Udp { socket, ours, peer: addr });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;

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
        let worker = Worker {
            socket: Arc::new(UdpSocket::from(OwnedFd::from(listener))),
            addr,
            slot: 0,
            pulse: Arc::new(Pulse::new()),
            resolver,
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
