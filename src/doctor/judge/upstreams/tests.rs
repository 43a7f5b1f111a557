//! Servers on loopback that answer, keep silent, or are not there; and made-up outcomes for what loopback cannot be.

use std::io;
use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::*;
use crate::config::{Config, Scheme, Server, Zone};
use crate::doctor::finding::Level;
use hickory_proto::rr::Name;

/// How a server behaves by one protocol.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Answers(ResponseCode),
    Silence,
    /// It takes a connection and ends it.
    Close,
    /// Nobody listens.
    Nothing,
}

const GOOD: Does = Does::Answers(ResponseCode::NoError);

/// A server; its tasks end with it.
struct Dns {
    addr: SocketAddr,
    _tasks: JoinSet<io::Result<()>>,
}

impl Dns {
    async fn new(udp: Does, tcp: Does) -> Self {
        let (sockets, addr) = both().await;
        let mut tasks = JoinSet::new();
        if udp != Does::Nothing {
            tasks.spawn(serve_udp(sockets.0, udp));
        }
        if tcp != Does::Nothing {
            tasks.spawn(serve_tcp(sockets.1, tcp));
        }
        Self { addr, _tasks: tasks }
    }
}

/// The same free port by both protocols.
async fn both() -> ((UdpSocket, TcpListener), SocketAddr) {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = tcp.local_addr().unwrap();
        if let Ok(udp) = UdpSocket::bind(addr).await {
            return ((udp, tcp), addr);
        }
    }
    panic!("no port is free by UDP and TCP");
}

fn reply(query: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.response_code = code;
    message.to_vec().unwrap()
}

async fn serve_udp(socket: UdpSocket, does: Does) -> io::Result<()> {
    let mut space = [0; 512];
    loop {
        let (length, peer) = socket.recv_from(&mut space).await?;
        if let Does::Answers(code) = does {
            socket.send_to(&reply(&space[..length], code), peer).await?;
        }
    }
}

async fn serve_tcp(listener: TcpListener, does: Does) -> io::Result<()> {
    let mut silent: Vec<TcpStream> = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await?;
        match does {
            Does::Answers(code) => {
                let mut query = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut query).await?;
                let reply = reply(&query, code);
                stream.write_u16(reply.len() as u16).await?;
                stream.write_all(&reply).await?;
            }
            Does::Silence => silent.push(stream),
            Does::Close | Does::Nothing => {}
        }
    }
}

fn config(zones: &[(&str, &[Server])]) -> Config {
    let mut config = Config::default();
    let zone = |&(name, servers): &(&str, &[Server])| {
        Zone::new(vec![Name::from_ascii(name).unwrap()], servers.to_vec())
    };
    config.zones = zones.iter().map(zone).collect();
    config
}

/// What is found of one server, asked as this makes it.
async fn found(udp: Does, tcp: Does, server: impl Fn(SocketAddr) -> Server) -> Finding {
    let dns = Dns::new(udp, tcp).await;
    let mut findings = judge(&ask(&config(&[(".", &[server(dns.addr)])]), &[]).await);
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.remove(0)
}

#[tokio::test]
async fn a_server_that_answers_both_ways_is_good_with_its_times() {
    let finding = found(GOOD, GOOD, Server::Tcp).await;
    assert_eq!(finding.level, Level::Ok, "{finding:?}");
    let (_, ways) = finding.what.split_once("(zone .): UDP ").unwrap();
    let (udp, tcp) = ways.split_once(" ms, TCP ").unwrap();
    let tcp = tcp.strip_suffix(" ms").unwrap();
    assert!([udp, tcp].iter().all(|time| time.parse::<f64>().is_ok_and(|time| time < 500.0)), "{finding:?}");
}

#[tokio::test]
async fn a_server_without_tcp_is_a_problem_where_misses_go_by_tcp() {
    for tcp in [Does::Nothing, Does::Silence, Does::Close] {
        let finding = found(GOOD, tcp, Server::Tcp).await;
        assert_eq!(finding.level, Level::Problem, "{finding:?}");
        assert!(finding.mend.contains("protocol: TCP, port: "), "{finding:?}");
        assert!(finding.mend.contains("\nnodens query . SOA --server 127.0.0.1:"), "{finding:?}");
        assert!(finding.mend.ends_with(" --tcp"), "{finding:?}");
    }
}

#[tokio::test]
async fn a_server_without_tcp_is_a_warning_where_misses_go_by_udp_first() {
    for server in [Server::Udp, Server::Auto] {
        let finding = found(GOOD, Does::Nothing, server).await;
        assert_eq!(finding.level, Level::Warning, "{finding:?}");
        assert!(finding.what.contains("TCP refused") && finding.why.contains("truncate"), "{finding:?}");
    }
}

#[tokio::test]
async fn a_server_without_udp_is_a_problem_where_misses_go_by_udp_and_good_where_by_tcp() {
    let finding = found(Does::Nothing, GOOD, Server::Udp).await;
    assert_eq!(finding.level, Level::Problem, "{finding:?}");
    assert!(finding.what.contains("UDP refused") && finding.mend.contains("tcp://"), "{finding:?}");
    assert_eq!(found(Does::Nothing, GOOD, Server::Tcp).await.level, Level::Ok);
    assert_eq!(found(Does::Nothing, GOOD, Server::Auto).await.level, Level::Ok);
}

#[tokio::test]
async fn a_silent_server_is_a_problem_that_is_told_after_two_seconds() {
    let finding = found(Does::Silence, Does::Silence, Server::Tcp).await;
    assert_eq!(finding.level, Level::Problem, "{finding:?}");
    assert!(finding.what.ends_with("UDP silent for 2 s, TCP silent for 2 s"), "{finding:?}");
    assert!(finding.mend.ends_with("\nip route get 127.0.0.1"), "{finding:?}");
}

#[tokio::test]
async fn nobody_there_is_refused() {
    let finding = found(Does::Nothing, Does::Nothing, Server::Tcp).await;
    assert_eq!(finding.level, Level::Problem, "{finding:?}");
    assert!(finding.what.ends_with("UDP refused, TCP refused"), "{finding:?}");
}

#[tokio::test]
async fn servfail_and_refused_are_no_answers() {
    for (code, name) in [(ResponseCode::ServFail, "SERVFAIL"), (ResponseCode::Refused, "REFUSED")] {
        let finding = found(Does::Answers(code), Does::Answers(code), Server::Udp).await;
        assert_eq!(finding.level, Level::Problem, "{finding:?}");
        assert!(finding.what.contains(&format!("UDP {name} in ")), "{finding:?}");
    }
    let nxdomain = Does::Answers(ResponseCode::NXDomain);
    assert_eq!(found(nxdomain, nxdomain, Server::Udp).await.level, Level::Ok);
    let odd = Does::Answers(ResponseCode::NotImp);
    assert_eq!(found(odd, odd, Server::Udp).await.level, Level::Warning);
}

#[tokio::test]
async fn one_dead_server_of_two_is_a_warning_and_of_a_zone_of_its_own_a_problem() {
    let (alive, gone) = (Dns::new(GOOD, GOOD).await, Dns::new(Does::Nothing, Does::Nothing).await);
    let (good, dead) = (Server::Tcp(alive.addr), Server::Tcp(gone.addr));
    let both = config(&[(".", &[good.clone(), dead.clone()])]);
    let findings = judge(&ask(&both, &[]).await);
    let levels: Vec<Level> = findings.iter().map(|finding| finding.level).collect();
    assert_eq!(levels, [Level::Ok, Level::Warning], "{findings:?}");
    assert!(findings[1].why.ends_with("Its zones have other servers, which answer."), "{findings:?}");
    let apart = config(&[(".", &[good, dead.clone()]), ("a.test.", &[dead])]);
    let findings = judge(&ask(&apart, &[]).await);
    let levels: Vec<Level> = findings.iter().map(|finding| finding.level).collect();
    assert_eq!(levels, [Level::Ok, Level::Problem], "{findings:?}");
    assert!(findings[1].what.contains("(zones ., a.test)"), "{findings:?}");
}

#[tokio::test]
async fn a_name_is_looked_up_and_one_that_cannot_be_is_a_problem_with_its_reason() {
    let bootstrap = Dns::new(Does::Answers(ResponseCode::NXDomain), Does::Nothing).await;
    let name = Server::Named(Scheme::Tcp, Name::from_ascii("dns.test.").unwrap(), 53);
    let mut config = config(&[(".", &[name])]);
    let by = |config: &mut Config, server| config.zones[0].upstream.bootstrap = vec![server];
    by(&mut config, Server::Udp(bootstrap.addr));
    let finding = judge(&ask(&config, &[]).await).remove(0);
    assert_eq!(finding.level, Level::Problem, "{finding:?}");
    assert!(finding.what.contains("could not be looked up"), "{finding:?}");
    by(&mut config, Server::Tcp(bootstrap.addr));
    let finding = judge(&ask(&config, &[]).await).remove(0);
    assert!(finding.what.contains(&format!("tcp://{}: refused", bootstrap.addr)), "{finding:?}");
}

#[tokio::test]
async fn servers_of_the_system_are_asked_at_port_53() {
    let asked = ask(&config(&[(".", &[Server::System])]), &["127.0.0.1".parse().unwrap()]).await;
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].addr, Some("127.0.0.1:53".parse().unwrap()));
    assert_eq!((asked[0].label.as_str(), asked[0].how), ("system 127.0.0.1", How::Udp));
}

fn asked(how: How, udp: Option<Outcome>, tcp: Option<Outcome>) -> Asked {
    let label = "server".to_owned();
    Asked { zones: vec![".".into()], label, addr: Some("192.0.2.1:53".parse().unwrap()), how, udp, tcp }
}

fn level(how: How, udp: Option<Outcome>, tcp: Option<Outcome>) -> Level {
    judge(&[asked(how, udp, tcp)])[0].level
}

fn after(ms: u64) -> Option<Outcome> {
    Some(Ok((rcode::NOERROR, Duration::from_millis(ms))))
}

#[test]
fn a_slow_server_is_a_warning_by_the_way_that_it_is_asked() {
    assert_eq!(level(How::Tcp, after(3), after(900)), Level::Warning);
    assert_eq!(level(How::Tcp, after(900), after(3)), Level::Ok);
    assert_eq!(level(How::Udp, after(900), after(3)), Level::Warning);
    assert_eq!(level(How::Tls, None, after(501)), Level::Warning);
    assert_eq!(level(How::Tls, None, after(500)), Level::Ok);
}

#[test]
fn a_server_that_only_root_can_ask_is_not_seen() {
    let refused = || Some(Err(Trouble::NotAllowed));
    let finding = judge(&[asked(How::Tcp, refused(), refused())]).remove(0);
    assert_eq!((finding.level, finding.mend.as_str()), (Level::Unknown, AS_ROOT));
}

#[test]
fn no_route_and_no_tls_are_problems_with_a_command() {
    let unreachable = || Some(Err(Trouble::Unreachable));
    let finding = judge(&[asked(How::Tcp, unreachable(), unreachable())]).remove(0);
    assert_eq!((finding.level, finding.mend.as_str()), (Level::Problem, "ip route get 192.0.2.1"));
    let mut tls = asked(How::Tls, None, Some(Err(Trouble::Other("no TLS: name".into()))));
    tls.label = "tls://192.0.2.1:853#dns.test".into();
    let finding = judge(&[tls]).remove(0);
    assert_eq!(finding.level, Level::Problem);
    assert!(
        finding.mend.contains("openssl s_client -connect 192.0.2.1:53 -servername dns.test </dev/null"),
        "{finding:?}"
    );
}
