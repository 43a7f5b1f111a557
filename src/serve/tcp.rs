//! TCP clients: pipelined queries, answered as they become ready (RFC 7766, RFC 9210).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Gauge, gauge};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::is_allowed;
use crate::cache::front::Front;
use crate::config::Limits;
use crate::metrics::{Dropped, TCP_CONNECTIONS, Transport};
use crate::resolve::flight::ReplyTo;
use crate::resolve::{Client, Resolver, Step};
use crate::wire::frame::{self, Frames};
use crate::wire::query::OurEdns;

/// Room for what a client sends; grows to one whole message where need be.
const READ: usize = 4096;
/// Answers that may wait for a slow reader before no more of its queries are read.
const UNREAD: usize = 64 * 1024;
/// After a failing accept (no file descriptors left) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts clients, within the limits.
pub struct Listener {
    /// The listening socket.
    pub socket: TcpListener,
    /// Its address.
    pub addr: SocketAddr,
    /// Who answers.
    pub resolver: Arc<Resolver>,
    /// All clients of the process.
    pub clients: Arc<Clients>,
    /// Turns true when no new work should be taken.
    pub stop: watch::Receiver<bool>,
}

/// Who is connected, for the limits.
pub struct Clients {
    limits: Limits,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    gauge: Gauge,
}

impl Clients {
    /// Nobody yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, by_address: Mutex::default(), gauge: gauge!(TCP_CONNECTIONS) })
    }

    /// A place for one more client of this address, if the limits allow it.
    fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = by_address.values().sum();
        let of_address = by_address.entry(ip).or_default();
        let admitted =
            total < self.limits.tcp_connections && *of_address < self.limits.tcp_connections_per_address;
        if !admitted {
            by_address.retain(|_, count| *count > 0);
            return None;
        }
        *of_address += 1;
        self.gauge.increment(1.0);
        Some(Place { clients: Arc::clone(self), ip })
    }

    /// Clients connected now.
    pub fn count(&self) -> usize {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

/// A client's place, given back when it leaves.
struct Place {
    clients: Arc<Clients>,
    ip: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.clients.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.ip);
            }
        }
        self.clients.gauge.decrement(1.0);
    }
}

impl Listener {
    /// Accepts until it is told to stop.
    pub async fn run(self) {
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => self.welcome(stream, peer),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                () = stopped(&mut stop) => return,
            }
        }
    }

    fn welcome(&self, stream: TcpStream, peer: SocketAddr) {
        let ip = peer.ip().to_canonical();
        let Some(place) = self.clients.admit(ip) else {
            let metrics = &self.resolver.metrics;
            metrics.slot(metrics.shared()).dropped(Dropped::TcpLimit);
            return;
        };
        let (replies, ready) = mpsc::unbounded_channel();
        let conversation = Conversation {
            resolver: Arc::clone(&self.resolver),
            listen: self.addr.ip(),
            peer: ip,
            idle: self.clients.limits.tcp_idle,
            max_in_flight: self.clients.limits.tcp_in_flight,
            in_flight: 0,
            replies,
            input: Vec::with_capacity(READ),
            output: Vec::new(),
            scratch: Vec::new(),
        };
        let stop = self.stop.clone();
        tokio::spawn(async move {
            // An error ends this client's connection and concerns nobody else.
            let _ = conversation.run(stream, ready, stop).await;
            drop(place);
        });
    }
}

/// Returns when no new work should be taken.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The guard that it returns must not be held across an await. An error: the agent is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One client's connection.
struct Conversation {
    resolver: Arc<Resolver>,
    listen: IpAddr,
    peer: IpAddr,
    idle: Duration,
    max_in_flight: usize,
    in_flight: usize,
    replies: mpsc::UnboundedSender<Vec<u8>>,
    input: Vec<u8>,
    output: Vec<u8>,
    scratch: Vec<u8>,
}

impl Conversation {
    async fn run(
        mut self,
        mut stream: TcpStream,
        mut ready: mpsc::UnboundedReceiver<Vec<u8>>,
        mut stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let (mut reader, mut writer) = stream.split();
        let mut written = 0;
        let mut done_reading = false;
        let mut batch = Vec::new();
        let mut active = Instant::now();
        let timer = tokio::time::sleep(self.idle);
        tokio::pin!(timer);
        loop {
            let unread = self.output.len() - written;
            if done_reading && unread == 0 && self.in_flight == 0 {
                return Ok(());
            }
            // As in `answer_queries`: what is read must also be taken, or the input would grow.
            let room = self.in_flight < self.max_in_flight && self.output.len() < UNREAD;
            tokio::select! {
                biased;
                sent = writer.write(&self.output[written..]), if unread > 0 => {
                    written += sent?;
                    active = Instant::now();
                    if written == self.output.len() {
                        self.output.clear();
                        written = 0;
                        self.answer_queries(&mut active); // those that waited for room
                    }
                }
                _ = ready.recv_many(&mut batch, self.max_in_flight) => {
                    for reply in batch.drain(..) {
                        self.in_flight -= 1;
                        frame::append(&mut self.output, |out| out.extend_from_slice(&reply));
                    }
                    active = Instant::now();
                    self.answer_queries(&mut active);
                }
                read = reader.read_buf(&mut self.input), if room && !done_reading => {
                    done_reading = read? == 0;
                    self.answer_queries(&mut active);
                }
                () = &mut timer => {
                    let left = self.idle.saturating_sub(active.elapsed());
                    if left.is_zero() && self.in_flight == 0 {
                        return Ok(());
                    }
                    // With queries in flight the client has nothing to do but wait.
                    let next = if left.is_zero() { self.idle } else { left };
                    timer.as_mut().reset(tokio::time::Instant::now() + next);
                }
                () = stopped(&mut stop), if !done_reading => done_reading = true,
            }
        }
    }

    /// Decides about the whole messages in the input, as long as there is room for their answers.
    /// Only a whole message counts as activity, so that a trickle of bytes holds nothing open.
    fn answer_queries(&mut self, active: &mut Instant) {
        if self.input.len() < 2 {
            return;
        }
        let now = Instant::now();
        let resolver = Arc::clone(&self.resolver);
        let view = resolver.view();
        let slot = resolver.metrics.shared();
        let metrics = resolver.metrics.slot(slot);
        let client = Client {
            slot,
            transport: Transport::Tcp,
            ipv6: self.peer.is_ipv6(),
            allowed: is_allowed(&view.allow_from, self.listen, self.peer),
            ours: OurEdns {
                size: view.edns_size,
                keepalive: Some(u16::try_from(self.idle.as_millis() / 100).unwrap_or(u16::MAX)),
            },
        };
        let mut front = Front::none();
        let mut frames = Frames::new(&self.input);
        while self.in_flight < self.max_in_flight && self.output.len() < UNREAD {
            let Some(packet) = frames.next() else { break };
            *active = now;
            match resolver.handle(&view, &client, packet, now, &mut front, &mut self.scratch) {
                Step::Reply(source) => {
                    frame::append(&mut self.output, |out| out.extend_from_slice(&self.scratch));
                    metrics.took(source, now.elapsed(), 1);
                }
                Step::Drop(why) => metrics.dropped(why),
                Step::Wait(miss) => {
                    self.in_flight += 1;
                    resolver.wait(miss, ReplyTo::Stream(self.replies.clone()));
                }
            }
        }
        let used = self.input.len() - frames.left();
        self.input.drain(..used);
        let wanted = match *self.input {
            [high, low, ..] => 2 + usize::from(u16::from_be_bytes([high, low])),
            _ => READ,
        };
        self.input.reserve(wanted.saturating_sub(self.input.len()).max(1));
    }
}
