//! The servers of a scenario, and the network in memory that leads to them.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use nodens::upstream::transport::{Datagrams, Link, Network, Opening, Reader, Receiving};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex, split,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::saying::{Saying, Told};

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
    /// Nothing comes back, not even for a SYN.
    Not,
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
        state.seen.push(Seen { server, transport, way, message: message.clone() });
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
                Reachable::Yes => {}
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
        let (mut reader, writer) = split(stream);
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let way = self.way();
        while let Ok(length) = reader.read_u16().await {
            let mut query = vec![0; usize::from(length)];
            if reader.read_exact(&mut query).await.is_err() {
                return;
            }
            let Some(told) = self.react(&query, server, Transport::Tcp, way) else { continue };
            let close = told.close;
            let writer = Arc::clone(&writer);
            let telling = tokio::spawn(async move { tell(told, &writer).await });
            if close {
                let _ = telling.await;
                return;
            }
        }
    }
}

/// Writes what is said to a stream.
async fn tell(told: Told, writer: &tokio::sync::Mutex<WriteHalf<DuplexStream>>) {
    tokio::time::sleep(told.after).await;
    let mut bytes = Vec::new();
    for (index, message) in told.messages.iter().enumerate() {
        let last = index + 1 == told.messages.len();
        let length = told.frame.filter(|_| last).unwrap_or(message.len() as u16);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&message[..message.len().min(told.cut.filter(|_| last).unwrap_or(usize::MAX))]);
    }
    // An agent that has gone away is no fault of the server's.
    let mut writer = writer.lock().await;
    match told.drip {
        None => {
            let _ = writer.write_all(&bytes).await;
        }
        Some(pause) => {
            for octet in bytes {
                if writer.write_u8(octet).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
    if told.close {
        let _ = writer.shutdown().await;
    }
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
            Reachable::Yes => {
                if let Some(told) = self.servers.react(datagram, self.server, Transport::Udp, self.way) {
                    let sender = self.sender.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(told.after).await;
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
