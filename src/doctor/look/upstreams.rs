//! Every upstream, asked by UDP and by TCP at the same time: do they answer, and how fast?

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::config::{Config, DNS_PORT, Network as Settings, Scheme, Server, Upstream, Zone};
use crate::upstream::tls::{Client, Tls};
use crate::upstream::transport::{Datagrams, Kernel, Link, Network};

/// A server that needs longer is of no use to a client, which gives up after 5 s and two or three servers.
const PATIENCE: Duration = Duration::from_secs(2);
/// Within it a datagram is sent so often: one that is lost does not condemn a server.
const DATAGRAMS: u32 = 2;
/// Servers that are asked at the same time. A hundred that are all silent take half a minute.
const AT_ONCE: usize = 16;

/// One server, and how it answered.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The zones that ask it.
    pub zones: Vec<String>,
    /// As the configuration names it, and what that stands for.
    pub label: String,
    /// Where it is.
    pub addr: Option<SocketAddr>,
    /// How clients' questions go there.
    pub how: How,
    /// By UDP; `None` where that is never done.
    pub udp: Option<Outcome>,
    /// By TCP, or by TLS for servers that are asked so.
    pub tcp: Option<Outcome>,
}

/// How the configuration has a server asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// By UDP, and by TCP when an answer is truncated.
    Udp,
    /// By TCP.
    Tcp,
    /// By TLS.
    Tls,
    /// By TCP or else by UDP.
    Auto,
}

/// An RCODE and how long it took, or why there is none.
pub type Outcome = Result<(u16, Duration), Trouble>;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing came within 2 s.
    Silent,
    /// Nobody listens there.
    Refused,
    /// There is no way there.
    Unreachable,
    /// It took the connection and ended it.
    Closed,
    /// Only marked packets get there, and we may not mark ours: nothing was asked.
    NotAllowed,
    /// The name in the configuration has no address.
    Name(String),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => write!(f, "silent for {} s", PATIENCE.as_secs()),
            Self::Refused => f.write_str("refused"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Closed => f.write_str("closed without an answer"),
            Self::NotAllowed => f.write_str("not asked"),
            Self::Name(why) => write!(f, "its name could not be looked up: {why}"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// A server to ask.
#[derive(Debug, Clone)]
struct Target {
    label: String,
    /// Where it is, or why that is not known.
    at: Result<SocketAddr, Trouble>,
    how: How,
    /// The name in its certificate.
    name: Option<String>,
}

/// A server, the first zone that asks it, and the names of all of them.
struct Look<'a> {
    target: Target,
    zone: &'a Zone,
    zones: Vec<String>,
}

/// What was found of names: by their bootstrap servers.
type Names<'a> = HashMap<(&'a Name, &'a [Server]), Result<Vec<IpAddr>, Trouble>>;

/// Asks the servers of all zones, each once, `system` being these.
pub async fn ask(config: &Config, system: &[IpAddr]) -> Vec<Asked> {
    let mut looks: Vec<Look<'_>> = Vec::new();
    let mut names = Names::new();
    for zone in &config.zones {
        for server in &zone.upstream.servers {
            for target in targets(&config.network, &zone.upstream, server, system, &mut names).await {
                let apex = shown(&zone.matches[0]);
                let same =
                    |look: &&mut Look<'_>| look.target.label == target.label && look.target.how == target.how;
                match looks.iter_mut().find(same) {
                    Some(look) => look.zones.push(apex),
                    None => looks.push(Look { target, zone, zones: vec![apex] }),
                }
            }
        }
    }
    let asked = looks.into_iter().map(|Look { target, zone, zones }| async move {
        let (udp, tcp) = ask_one(&config.network, &zone.upstream, &zone.matches[0], &target).await;
        Asked { zones, label: target.label, addr: target.at.ok(), how: target.how, udp, tcp }
    });
    stream::iter(asked).buffered(AT_ONCE).collect().await
}

/// Asks one server for the root by UDP.
///
/// # Errors
/// Why it does not answer.
pub async fn ask_by_udp(config: &Config, ip: IpAddr) -> Outcome {
    let addr = SocketAddr::new(ip, DNS_PORT);
    let question = question(&Name::root(), RecordType::SOA);
    timed(&config.network, &[], addr, |kernel| by_udp(kernel, addr, &question)).await
}

/// A zone's name.
pub fn shown(name: &Name) -> String {
    if name.is_root() { ".".to_owned() } else { name.to_utf8().trim_end_matches('.').to_owned() }
}

/// What a server of the configuration stands for.
async fn targets<'a>(
    network: &Settings,
    upstream: &'a Upstream,
    server: &'a Server,
    system: &[IpAddr],
    names: &mut Names<'a>,
) -> Vec<Target> {
    let label = server.to_string();
    let one = |label: String, at: SocketAddr, how| Target { label, at: Ok(at), how, name: None };
    match server {
        Server::Tcp(addr) => vec![one(label, *addr, How::Tcp)],
        Server::Udp(addr) => vec![one(label, *addr, How::Udp)],
        Server::Auto(addr) => vec![one(label, *addr, How::Auto)],
        Server::Tls(addr, name) => vec![Target { name: Some(name.clone()), ..one(label, *addr, How::Tls) }],
        Server::System => {
            let each = |&ip: &IpAddr| one(format!("system {ip}"), (ip, DNS_PORT).into(), How::Udp);
            system.iter().map(each).collect()
        }
        Server::Named(scheme, name, port) => {
            let how = match scheme {
                Scheme::Tcp => How::Tcp,
                Scheme::Udp => How::Udp,
                Scheme::Auto => How::Auto,
            };
            let key = (name, &upstream.bootstrap[..]);
            let known = match names.get(&key) {
                Some(known) => known.clone(),
                None => look_up(network, upstream, name).await,
            };
            names.insert(key, known.clone());
            match known {
                Ok(ips) => {
                    ips.into_iter().map(|ip| one(format!("{label} {ip}"), (ip, *port).into(), how)).collect()
                }
                Err(trouble) => vec![Target { label, at: Err(trouble), how, name: None }],
            }
        }
    }
}

/// Sockets as the agent's: with interception, what is not marked would come back to it. Whoever resolves names is asked
/// without a mark, as the agent does it.
fn marked(network: &Settings, bootstrap: &[Server]) -> Option<Kernel> {
    if !network.upstream_notrack && network.intercept.is_empty() {
        return None;
    }
    let bootstrap = bootstrap.iter().filter_map(Server::addr);
    let tracked =
        bootstrap.filter(|addr| network.upstream_notrack && !network.intercept.contains(&addr.ip()));
    Some(Kernel::marked(network.mark.own, tracked.collect()))
}

async fn ask_one(
    network: &Settings,
    upstream: &Upstream,
    apex: &Name,
    target: &Target,
) -> (Option<Outcome>, Option<Outcome>) {
    let addr = match &target.at {
        Ok(addr) => *addr,
        Err(trouble) => return (None, Some(Err(trouble.clone()))),
    };
    let question = &question(apex, RecordType::SOA);
    let bootstrap = &upstream.bootstrap;
    if target.how == How::Tls {
        let name = target.name.as_deref().unwrap_or_default();
        let exchange =
            timed(network, bootstrap, addr, |kernel| by_tls(kernel, upstream, addr, name, question));
        return (None, Some(exchange.await));
    }
    let udp = timed(network, bootstrap, addr, |kernel| by_udp(kernel, addr, question));
    let tcp = timed(network, bootstrap, addr, |kernel| by_tcp(kernel, addr, question));
    let (udp, tcp) = futures_util::future::join(udp, tcp).await;
    (Some(udp), Some(tcp))
}

async fn timed<E: Future<Output = io::Result<Message>>>(
    network: &Settings,
    bootstrap: &[Server],
    addr: SocketAddr,
    exchange: impl Fn(Kernel) -> E,
) -> Outcome {
    let began = Instant::now();
    let reply = within(network, bootstrap, addr, exchange).await?;
    Ok((u16::from(reply.metadata.response_code), began.elapsed()))
}

/// Asks as the agent does, and without a mark where we may not set one and it is not needed.
async fn within<E: Future<Output = io::Result<Message>>>(
    network: &Settings,
    bootstrap: &[Server],
    addr: SocketAddr,
    exchange: impl Fn(Kernel) -> E,
) -> Result<Message, Trouble> {
    let answer = async {
        if let Some(kernel) = marked(network, bootstrap) {
            let answer = exchange(kernel).await;
            let refused = answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
            if !refused || network.intercept.contains(&addr.ip()) {
                return answer;
            }
        }
        exchange(Kernel::default()).await
    };
    match timeout(PATIENCE, answer).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(trouble(&error)),
        Err(_) => Err(Trouble::Silent),
    }
}

fn trouble(error: &io::Error) -> Trouble {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::ConnectionRefused, _) => Trouble::Refused,
        (ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable, _) => Trouble::Unreachable,
        (ErrorKind::PermissionDenied, Some(_)) => Trouble::NotAllowed,
        (ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe, _) => Trouble::Closed,
        (ErrorKind::TimedOut, _) => Trouble::Silent,
        _ => Trouble::Other(error.to_string()),
    }
}

fn question(name: &Name, rtype: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), rtype));
    message
}

fn malformed(error: impl ToString) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error.to_string())
}

async fn by_udp(kernel: Kernel, addr: SocketAddr, question: &Message) -> io::Result<Message> {
    let packet = question.to_vec().map_err(malformed)?;
    let socket: Box<dyn Datagrams> = kernel.datagrams(addr).await?;
    let receive = async {
        loop {
            let reply = Message::from_vec(&socket.receive().await?).map_err(malformed)?;
            if reply.metadata.id == question.metadata.id {
                return Ok(reply);
            }
        }
    };
    tokio::pin!(receive);
    for _ in 1..DATAGRAMS {
        socket.send(&packet).await?;
        if let Ok(reply) = timeout(PATIENCE / DATAGRAMS, &mut receive).await {
            return reply;
        }
    }
    socket.send(&packet).await?;
    receive.await
}

async fn by_tcp(kernel: Kernel, addr: SocketAddr, question: &Message) -> io::Result<Message> {
    on_stream(kernel.connect(addr).await?, question).await
}

async fn by_tls(
    kernel: Kernel,
    upstream: &Upstream,
    addr: SocketAddr,
    name: &str,
    question: &Message,
) -> io::Result<Message> {
    let tls = Tls::load(upstream).map_err(malformed)?;
    let client = Client::new(tls.as_ref(), name, Arc::from("doctor"));
    let link = client.handshake(kernel.connect(addr).await?).await;
    let link = link.map_err(|cause| malformed(format!("no TLS: {}", cause.label())))?;
    on_stream(link, question).await
}

async fn on_stream(mut link: Link, question: &Message) -> io::Result<Message> {
    let packet = question.to_vec().map_err(malformed)?;
    let mut framed = (packet.len() as u16).to_be_bytes().to_vec();
    framed.extend(packet);
    link.writer.write_all(&framed).await?;
    link.writer.flush().await?;
    let length = link.reader.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    link.reader.read_exact(&mut reply).await?;
    Message::from_vec(&reply).map_err(malformed)
}

/// The addresses of a server given by name, by the first bootstrap server that knows them.
async fn look_up(network: &Settings, upstream: &Upstream, name: &Name) -> Result<Vec<IpAddr>, Trouble> {
    let mut trouble = "no bootstrap server knows an address of it".to_owned();
    for server in &upstream.bootstrap {
        let Some(addr) = server.addr() else { continue };
        let ask = |rtype| look_up_at(network, upstream, (server, addr), question(name, rtype));
        let (v4, v6) = futures_util::future::join(ask(RecordType::A), ask(RecordType::AAAA)).await;
        let mut found = Vec::new();
        for answer in [v4, v6] {
            match answer {
                Ok(ips) => found.extend(ips),
                Err(why) => trouble = format!("bootstrap server {server}: {why}"),
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(Trouble::Name(trouble))
}

async fn look_up_at(
    network: &Settings,
    upstream: &Upstream,
    (server, addr): (&Server, SocketAddr),
    question: Message,
) -> Result<Vec<IpAddr>, Trouble> {
    let question = &question;
    let exchange = |kernel| async {
        match server {
            Server::Udp(_) => by_udp(kernel, addr, question).await,
            Server::Tls(_, name) => by_tls(kernel, upstream, addr, name, question).await,
            _ => by_tcp(kernel, addr, question).await,
        }
    };
    let reply = within(network, &upstream.bootstrap, addr, exchange).await?;
    let addresses = reply.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    });
    Ok(addresses.collect())
}
