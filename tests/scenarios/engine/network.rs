//! The servers of a scenario, and the network in memory that leads to them.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use nodens::upstream::transport::{Datagrams, Link, Network, Opening, Reader, Receiving};
use tokio::io::{AsyncRead, AsyncReadExt, DuplexStream, ReadBuf, ReadHalf, duplex, split};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::saying::{Saying, Told, tell};

/// Bytes that a stream holds between its ends.
const STREAM: usize = 128 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Whether a server can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reachable {
    Yes,
    /// It says that nobody is there.
    Refuses,
    /// Nothing arrives and nothing comes back, not even for a SYN.
    Not,
    /// It takes connections and queries, and says nothing.
    Silent,
}

/// Which queries a rule is for.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    pub(crate) name: Name,
    /// `None` is any.
    pub(crate) rtype: Option<RecordType>,
    pub(crate) server: Option<SocketAddr>,
    pub(crate) transport: Option<Transport>,
    /// Whether the query has an OPT.
    pub(crate) opt: Option<bool>,
}

impl Match {
    fn fits(&self, query: &Message, server: SocketAddr, transport: Transport) -> bool {
        let Some(question) = query.queries.first() else { return false };
        self.name == question.name
            && self.rtype.is_none_or(|rtype| rtype == question.query_type)
            && self.server.is_none_or(|known| known == server)
            && self.transport.is_none_or(|known| known == transport)
            && self.opt.is_none_or(|opt| opt == query.edns.is_some())
    }

    fn same_as(&self, other: &Self) -> bool {
        self.name == other.name
            && (self.rtype, self.server, self.transport, self.opt)
                == (other.rtype, other.server, other.transport, other.opt)
    }
}

struct Rule {
    of: Match,
    /// Queries that it is still for; `None` is for good.
    left: Option<usize>,
    saying: Saying,
}

/// A query as a server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) server: SocketAddr,
    pub(crate) transport: Transport,
    /// The port or stream it came by: no two have the same number.
    pub(crate) way: usize,
    pub(crate) message: Message,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    reachable: HashMap<(SocketAddr, Transport), Reachable>,
    /// Streams open to a server, and how many it takes.
    streams: HashMap<SocketAddr, usize>,
    most: HashMap<SocketAddr, usize>,
    seen: Vec<Seen>,
    /// The zones whose SOA the agent asks for on its own behalf.
    probes: Vec<Name>,
    /// Who was asked so.
    probed: Vec<SocketAddr>,
    /// Told when all streams of a server end.
    resets: HashMap<SocketAddr, Arc<Notify>>,
    /// Connections that are still refused.
    refusals: HashMap<SocketAddr, usize>,
    /// How often what is behind an address has been replaced; older streams lead nowhere.
    moves: HashMap<SocketAddr, usize>,
    /// Servers that answer the queries of a stream one after the other.
    serial: HashSet<SocketAddr>,
    unexpected: Vec<String>,
    opened: usize,
    open: usize,
    ways: usize,
}

/// All servers there are.
#[derive(Clone, Default)]
pub(crate) struct Servers(Arc<Mutex<State>>);

impl Servers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is said from now on. Rules for a number of queries are used up in their order, and before
    /// one that is for good, which takes the place of the one before it.
    pub(crate) fn teach(&self, of: Match, left: Option<usize>, saying: Saying) {
        let mut state = self.state();
        if left.is_none() {
            state.rules.retain(|rule| rule.left.is_some() || !rule.of.same_as(&of));
        }
        state.rules.push(Rule { of, left, saying });
    }

    /// Nothing is said any more.
    pub(crate) fn forget(&self) {
        self.state().rules.clear();
    }

    /// By one transport or, with `None`, by both.
    pub(crate) fn reach(&self, server: SocketAddr, transport: Option<Transport>, reachable: Reachable) {
        for by in [Transport::Udp, Transport::Tcp] {
            if transport.is_none_or(|only| only == by) {
                self.state().reachable.insert((server, by), reachable);
            }
        }
    }

    /// The server refuses streams beyond so many.
    pub(crate) fn limit(&self, server: SocketAddr, most: usize) {
        self.state().most.insert(server, most);
    }

    /// The next connections are refused, so many.
    pub(crate) fn refuse(&self, server: SocketAddr, count: usize) {
        self.state().refusals.insert(server, count);
    }

    /// Whether the connection that is tried now is refused.
    fn is_refused(&self, server: SocketAddr) -> bool {
        let mut state = self.state();
        let Some(left) = state.refusals.get_mut(&server).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }

    /// All streams to a server end, whatever is under way on them.
    pub(crate) fn reset(&self, server: SocketAddr) {
        self.reset_of(server).notify_waiters();
    }

    fn reset_of(&self, server: SocketAddr) -> Arc<Notify> {
        Arc::clone(self.state().resets.entry(server).or_default())
    }

    /// Streams that are open lead nowhere from now on; new ones lead to the server.
    pub(crate) fn replace(&self, server: SocketAddr) {
        *self.state().moves.entry(server).or_default() += 1;
    }

    fn moves(&self, server: SocketAddr) -> usize {
        self.state().moves.get(&server).copied().unwrap_or_default()
    }

    /// It answers the queries of a stream one after the other from now on.
    pub(crate) fn serialize(&self, server: SocketAddr) {
        self.state().serial.insert(server);
    }

    /// Questions for the SOA of this zone are the agent's own.
    pub(crate) fn expect_probes(&self, zone: Name) {
        self.state().probes.push(zone);
    }

    /// Probes that arrived, at this server or at any.
    pub(crate) fn probed(&self, server: Option<SocketAddr>) -> usize {
        self.state().probed.iter().filter(|known| server.is_none_or(|server| server == **known)).count()
    }

    /// Queries seen that `fits`.
    pub(crate) fn seen(&self, fits: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        self.state().seen.iter().filter(|seen| fits(seen)).cloned().collect()
    }

    /// Streams opened so far, and those open now.
    pub(crate) fn streams(&self) -> (usize, usize) {
        let state = self.state();
        (state.opened, state.open)
    }

    /// Queries that nothing was said about.
    pub(crate) fn unexpected(&self) -> Vec<String> {
        self.state().unexpected.clone()
    }

    fn reachable(&self, server: SocketAddr, transport: Transport) -> Reachable {
        self.state().reachable.get(&(server, transport)).copied().unwrap_or(Reachable::Yes)
    }

    /// A number for a port or stream.
    fn way(&self) -> usize {
        let mut state = self.state();
        state.ways += 1;
        state.ways
    }

    fn react(&self, bytes: &[u8], server: SocketAddr, transport: Transport, way: usize) -> Option<Told> {
        let message = Message::from_vec(bytes).expect("a well-formed query from the agent");
        let mut state = self.state();
        let is_silent = state.reachable.get(&(server, transport)) == Some(&Reachable::Silent);
        let question = message.queries.first();
        let is_probe =
            question.is_some_and(|of| of.query_type == RecordType::SOA && state.probes.contains(&of.name));
        if is_probe {
            state.probed.push(server);
        } else {
            state.seen.push(Seen { server, transport, way, message: message.clone() });
        }
        if is_silent {
            return None;
        }
        let mut fitting = state
            .rules
            .iter_mut()
            .filter(|rule| rule.left != Some(0) && rule.of.fits(&message, server, transport));
        let rule = fitting.by_ref().find(|rule| rule.left.is_some());
        let rule = match rule {
            Some(rule) => Some(rule),
            None => state
                .rules
                .iter_mut()
                .rfind(|rule| rule.left.is_none() && rule.of.fits(&message, server, transport)),
        };
        let Some(rule) = rule else {
            if is_probe {
                return Some(Saying::good().say(&message));
            }
            let question = message.queries.first().map(ToString::to_string).unwrap_or_default();
            state.unexpected.push(format!("{server} was asked `{question}` by {transport:?}"));
            return None;
        };
        if let Some(left) = &mut rule.left {
            *left -= 1;
        }
        Some(rule.saying.say(&message))
    }
}

impl Network for Servers {
    fn connect(&self, server: SocketAddr) -> Opening<Link> {
        let servers = self.clone();
        Box::pin(async move {
            match servers.reachable(server, Transport::Tcp) {
                Reachable::Yes | Reachable::Silent if servers.is_refused(server) => {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Reachable::Yes | Reachable::Silent => {}
                Reachable::Refuses => return Err(io::ErrorKind::ConnectionRefused.into()),
                Reachable::Not => std::future::pending().await,
            }
            let (ours, theirs) = duplex(STREAM);
            {
                let mut state = servers.state();
                let (open, most) = (state.streams.get(&server).copied(), state.most.get(&server).copied());
                if open.unwrap_or_default() >= most.unwrap_or(usize::MAX) {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                *state.streams.entry(server).or_default() += 1;
                state.opened += 1;
                state.open += 1;
            }
            tokio::spawn(async move {
                servers.serve(theirs, server).await;
                let mut state = servers.state();
                state.open -= 1;
                *state.streams.entry(server).or_default() -= 1;
            });
            let (reader, writer) = split(ours);
            Ok(Link { reader: Box::new(Stream(reader)), writer: Box::new(writer) })
        })
    }

    fn datagrams(&self, server: SocketAddr) -> Opening<Box<dyn Datagrams>> {
        let servers = self.clone();
        Box::pin(async move {
            let (sender, receiver) = unbounded_channel();
            let (way, receiver) = (servers.way(), Mutex::new(receiver));
            Ok(Box::new(Port { servers, server, way, sender, receiver }) as Box<dyn Datagrams>)
        })
    }
}

impl Servers {
    /// One stream, until either end closes it.
    async fn serve(&self, stream: DuplexStream, server: SocketAddr) {
        let reset = self.reset_of(server);
        tokio::select! {
            () = reset.notified() => {}
            () = self.answer(stream, server) => {}
        }
    }

    async fn answer(&self, stream: DuplexStream, server: SocketAddr) {
        let (mut reader, writer) = split(stream);
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let (way, moves) = (self.way(), self.moves(server));
        let mut telling = JoinSet::new(); // what is still to be said ends with the stream
        while let Ok(query) = read(&mut reader).await {
            if self.reachable(server, Transport::Tcp) == Reachable::Not || self.moves(server) > moves {
                continue;
            }
            let Some(told) = self.react(&query, server, Transport::Tcp, way) else { continue };
            let close = told.close;
            let (servers, writer) = (self.clone(), Arc::clone(&writer));
            let told = telling.spawn(async move {
                tokio::time::sleep(told.after).await;
                if servers.speaks(server, Transport::Tcp) && servers.moves(server) == moves {
                    tell(told, &writer).await;
                }
            });
            let serial = self.state().serial.contains(&server);
            while (close || serial) && !told.is_finished() {
                telling.join_next().await;
            }
            if close {
                return;
            }
        }
    }

    /// Whether what it says arrives.
    fn speaks(&self, server: SocketAddr, by: Transport) -> bool {
        !matches!(self.reachable(server, by), Reachable::Not | Reachable::Silent)
    }
}

/// The next query on a stream.
async fn read(reader: &mut ReadHalf<DuplexStream>) -> io::Result<Vec<u8>> {
    let mut query = vec![0; usize::from(reader.read_u16().await?)];
    reader.read_exact(&mut query).await?;
    Ok(query)
}

struct Stream(ReadHalf<DuplexStream>);

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Reader for Stream {}

/// A client's port for datagrams to one server.
struct Port {
    servers: Servers,
    server: SocketAddr,
    way: usize,
    /// `Err` is what an ICMP message makes of the next receive.
    sender: UnboundedSender<io::Result<Vec<u8>>>,
    receiver: Mutex<UnboundedReceiver<io::Result<Vec<u8>>>>,
}

impl Datagrams for Port {
    fn poll_send(&self, _: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        match self.servers.reachable(self.server, Transport::Udp) {
            Reachable::Not => {}
            Reachable::Refuses => {
                let _ = self.sender.send(Err(io::ErrorKind::ConnectionRefused.into()));
            }
            Reachable::Yes | Reachable::Silent => {
                if let Some(told) = self.servers.react(datagram, self.server, Transport::Udp, self.way) {
                    let (sender, servers, server) = (self.sender.clone(), self.servers.clone(), self.server);
                    tokio::spawn(async move {
                        tokio::time::sleep(told.after).await;
                        if !servers.speaks(server, Transport::Udp) {
                            return;
                        }
                        for message in told.messages {
                            let _ = sender.send(Ok(message));
                        }
                    });
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn receive(&self) -> Receiving<'_> {
        Box::pin(poll_fn(|cx| {
            let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
            receiver.poll_recv(cx).map(|datagram| datagram.expect("the port holds a sender"))
        }))
    }
}
