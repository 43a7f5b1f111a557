//! A cluster DNS inside the process: what `nodens demo` puts behind the agent.
//!
//! It answers as CoreDNS does with the Corefile of kubeadm, for a handful of made-up services and
//! for example.com, by UDP and TCP on one port.

mod examples;
mod records;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tracing::debug;

pub use self::examples::{Example, examples};
use self::records::{Reply, Table};

/// The cluster's domain, kubeadm's default.
pub const DOMAIN: &str = "cluster.local";

/// Bytes: our own OPT and the most that goes out by UDP (DNS Flag Day 2020).
const EDNS_SIZE: u16 = 1232;
/// Bytes that a client without EDNS takes by UDP (RFC 1035 §4.2.1).
const PLAIN_SIZE: u16 = 512;
/// A TCP client without queries for this long is closed, as CoreDNS does it.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Replies that may wait for one slow TCP client.
const TCP_REPLIES: usize = 256;
/// Tries to find a port that is free for both UDP and TCP.
const PORT_TRIES: usize = 32;

/// A running cluster DNS. Dropping it ends it.
pub struct ClusterDns {
    /// Where it listens, by UDP and TCP.
    pub addr: SocketAddr,
    counts: Arc<Counts>,
    _server: Server<Responder>,
}

impl ClusterDns {
    /// Queries that came by UDP so far.
    pub fn udp_queries(&self) -> u64 {
        self.counts.udp.load(Ordering::Relaxed)
    }

    /// Queries that came by TCP so far.
    pub fn tcp_queries(&self) -> u64 {
        self.counts.tcp.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for ClusterDns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterDns")
            .field("addr", &self.addr)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

/// Starts a cluster DNS on `bind`, UDP and TCP; port 0 chooses one that is free for both.
///
/// # Errors
/// When a socket cannot be bound; the message names the address.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn start(bind: SocketAddr) -> io::Result<ClusterDns> {
    let table = Table::sample().map_err(io::Error::other)?;
    let (udp, tcp) = sockets(bind).await?;
    let addr = udp.local_addr()?;
    let counts = Arc::new(Counts::default());
    let mut server = Server::new(Responder { table, counts: Arc::clone(&counts) });
    server.register_socket(udp);
    server.register_listener(tcp, TCP_IDLE, TCP_REPLIES);
    Ok(ClusterDns { addr, counts, _server: server })
}

/// Both sockets on one port. A port that the kernel chose for UDP may be taken for TCP; then it is asked again.
async fn sockets(bind: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = if bind.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let udp = UdpSocket::bind(bind).await.map_err(|error| with_address(&error, bind, "UDP"))?;
        let addr = udp.local_addr()?;
        match TcpListener::bind(addr).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(with_address(&error, addr, "TCP")),
        }
    }
}

fn with_address(error: &io::Error, addr: SocketAddr, transport: &str) -> io::Error {
    io::Error::new(error.kind(), format!("cluster DNS on {addr} ({transport}): {error}"))
}

#[derive(Debug, Default)]
struct Counts {
    udp: AtomicU64,
    tcp: AtomicU64,
}

/// Answers every request from the table.
struct Responder {
    table: Table,
    counts: Arc<Counts>,
}

#[async_trait::async_trait]
impl RequestHandler for Responder {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        let limit = match request.protocol() {
            Protocol::Udp => {
                self.counts.udp.fetch_add(1, Ordering::Relaxed);
                request.max_payload().clamp(PLAIN_SIZE, EDNS_SIZE)
            }
            _ => {
                self.counts.tcp.fetch_add(1, Ordering::Relaxed);
                u16::MAX
            }
        };
        let mut message = self.reply(request);
        if let Err(error) = fit(&mut message, usize::from(limit)) {
            message = Message::response(request.metadata.id, request.metadata.op_code);
            message.metadata.response_code = ResponseCode::ServFail;
            debug!(%error, "reply could not be encoded");
        }
        let builder = MessageResponseBuilder::new(&request.queries, message.edns.as_ref());
        let response =
            builder.build(message.metadata, &message.answers, &message.authorities, [], &message.additionals);
        match client.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                debug!(%error, "reply could not be sent");
                ResponseInfo::from(Header { metadata: message.metadata, counts: HeaderCounts::default() })
            }
        }
    }
}

impl Responder {
    /// The whole reply, however large.
    fn reply(&self, request: &Request) -> Message {
        let metadata = Metadata::response_from_request(&request.metadata);
        let mut message = Message::new(metadata.id, MessageType::Response, metadata.op_code);
        message.metadata = metadata;
        message.add_queries(request.queries.queries().iter().map(|q| q.original().clone()));
        if let Some(theirs) = &request.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(EDNS_SIZE);
            ours.set_dnssec_ok(theirs.flags().dnssec_ok);
            message.set_edns(ours);
        }
        let reply = self.answer(request);
        message.metadata.response_code = reply.rcode;
        message.metadata.authoritative = reply.authoritative;
        message.insert_answers(reply.answers);
        message.insert_authorities(reply.authorities);
        message.insert_additionals(reply.additionals);
        message
    }

    fn answer(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::empty(ResponseCode::NotImp);
        }
        if request.version() > 0 {
            return Reply::empty(ResponseCode::BADVERS);
        }
        let [query] = request.queries.queries() else {
            return Reply::empty(ResponseCode::FormErr); // RFC 9619
        };
        let query = query.original();
        match (query.query_class(), query.query_type()) {
            (DNSClass::IN, RecordType::AXFR | RecordType::IXFR) => Reply::empty(ResponseCode::Refused),
            (DNSClass::IN, qtype) => self.table.answer(query.name(), qtype),
            _ => Reply::empty(ResponseCode::Refused),
        }
    }
}

/// Drops records from the end until the message fits. Additional records go silently, the others set TC
/// (RFC 2181 §9). Done here because the server's encoder, when full, drops the OPT first.
fn fit(message: &mut Message, limit: usize) -> Result<(), ProtoError> {
    while message.to_vec()?.len() > limit {
        if message.additionals.pop().is_some() {
            continue;
        }
        message.metadata.truncation = true;
        if message.authorities.pop().is_none() && message.answers.pop().is_none() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    use super::*;

    /// SRV of the headless service: four answers, four additional addresses.
    fn endpoints() -> Message {
        let table = Table::sample().expect("the sample is well-formed");
        let name = Name::from_ascii("_http._tcp.nginx.default.svc.cluster.local.").expect("a name");
        let reply = table.answer(&name, RecordType::SRV);
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(name, RecordType::SRV));
        message.set_edns(Edns::new());
        message.insert_answers(reply.answers);
        message.insert_additionals(reply.additionals);
        message
    }

    #[test]
    fn additional_records_go_first_and_without_tc() {
        let mut message = endpoints();
        let whole = message.to_vec().expect("encodes").len();
        fit(&mut message, whole).expect("encodes");
        assert_eq!((message.answers.len(), message.additionals.len()), (4, 4));
        fit(&mut message, whole - 1).expect("encodes");
        assert_eq!((message.answers.len(), message.additionals.len()), (4, 3));
        assert!(!message.metadata.truncation);
    }

    #[test]
    fn a_missing_answer_sets_tc_and_the_opt_stays() {
        let mut message = endpoints();
        message.additionals.clear();
        let answers = message.to_vec().expect("encodes").len();
        message = endpoints();
        fit(&mut message, answers - 1).expect("encodes");
        assert_eq!((message.answers.len(), message.additionals.len()), (3, 0));
        assert!(message.metadata.truncation);
        assert!(message.edns.is_some());
    }
}
