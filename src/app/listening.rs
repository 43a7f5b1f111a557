//! Who answers at which place: threads for UDP, and a task for the TCP clients of each.
//!
//! A place that cannot be had yet (no link has the address, somebody else has the port) is tried again until it can:
//! an agent that ended instead would be started again and again, and answer nowhere meanwhile.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::Type;
use tokio::sync::watch;

use crate::parent::{self, Parent};
use crate::readiness::{Pulse, Readiness, Step};
use crate::resolve::Resolver;
use crate::serve::socket::{self, Listeners, Manner, Place};
use crate::serve::tcp::{Clients, Listener, Stage};
use crate::serve::udp::{Replies, Worker};

/// The first pause between two tries; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A try costs two system calls, and whoever waits has no DNS meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Those who answer.
pub(super) struct Listening {
    resolver: Arc<Resolver>,
    readiness: Arc<Readiness>,
    parent: Arc<Parent>,
    manner: Manner,
    pub(super) clients: Arc<Clients>,
    stop_workers: Arc<AtomicBool>,
    stage: watch::Sender<Stage>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Listening {
    /// Nobody yet; a thread for each socket that `manner` has opened at each place. What `parent` holds is taken as it is.
    pub(super) fn new(
        resolver: &Arc<Resolver>,
        readiness: &Arc<Readiness>,
        clients: Arc<Clients>,
        (parent, manner): (&Arc<Parent>, Manner),
    ) -> Arc<Self> {
        Arc::new(Self {
            resolver: Arc::clone(resolver),
            readiness: Arc::clone(readiness),
            parent: Arc::clone(parent),
            manner,
            clients,
            stop_workers: Arc::default(),
            stage: watch::Sender::new(Stage::Serving),
            threads: Mutex::default(),
        })
    }

    /// Answers there, at once or as soon as it can be. Returns the address, with its port if the system chose it.
    ///
    /// # Errors
    /// What will not mend by itself: the process may not.
    pub(super) fn answer_at(self: &Arc<Self>, place: Place) -> io::Result<SocketAddr> {
        match self.try_at(place) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            Err(_) => {
                tokio::spawn(Arc::clone(self).retry(place));
                Ok(place.addr)
            }
            opened => opened,
        }
    }

    async fn retry(self: Arc<Self>, place: Place) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            if *self.stage.borrow() == Stage::Stopping {
                return;
            }
            if self.try_at(place).is_ok() {
                tracing::info!(listen = %place.addr, "answering there as well");
                return;
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn try_at(&self, place: Place) -> io::Result<SocketAddr> {
        let subject = place.addr.to_string();
        let opened = self.sockets(place).and_then(|(listeners, shared)| self.serve(listeners, shared));
        match &opened {
            Ok(_) => {
                self.readiness.has(Step::Listen, &subject);
            }
            Err(error) => self.readiness.lacks(Step::Listen, &subject, error.to_string()),
        }
        opened
    }

    /// Those of the parent, which an agent before this one may still use; where it has none they are opened, and it keeps
    /// them from then on.
    fn sockets(&self, place: Place) -> io::Result<(Listeners, bool)> {
        let udp = self.parent.sockets(Type::DGRAM, place.addr);
        let tcp = self.parent.sockets(Type::STREAM, place.addr).pop();
        if !udp.is_empty() {
            return Ok((socket::take(place, udp, tcp)?, true));
        }
        let opened = socket::open(place, self.manner)?;
        if self.parent.is_there() {
            let mut all: Vec<BorrowedFd<'_>> = opened.udp.iter().map(AsFd::as_fd).collect();
            all.push(opened.tcp.as_fd());
            self.parent.keep(parent::SOCKET, &all);
        }
        Ok((opened, false))
    }

    fn serve(&self, Listeners { udp, tcp, place }: Listeners, shared: bool) -> io::Result<SocketAddr> {
        let socket = tokio::net::TcpListener::from_std(tcp)?;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let udp: Vec<_> = udp.into_iter().map(Arc::new).collect();
        // Whoever holds the sockets may have made more of them, or fewer: none stays without a thread.
        for at in 0..udp.len().max(self.manner.workers) {
            let pulse = Arc::new(Pulse::new());
            let (slot, socket) = (at % self.manner.workers, Arc::clone(&udp[at % udp.len()]));
            let worker = Worker {
                replies: Arc::new(Replies::new(Arc::clone(&socket), Arc::clone(&self.resolver.metrics))),
                socket,
                place,
                slot,
                pulse: Arc::clone(&pulse),
                resolver: Arc::clone(&self.resolver),
                stop: Arc::clone(&self.stop_workers),
            };
            let thread = std::thread::Builder::new().name(format!("udp-{at}"));
            threads.push(thread.spawn(move || worker.run())?);
            self.readiness.watch(pulse);
        }
        let listener = Listener {
            socket,
            place,
            resolver: Arc::clone(&self.resolver),
            clients: Arc::clone(&self.clients),
            stage: self.stage.subscribe(),
        };
        let readiness = Arc::clone(&self.readiness);
        tokio::spawn(async move {
            // Until our own rules know them, connections to a ClusterIP are for the agent whose rules do.
            if shared && place.intercepted {
                readiness.ready().await;
            }
            listener.run().await;
        });
        Ok(place.addr)
    }

    /// Lets TCP clients go as their answers are sent, and still takes new ones.
    pub(super) fn finish(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    /// Takes no more datagrams. Returns the threads, each of which notices within
    /// [`HEARTBEAT`](crate::serve::socket::HEARTBEAT).
    pub(super) fn stop_datagrams(&self) -> Vec<JoinHandle<()>> {
        self.stop_workers.store(true, Ordering::Relaxed);
        std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes no more TCP clients, and nothing more from those that are there.
    pub(super) fn stop_streams(&self) {
        self.stage.send_replace(Stage::Stopping);
    }
}
