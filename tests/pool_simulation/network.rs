//! The network of the simulation: addresses, what stands behind each, and when what happens to it.
//!
//! Nothing runs by itself: an answer is made when its query is written, with the time of its arrival. So ten
//! seconds of 2,000 queries each take a second or two.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nodens::upstream::transport::{Datagrams, Link, Network, Opening, Reader, Receiving};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::endpoint::{Endpoint, Reach, Service};
use crate::line::{Line, Read};

/// A SYN is repeated after a second, then after twice as long each time (RFC 6298 §2).
const SYN: Duration = Duration::from_secs(1);

/// Of tokio's timers.
const HALF_A_TICK: Duration = Duration::from_micros(500);

struct State {
    random: StdRng,
    endpoints: Vec<Endpoint>,
    /// A ClusterIP has several.
    addresses: HashMap<SocketAddr, Vec<usize>>,
    lines: HashMap<u64, Line>,
    numbers: u64,
}

/// All of it.
#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<State>>);

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: StdRng::seed_from_u64(seed),
            endpoints: Vec::new(),
            addresses: HashMap::new(),
            lines: HashMap::new(),
            numbers: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new endpoint that no address leads to.
    pub(crate) fn endpoint(&self, service: Service) -> usize {
        let mut state = self.state();
        state.endpoints.push(Endpoint::new(service));
        state.endpoints.len() - 1
    }

    /// From now on a new connection or port to this address leads to one of these, at random.
    pub(crate) fn lead(&self, address: SocketAddr, endpoints: &[usize]) {
        self.state().addresses.insert(address, endpoints.to_vec());
    }

    /// Changes how it works.
    pub(crate) fn service(&self, endpoint: usize, change: impl FnOnce(&mut Service)) {
        change(&mut self.state().endpoints[endpoint].service);
    }

    /// Looks at an endpoint.
    pub(crate) fn look<T>(&self, endpoint: usize, look: impl FnOnce(&Endpoint) -> T) -> T {
        look(&self.state().endpoints[endpoint])
    }

    /// Queries sent to all.
    pub(crate) fn asked(&self) -> u64 {
        self.state().endpoints.iter().map(|endpoint| endpoint.asked).sum()
    }

    /// Nothing comes from there any more.
    pub(crate) fn silence(&self, endpoint: usize) {
        self.is_now(endpoint, Reach::Silent);
    }

    /// The process does nothing any more, and its kernel goes on.
    pub(crate) fn freeze(&self, endpoint: usize) {
        self.is_now(endpoint, Reach::Frozen);
    }

    /// It ends: its connections are reset, and others are refused.
    pub(crate) fn refuse(&self, endpoint: usize) {
        self.is_now(endpoint, Reach::Refuses);
        self.reset(endpoint);
    }

    fn is_now(&self, endpoint: usize, reach: Reach) {
        let mut state = self.state();
        let of = &mut state.endpoints[endpoint];
        (of.reach, of.since) = (reach, Instant::now());
    }

    /// It works again. What was unanswered goes on, unless the process is another one.
    pub(crate) fn back(&self, endpoint: usize) {
        let now = Instant::now();
        let was = self.look(endpoint, |of| (of.reach, of.since));
        self.is_now(endpoint, Reach::Yes);
        let State { lines, endpoints, random, .. } = &mut *self.state();
        for line in lines.values_mut().filter(|line| line.endpoint == endpoint) {
            line.back(now, was, &endpoints[endpoint], random);
        }
    }

    /// It works again as another process, which knows nothing of the connections to the one before.
    pub(crate) fn restarted(&self, endpoint: usize) {
        for line in self.state().lines.values_mut().filter(|line| line.endpoint == endpoint) {
            line.orphaned = true;
        }
        self.back(endpoint);
    }

    /// Resets all connections to it.
    pub(crate) fn reset(&self, endpoint: usize) {
        let now = Instant::now();
        for line in self.state().lines.values_mut().filter(|line| line.endpoint == endpoint) {
            line.reset(now);
        }
    }

    /// Chooses where a new connection or port leads.
    fn choose(&self, address: SocketAddr) -> Option<usize> {
        let State { addresses, random, .. } = &mut *self.state();
        let behind = addresses.get(&address).filter(|behind| !behind.is_empty())?;
        Some(behind[random.random_range(0..behind.len())])
    }

    fn open(&self, endpoint: usize) -> Link {
        let mut state = self.state();
        state.numbers += 1;
        let number = state.numbers;
        state.lines.insert(number, Line::new(endpoint, Instant::now()));
        let of = &mut state.endpoints[endpoint];
        of.opened += 1;
        of.open += 1;
        of.most_open = of.most_open.max(of.open);
        let ticket = Arc::new(Ticket { net: self.clone(), number });
        let timer = Box::pin(sleep(Duration::ZERO));
        let reader = Receives { ticket: Arc::clone(&ticket), timer, left: Vec::new() };
        Link { reader: Box::new(reader), writer: Box::new(Sends(ticket)) }
    }
}

impl Network for Net {
    fn connect(&self, address: SocketAddr) -> Opening<Link> {
        let net = self.clone();
        Box::pin(async move {
            let Some(endpoint) = net.choose(address) else {
                return Err(io::ErrorKind::ConnectionRefused.into()); // kube-proxy rejects
            };
            let mut pause = SYN;
            loop {
                // A timer would make a whole millisecond of less.
                match net.look(endpoint, |of| of.service.rtt) {
                    rtt if rtt < HALF_A_TICK => tokio::task::yield_now().await,
                    rtt => sleep(rtt).await,
                }
                match net.look(endpoint, |of| of.reach) {
                    Reach::Yes | Reach::Frozen => return Ok(net.open(endpoint)),
                    Reach::Refuses => return Err(io::ErrorKind::ConnectionRefused.into()),
                    Reach::Silent => sleep(pause).await,
                }
                pause *= 2;
            }
        })
    }

    fn datagrams(&self, address: SocketAddr) -> Opening<Box<dyn Datagrams>> {
        let net = self.clone();
        Box::pin(async move {
            let endpoint = net.choose(address);
            Ok(Box::new(Port { net, endpoint, inbox: Mutex::default() }) as Box<dyn Datagrams>)
        })
    }
}

/// A connection as the client holds it.
struct Ticket {
    net: Net,
    number: u64,
}

impl Ticket {
    fn with<T>(&self, act: impl FnOnce(&mut Line, &mut Endpoint, &mut StdRng) -> T) -> T {
        let State { lines, endpoints, random, .. } = &mut *self.net.state();
        let line = lines.get_mut(&self.number).expect("a connection that is held");
        let endpoint = &mut endpoints[line.endpoint];
        act(line, endpoint, random)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let State { lines, endpoints, .. } = &mut *self.net.state();
        let line = lines.remove(&self.number).expect("a connection that is held");
        let of = &mut endpoints[line.endpoint];
        of.open -= 1;
        of.per_connection.push(line.queries);
    }
}

struct Receives {
    ticket: Arc<Ticket>,
    timer: Pin<Box<Sleep>>,
    /// Read from the line, and not by the client yet.
    left: Vec<u8>,
}

impl AsyncRead for Receives {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.left.is_empty() {
                let length = self.left.len().min(buffer.remaining());
                buffer.put_slice(&self.left[..length]);
                self.left.drain(..length);
                return Poll::Ready(Ok(()));
            }
            let read = self.ticket.with(|line, of, _| {
                line.waker = Some(cx.waker().clone());
                line.read(Instant::now(), of)
            });
            match read {
                Read::Bytes(bytes) => self.left = bytes,
                Read::End(end) => return Poll::Ready(end),
                Read::Wait(None) => return Poll::Pending,
                Read::Wait(Some(at)) => {
                    if self.timer.deadline() != at {
                        self.timer.as_mut().reset(at);
                    }
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl Reader for Receives {}

struct Sends(Arc<Ticket>);

impl AsyncWrite for Sends {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.with(|line, of, random| line.write(bytes, Instant::now(), of, random));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Inbox {
    /// What arrives, and when; `Err` is what an ICMP message makes of it.
    datagrams: Vec<(Instant, io::Result<Vec<u8>>)>,
    waker: Option<Waker>,
}

/// A client's port for datagrams.
struct Port {
    net: Net,
    endpoint: Option<usize>,
    inbox: Mutex<Inbox>,
}

impl Port {
    /// What a datagram brings.
    fn ask(&self, query: &[u8]) -> Option<(Instant, io::Result<Vec<u8>>)> {
        let now = Instant::now();
        let refused = || Err(io::ErrorKind::ConnectionRefused.into());
        let Some(endpoint) = self.endpoint else { return Some((now, refused())) };
        let State { endpoints, random, .. } = &mut *self.net.state();
        let of = &mut endpoints[endpoint];
        of.was_asked(query);
        match of.reach {
            Reach::Silent | Reach::Frozen => None,
            Reach::Refuses => Some((now + of.service.rtt, refused())),
            Reach::Yes => {
                let is_lost = of.loses(random) || of.loses(random);
                let (at, answer) = of.answer(query, now, &mut { now }, random);
                (!is_lost).then_some((at, Ok(answer)))
            }
        }
    }
}

impl Datagrams for Port {
    fn poll_send(&self, _: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        if let Some(arriving) = self.ask(datagram) {
            let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            inbox.datagrams.push(arriving);
            inbox.waker.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(Ok(()))
    }

    fn receive(&self) -> Receiving<'_> {
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        Box::pin(poll_fn(move |cx| {
            loop {
                let now = Instant::now();
                let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
                let first = (0..inbox.datagrams.len()).min_by_key(|&index| inbox.datagrams[index].0);
                let Some(first) = first else {
                    inbox.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                };
                let at = inbox.datagrams[first].0;
                if at <= now {
                    let (_, datagram) = inbox.datagrams.swap_remove(first);
                    let silent =
                        self.endpoint.is_some_and(|of| self.net.look(of, |of| of.reach) == Reach::Silent);
                    if silent {
                        continue; // dropped on its way
                    }
                    return Poll::Ready(datagram);
                }
                inbox.waker = Some(cx.waker().clone());
                let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
                timer.as_mut().reset(at);
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }))
    }
}
