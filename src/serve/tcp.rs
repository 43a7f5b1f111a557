//! TCP clients: pipelined queries, answered as they become ready (RFC 7766, RFC 9210).

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::ReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub use super::clients::Clients;
use super::clients::Connected;
use super::is_allowed;
use super::socket::Place;
use crate::cache::front::Front;
use crate::metrics::{Dropped, Transport};
use crate::resolve::flight::ReplyTo;
use crate::resolve::{Client, Resolver, Step};
use crate::wire::frame::{self, Frames};
use crate::wire::query::OurEdns;

/// Room for what a client sends at once. It grows with what has come, not with what a length announces.
const READ: usize = 4096;
/// Answers that may wait for a slow reader before no more of its queries are read.
const UNREAD: usize = 64 * 1024;
/// After a failing accept (no file descriptors left) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Of whom no query came for so long, none crosses our goodbye but by bad luck.
const QUIET: Duration = Duration::from_millis(100);
/// Who has opened a connection and not asked yet does so within this time, or is in no hurry.
const SILENT: Duration = Duration::from_secs(1);

/// What is taken from TCP clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Everything.
    Serving,
    /// Everything, but whoever gets an answer and awaits no other is let go with it, and who has asked and is quiet
    /// (100 ms; who has not asked yet a second) as well. In between the next query would cross our goodbye.
    Finishing,
    /// The same, and whoever comes is let in by another agent, which shares the listening socket.
    Sharing,
    /// Nothing more.
    Stopping,
}

/// Accepts clients, within the limits.
pub struct Listener {
    /// The listening socket.
    pub socket: TcpListener,
    /// What it is bound to.
    pub place: Place,
    /// Who answers.
    pub resolver: Arc<Resolver>,
    /// All clients of the process.
    pub clients: Arc<Clients>,
    /// What is taken now.
    pub stage: watch::Receiver<Stage>,
}

impl Listener {
    /// Accepts until it is told to stop.
    pub async fn run(self) {
        let mut stage = self.stage.clone();
        loop {
            tokio::select! {
                biased;
                () = reached(&mut stage, Stage::Sharing) => return,
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => {
                        self.welcome(stream, peer);
                        // Whoever had to go for it goes before the next one comes.
                        tokio::task::yield_now().await;
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }

    fn welcome(&self, stream: TcpStream, peer: SocketAddr) {
        let ip = peer.ip().to_canonical();
        let resolver = Arc::clone(&self.resolver);
        let Some((place, ready)) = self.clients.admit(ip) else {
            resolver.metrics.slot(resolver.metrics.shared()).dropped(Dropped::TcpLimit);
            return;
        };
        let limits = self.clients.limits();
        let conversation = Conversation {
            resolver: Arc::clone(&resolver),
            connected: Arc::clone(&place.client),
            place: self.place,
            peer: ip,
            idle: limits.tcp_idle,
            max_in_flight: limits.tcp_in_flight,
            in_flight: 0,
            active: Instant::now(),
            has_asked: false,
            finishing: false,
            parting: false,
            input: Vec::new(),
            output: Vec::new(),
            buffers: 0,
        };
        let stage = self.stage.clone();
        tokio::spawn(async move {
            let over_limit = tokio::select! {
                biased;
                () = place.client.dismissed() => true,
                // An error ends this client's connection and concerns nobody else.
                ended = conversation.run(stream, ready, stage) => {
                    ended.is_err_and(|error| error.kind() == ErrorKind::OutOfMemory)
                }
            };
            if over_limit {
                resolver.metrics.slot(resolver.metrics.shared()).dropped(Dropped::TcpLimit);
            }
            drop(place);
        });
    }
}

/// Returns when this stage has come.
async fn reached(now: &mut watch::Receiver<Stage>, stage: Stage) {
    // The guard that it returns must not be held across an await. An error: the agent is gone.
    let _ = now.wait_for(|now| *now >= stage).await;
}

/// One client's connection.
struct Conversation {
    resolver: Arc<Resolver>,
    connected: Arc<Connected>,
    place: Place,
    peer: IpAddr,
    idle: Duration,
    max_in_flight: usize,
    /// Queries whose answers have not been put into `output` yet.
    in_flight: usize,
    /// When a whole query was read or an answer moved on.
    active: Instant,
    /// Whether a whole query has come.
    has_asked: bool,
    /// Whether it is let go when the moment is good.
    finishing: bool,
    /// Whether it is: it awaits nothing.
    parting: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    /// What is held for both.
    buffers: usize,
}

impl Conversation {
    async fn run(
        mut self,
        mut stream: TcpStream,
        mut ready: mpsc::UnboundedReceiver<Vec<u8>>,
        mut stage: watch::Receiver<Stage>,
    ) -> io::Result<()> {
        let (reader, mut writer) = stream.split();
        let mut written = 0;
        let mut done_reading = false;
        let timer = tokio::time::sleep(self.idle);
        tokio::pin!(timer);
        loop {
            let unread = self.output.len() - written;
            if (done_reading || self.parting) && unread == 0 && self.in_flight == 0 {
                if done_reading || !self.has_more(&reader)? {
                    return Ok(());
                }
                continue;
            }
            let next = if self.finishing { Stage::Stopping } else { Stage::Finishing };
            // As in `answer_queries`: what is read must also be taken, or the input would grow.
            let room = self.in_flight < self.max_in_flight && self.output.len() < UNREAD;
            tokio::select! {
                biased;
                sent = writer.write(&self.output[written..]), if unread > 0 => {
                    written += sent?;
                    self.is_active(Instant::now());
                    if written == self.output.len() {
                        self.output = Vec::new();
                        written = 0;
                        self.parting = self.finishing;
                        self.answer_queries()?; // those that waited for room
                    }
                }
                Some(reply) = ready.recv(), if self.output.len() < UNREAD => {
                    self.is_active(Instant::now());
                    self.take_replies(reply, &mut ready);
                    self.answer_queries()?;
                }
                readable = reader.readable(), if room && !done_reading => {
                    readable?;
                    // Only now, so that a client who says nothing needs no buffer.
                    self.input.reserve(READ);
                    match reader.try_read_buf(&mut self.input) {
                        Ok(0) => done_reading = true,
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                    self.answer_queries()?;
                }
                () = &mut timer => {
                    let idle = match (self.finishing, self.has_asked) {
                        (false, _) => self.idle,
                        (true, true) => QUIET,
                        (true, false) => SILENT.min(self.idle),
                    };
                    let left = idle.saturating_sub(self.active.elapsed());
                    if left.is_zero() && !self.connected.is_waiting() {
                        return Ok(());
                    }
                    // With queries in flight the client has nothing to do but wait.
                    let next = if left.is_zero() { idle } else { left };
                    timer.as_mut().reset(tokio::time::Instant::now() + next);
                }
                () = reached(&mut stage, next), if !done_reading => match next {
                    Stage::Stopping => done_reading = true,
                    _ => {
                        self.finishing = true;
                        timer.as_mut().reset(tokio::time::Instant::now());
                    }
                },
            }
        }
    }

    /// Whether queries have come meanwhile, or a part of one, which are taken: a goodbye to unread ones would be a reset.
    fn has_more(&mut self, reader: &ReadHalf<'_>) -> io::Result<bool> {
        self.input.reserve(READ);
        match reader.try_read_buf(&mut self.input) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && self.input.is_empty() => return Ok(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        self.parting = false;
        self.answer_queries()?;
        Ok(true)
    }

    fn is_active(&mut self, now: Instant) {
        self.active = now;
        self.connected.was_active(now);
    }

    /// How long it may be idle, in units of 100 ms; 0 asks it to close (RFC 7828 §3.2.2).
    fn keepalive(&self) -> u16 {
        if self.finishing { 0 } else { u16::try_from(self.idle.as_millis() / 100).unwrap_or(u16::MAX) }
    }

    /// Puts late answers into the output, as many as there is room for.
    fn take_replies(&mut self, first: Vec<u8>, ready: &mut mpsc::UnboundedReceiver<Vec<u8>>) {
        let mut next = Some(first);
        while let Some(reply) = next {
            self.in_flight -= 1;
            self.buffers += reply.len(); // held since it was delivered
            frame::append(&mut self.output, |out| out.extend_from_slice(&reply));
            next = if self.output.len() < UNREAD { ready.try_recv().ok() } else { None };
        }
    }

    /// Decides about the whole messages in the input, as long as there is room for their answers.
    /// Only a whole message counts as activity, so that a trickle of bytes holds nothing open.
    fn answer_queries(&mut self) -> io::Result<()> {
        if self.input.len() >= 2 {
            let input = std::mem::take(&mut self.input);
            self.input = self.answer_those_in(input);
        } else if self.input.is_empty() {
            self.input = Vec::new();
        }
        self.account()
    }

    /// Answers the whole messages at the front of `input` and gives back the rest.
    fn answer_those_in(&mut self, mut input: Vec<u8>) -> Vec<u8> {
        let now = Instant::now();
        let resolver = Arc::clone(&self.resolver);
        let view = resolver.view();
        let slot = resolver.metrics.shared();
        let metrics = resolver.metrics.slot(slot);
        let client = Client {
            slot,
            transport: Transport::Tcp,
            ipv6: self.peer.is_ipv6(),
            allowed: is_allowed(&view.allow_from, self.place, self.peer),
            ours: OurEdns { size: view.edns_size, keepalive: Some(self.keepalive()) },
        };
        let mut front = Front::none();
        let mut answer = Vec::with_capacity(512);
        let mut frames = Frames::new(&input);
        while self.in_flight < self.max_in_flight && self.output.len() < UNREAD {
            let Some(packet) = frames.next() else { break };
            self.is_active(now);
            self.has_asked = true;
            match resolver.handle(&view, &client, packet, now, &mut front, &mut answer) {
                Step::Reply(source) => {
                    frame::append(&mut self.output, |out| out.extend_from_slice(&answer));
                    metrics.took(source, now.elapsed(), 1);
                }
                Step::Drop(why) => metrics.dropped(why),
                Step::Wait(miss) => {
                    self.in_flight += 1;
                    self.connected.waits();
                    resolver.wait(miss, ReplyTo::Stream(Arc::clone(&self.connected) as _));
                }
            }
        }
        match frames.left() {
            0 => Vec::new(),
            left => {
                input.drain(..input.len() - left);
                input
            }
        }
    }

    /// Holds what the buffers have grown to.
    ///
    /// # Errors
    /// There is no memory left for this client.
    fn account(&mut self) -> io::Result<()> {
        let before = std::mem::replace(&mut self.buffers, self.input.capacity() + self.output.capacity());
        if self.buffers <= before {
            self.connected.release(before - self.buffers);
        } else if !self.connected.hold(self.buffers - before) {
            return Err(ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }
}
