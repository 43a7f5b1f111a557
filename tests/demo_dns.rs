//! The demo's cluster DNS, asked over real sockets: each kind of record, negative answers, truncation.
#![cfg(feature = "demo")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use nodens::demo::{self, ClusterDns};

const PATIENCE: Duration = Duration::from_secs(10);
const WEBAPP: &str = "webapp.default.svc.cluster.local.";
const NGINX: &str = "nginx.default.svc.cluster.local.";

async fn cluster() -> ClusterDns {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    demo::start(any).await.expect("loopback has a free port")
}

fn question(name: &str, qtype: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("test names are well-formed");
    message.add_query(Query::query(name, qtype));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

fn udp(addr: SocketAddr, message: &Message) -> (Message, usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    socket.connect(addr).expect("connect");
    socket.send(&message.to_vec().expect("encodes")).expect("send");
    let mut buffer = [0; 65_535];
    let length = socket.recv(&mut buffer).expect("an answer by UDP");
    let reply = Message::from_vec(&buffer[..length]).expect("a DNS message");
    (reply, length)
}

fn tcp_write(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().expect("encodes");
    let length = u16::try_from(bytes.len()).expect("short");
    let framed = [&length.to_be_bytes()[..], &bytes].concat();
    stream.write_all(&framed).expect("send");
}

fn tcp_read(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("an answer by TCP");
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).expect("a whole answer");
    Message::from_vec(&bytes).expect("a DNS message")
}

fn tcp(addr: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(addr).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    tcp_write(&mut stream, message);
    tcp_read(&mut stream)
}

/// Asks by both transports, expects the same answer, and returns it.
fn ask(dns: &ClusterDns, name: &str, qtype: RecordType) -> Message {
    let message = with_edns(question(name, qtype), 1232);
    let (by_udp, _) = udp(dns.addr, &message);
    let by_tcp = tcp(dns.addr, &message);
    assert_eq!(by_udp, by_tcp, "{name} {qtype}");
    assert_eq!(by_udp.metadata.id, 4711);
    assert_eq!(by_udp.queries, message.queries);
    by_udp
}

/// `owner TTL TYPE RDATA` of each record.
fn lines(records: &[Record]) -> Vec<String> {
    let line = |r: &Record| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data);
    records.iter().map(line).collect()
}

fn answers(dns: &ClusterDns, name: &str, qtype: RecordType) -> Vec<String> {
    let reply = ask(dns, name, qtype);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
    assert!(reply.metadata.authoritative, "{name}");
    assert!(reply.authorities.is_empty(), "{name}");
    lines(&reply.answers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn services_have_their_cluster_ip() {
    let dns = cluster().await;
    assert_eq!(answers(&dns, WEBAPP, RecordType::A), [format!("{WEBAPP} 30 A 10.96.46.232")]);
    let name = "kube-dns.kube-system.svc.cluster.local.";
    assert_eq!(answers(&dns, name, RecordType::A), [format!("{name} 30 A 10.96.0.10")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn named_ports_have_srv_with_the_address_beside_it() {
    let dns = cluster().await;
    for (name, data, address) in [
        (
            format!("_http._tcp.{WEBAPP}"),
            format!("0 100 8080 {WEBAPP}"),
            format!("{WEBAPP} 30 A 10.96.46.232"),
        ),
        (
            "_dns._udp.kube-dns.kube-system.svc.cluster.local.".into(),
            "0 100 53 kube-dns.kube-system.svc.cluster.local.".into(),
            "kube-dns.kube-system.svc.cluster.local. 30 A 10.96.0.10".into(),
        ),
        (
            "_dns-tcp._tcp.kube-dns.kube-system.svc.cluster.local.".into(),
            "0 100 53 kube-dns.kube-system.svc.cluster.local.".into(),
            "kube-dns.kube-system.svc.cluster.local. 30 A 10.96.0.10".into(),
        ),
        (
            "_metrics._tcp.kube-dns.kube-system.svc.cluster.local.".into(),
            "0 100 9153 kube-dns.kube-system.svc.cluster.local.".into(),
            "kube-dns.kube-system.svc.cluster.local. 30 A 10.96.0.10".into(),
        ),
    ] {
        let reply = ask(&dns, &name, RecordType::SRV);
        assert_eq!(lines(&reply.answers), [format!("{name} 30 SRV {data}")]);
        assert_eq!(lines(&reply.additionals), [address]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn srv_without_a_port_lists_all_ports_and_the_address_once() {
    let dns = cluster().await;
    let name = "kube-dns.kube-system.svc.cluster.local.";
    let reply = ask(&dns, name, RecordType::SRV);
    let expected = [53, 53, 9153].map(|port| format!("{name} 30 SRV 0 33 {port} {name}"));
    assert_eq!(lines(&reply.answers), expected);
    assert_eq!(lines(&reply.additionals), [format!("{name} 30 A 10.96.0.10")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_headless_service_is_its_endpoints() {
    let dns = cluster().await;
    let endpoints = ["10.244.1.11", "10.244.1.12", "10.244.2.21", "10.244.3.31"];
    let all = endpoints.map(|ip| format!("{NGINX} 30 A {ip}"));
    assert_eq!(answers(&dns, NGINX, RecordType::A), all);

    let names = endpoints.map(|ip| format!("{}.{NGINX}", ip.replace('.', "-")));
    let addresses: Vec<_> =
        names.iter().zip(endpoints).map(|(name, ip)| format!("{name} 30 A {ip}")).collect();
    for (name, address) in names.iter().zip(&addresses) {
        assert_eq!(answers(&dns, name, RecordType::A), [address.as_str()]);
    }

    let port = format!("_http._tcp.{NGINX}");
    let reply = ask(&dns, &port, RecordType::SRV);
    let targets = names.map(|name| format!("{port} 30 SRV 0 25 80 {name}"));
    assert_eq!(lines(&reply.answers), targets);
    assert_eq!(lines(&reply.additionals), addresses);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_external_name_brings_its_targets_address() {
    let dns = cluster().await;
    let name = "my-service.prod.svc.cluster.local.";
    let alias = format!("{name} 30 CNAME my.database.example.com.");
    let address = "my.database.example.com. 300 A 192.0.2.54".to_owned();
    assert_eq!(answers(&dns, name, RecordType::A), [alias.clone(), address]);
    assert_eq!(answers(&dns, name, RecordType::CNAME), [alias.as_str()]);
    // As CoreDNS has it: the target's NODATA leaves the CNAME alone, without a SOA.
    assert_eq!(answers(&dns, name, RecordType::AAAA), [alias]);
    assert_negative(&dns, name, RecordType::SRV, ResponseCode::NoError, CLUSTER_SOA);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn pods_have_names() {
    let dns = cluster().await;
    for name in ["10-244-2-170.default.pod.cluster.local.", "10-244-2-170.webapp.default.svc.cluster.local."]
    {
        assert_eq!(answers(&dns, name, RecordType::A), [format!("{name} 30 A 10.244.2.170")]);
    }
    for name in [
        "10-244-2-256.default.pod.cluster.local.",
        "10-244-2.default.pod.cluster.local.",
        "10-244-2-170.no-such.pod.cluster.local.",
        "10-244-2-171.webapp.default.svc.cluster.local.",
    ] {
        assert_negative(&dns, name, RecordType::A, ResponseCode::NXDomain, CLUSTER_SOA);
    }
    let name = "10-244-2-170.default.pod.cluster.local.";
    assert_negative(&dns, name, RecordType::AAAA, ResponseCode::NoError, CLUSTER_SOA);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn addresses_lead_back_to_names() {
    let dns = cluster().await;
    for (address, target) in [
        ("10.96.46.232", WEBAPP),
        ("10.96.0.10", "kube-dns.kube-system.svc.cluster.local."),
        ("10.244.2.170", "10-244-2-170.webapp.default.svc.cluster.local."),
        ("10.244.1.11", "10-244-1-11.nginx.default.svc.cluster.local."),
        ("10.244.1.12", "10-244-1-12.nginx.default.svc.cluster.local."),
        ("10.244.2.21", "10-244-2-21.nginx.default.svc.cluster.local."),
        ("10.244.3.31", "10-244-3-31.nginx.default.svc.cluster.local."),
    ] {
        let owner = reverse(address);
        let expected = [format!("{owner} 30 PTR {target}")];
        assert_eq!(answers(&dns, &owner, RecordType::PTR), expected);
    }
    let soa = "in-addr.arpa. 30 SOA ns.dns.in-addr.arpa. hostmaster.in-addr.arpa. 1 7200 1800 86400 30";
    let nobody = reverse("10.96.46.233");
    assert_negative(&dns, &nobody, RecordType::PTR, ResponseCode::NXDomain, soa);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_zone_names_its_version_and_servers() {
    let dns = cluster().await;
    let name = "dns-version.cluster.local.";
    assert_eq!(answers(&dns, name, RecordType::TXT), [format!("{name} 28800 TXT 1.1.0")]);
    assert_eq!(answers(&dns, "cluster.local.", RecordType::SOA), [CLUSTER_SOA]);
    let ns = "cluster.local. 30 NS kube-dns.kube-system.svc.cluster.local.";
    assert_eq!(answers(&dns, "cluster.local.", RecordType::NS), [ns]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn example_com_has_each_common_type() {
    let dns = cluster().await;
    for (name, qtype, expected) in [
        ("www.example.com.", RecordType::A, "192.0.2.80"),
        ("www.example.com.", RecordType::AAAA, "2001:db8::50"),
        ("example.com.", RecordType::A, "192.0.2.1"),
        ("example.com.", RecordType::MX, "10 mail.example.com."),
        ("example.com.", RecordType::TXT, "v=spf1 mx -all"),
        ("my.database.example.com.", RecordType::A, "192.0.2.54"),
    ] {
        let line = format!("{name} 300 {qtype} {expected}");
        assert_eq!(answers(&dns, name, qtype), [line]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_alias_is_followed() {
    let dns = cluster().await;
    let alias = "alias.example.com. 300 CNAME www.example.com.".to_owned();
    let address = "www.example.com. 300 A 192.0.2.80".to_owned();
    let name = "alias.example.com.";
    assert_eq!(answers(&dns, name, RecordType::A), [alias.clone(), address]);
    assert_eq!(answers(&dns, name, RecordType::CNAME), [alias.as_str()]);
    // NODATA of the target, RFC 2308 §2.2.
    let reply = ask(&dns, name, RecordType::TXT);
    assert_eq!(lines(&reply.answers), [alias]);
    assert_eq!(lines(&reply.authorities), [EXAMPLE_SOA]);
}

const CLUSTER_SOA: &str =
    "cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30";
const EXAMPLE_SOA: &str = "example.com. 60 SOA ns.example.com. hostmaster.example.com. 1 7200 1800 86400 60";

fn assert_negative(dns: &ClusterDns, name: &str, qtype: RecordType, rcode: ResponseCode, soa: &str) {
    let reply = ask(dns, name, qtype);
    assert_eq!(reply.metadata.response_code, rcode, "{name} {qtype}");
    assert!(reply.metadata.authoritative, "{name} {qtype}");
    assert!(reply.answers.is_empty(), "{name} {qtype}");
    assert_eq!(lines(&reply.authorities), [soa], "{name} {qtype}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn negative_answers_carry_the_soa_of_their_zone() {
    let dns = cluster().await;
    let (a, aaaa) = (RecordType::A, RecordType::AAAA);
    let (nodata, nxdomain) = (ResponseCode::NoError, ResponseCode::NXDomain);
    for (name, qtype, rcode, soa) in [
        ("no-such.default.svc.cluster.local.", a, nxdomain, CLUSTER_SOA),
        ("webapp.default.svc.cluster.local.cluster.local.", a, nxdomain, CLUSTER_SOA),
        ("www.example.com.default.svc.cluster.local.", a, nxdomain, CLUSTER_SOA),
        (WEBAPP, aaaa, nodata, CLUSTER_SOA),
        ("cluster.local.", a, nodata, CLUSTER_SOA),
        ("svc.cluster.local.", a, nodata, CLUSTER_SOA),
        ("default.svc.cluster.local.", a, nodata, CLUSTER_SOA),
        ("default.pod.cluster.local.", a, nodata, CLUSTER_SOA),
        ("no-such.example.com.", a, nxdomain, EXAMPLE_SOA),
        ("database.example.com.", a, nodata, EXAMPLE_SOA),
        ("www.example.com.", RecordType::MX, nodata, EXAMPLE_SOA),
    ] {
        assert_negative(&dns, name, qtype, rcode, soa);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_not_served_is_refused() {
    let dns = cluster().await;
    for name in ["www.example.org.", "local.", "."] {
        let reply = ask(&dns, name, RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(!reply.metadata.authoritative, "{name}");
        assert!(reply.authorities.is_empty(), "{name}");
    }
    let transfer = ask(&dns, "cluster.local.", RecordType::AXFR);
    assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let (reply, _) = udp(dns.addr, &chaos);
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn odd_requests_are_answered_with_their_error() {
    let dns = cluster().await;
    let mut notify = question(WEBAPP, RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    let (reply, _) = udp(dns.addr, &notify);
    assert_eq!(reply.metadata.response_code, ResponseCode::NotImp);

    let mut twice = question(WEBAPP, RecordType::A);
    twice.add_query(twice.queries[0].clone());
    let (reply, _) = udp(dns.addr, &twice);
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);

    let mut newer = with_edns(question(WEBAPP, RecordType::A), 1232);
    newer.edns.as_mut().expect("just set").set_version(1);
    let (reply, _) = udp(dns.addr, &newer);
    // 16 is BADVERS in an OPT and BADSIG in a TSIG; the decoder does not tell them apart.
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert_eq!(reply.edns.expect("OPT carries the code").version(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn edns_is_answered_only_when_asked() {
    let dns = cluster().await;
    let mut asked = with_edns(question(WEBAPP, RecordType::A), 4096);
    asked.edns.as_mut().expect("just set").set_dnssec_ok(true);
    let ours = udp(dns.addr, &asked).0.edns.expect("an OPT");
    assert_eq!(ours.max_payload(), 1232);
    assert!(ours.flags().dnssec_ok);
    assert_eq!(udp(dns.addr, &question(WEBAPP, RecordType::A)).0.edns, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_owner_comes_back_in_the_askers_letters() {
    let dns = cluster().await;
    let name = "WebApp.Default.SVC.cluster.LOCAL.";
    let reply = ask(&dns, name, RecordType::A);
    assert_eq!(reply.queries[0].name().to_ascii(), name);
    assert_eq!(reply.answers[0].name.to_ascii(), name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_does_not_fit_udp_is_truncated_and_whole_over_tcp() {
    let dns = cluster().await;
    let name = "large.example.com.";
    for (message, limit) in [
        (question(name, RecordType::TXT), 512),
        (with_edns(question(name, RecordType::TXT), 512), 512),
        (with_edns(question(name, RecordType::TXT), 800), 800),
        (with_edns(question(name, RecordType::TXT), 1232), 1232),
        (with_edns(question(name, RecordType::TXT), 4096), 1232),
    ] {
        let (reply, length) = udp(dns.addr, &message);
        assert!(length <= limit, "{length} > {limit}");
        assert!(reply.metadata.truncation);
        assert!(!reply.answers.is_empty(), "whole records that fit are kept");
        assert_eq!(reply.edns.is_some(), message.edns.is_some());

        let whole = tcp(dns.addr, &message);
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 10);
        assert!(whole.to_vec().expect("encodes").len() > 1232);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn queries_are_counted_by_transport() {
    let dns = cluster().await;
    let message = question(WEBAPP, RecordType::A);
    tcp(dns.addr, &message);
    tcp(dns.addr, &message);
    assert_eq!((dns.udp_queries(), dns.tcp_queries()), (0, 2));
    udp(dns.addr, &message);
    assert_eq!((dns.udp_queries(), dns.tcp_queries()), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_tcp_connection_takes_many_queries_at_once() {
    let dns = cluster().await;
    let mut stream = TcpStream::connect(dns.addr).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    for id in 0..500 {
        let mut message = question(NGINX, RecordType::A);
        message.metadata.id = id;
        tcp_write(&mut stream, &message);
    }
    let mut ids: Vec<_> = (0..500).map(|_| tcp_read(&mut stream).metadata.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..500).collect::<Vec<u16>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_dropped_server_gives_its_port_back() {
    let dns = cluster().await;
    let addr = dns.addr;
    let error = demo::start(addr).await.expect_err("the port is taken");
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    drop(dns);
    let again = tokio::time::timeout(PATIENCE, async {
        loop {
            match demo::start(addr).await {
                Ok(dns) => return dns,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    let dns = again.await.expect("the port is free again");
    assert_eq!(answers(&dns, WEBAPP, RecordType::A).len(), 1);
}

/// Every printed `dig` and `nodens query` line is sent as the question that it is, and what it claims must come.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_example_shows_what_it_says() {
    let dns = cluster().await;
    let admin = SocketAddr::from(([127, 0, 0, 1], 9253));
    let examples = demo::examples("nodens", dns.addr, admin, Path::new("control.sock"));
    let mut asked = 0;
    for example in &examples {
        let words: Vec<&str> = example.command.split_whitespace().collect();
        let (name, qtype) = match words.as_slice() {
            ["dig", at, "-p", port, rest @ ..] => {
                assert_eq!(format!("{}:{port}", &at[1..]), dns.addr.to_string());
                dig_question(rest)
            }
            ["nodens", "query", rest @ .., "--server", server] => {
                assert_eq!(*server, dns.addr.to_string());
                dig_question(rest)
            }
            _ => continue, // asks the agent, not a server: tests/examples.rs runs it
        };
        let reply = ask_large(&dns, &name, qtype);
        let shown = |r: &Record| shows(example.shows, &r.data);
        match reply.metadata.response_code {
            ResponseCode::NoError if reply.answers.is_empty() => {
                assert!(example.shows.contains("NODATA"), "{example:?}");
            }
            ResponseCode::NoError => {
                assert!(reply.answers.iter().any(shown), "{example:?} {reply}")
            }
            ResponseCode::NXDomain => assert!(example.shows.contains("NXDOMAIN"), "{example:?}"),
            other => panic!("{example:?}: {other}"),
        }
        asked += 1;
    }
    assert!(asked >= 18, "only {asked} of {} asked", examples.len());
}

fn ask_large(dns: &ClusterDns, name: &str, qtype: RecordType) -> Message {
    tcp(dns.addr, &with_edns(question(name, qtype), 1232))
}

fn dig_question(words: &[&str]) -> (String, RecordType) {
    match words {
        ["-x", address, ..] => (reverse(address), RecordType::PTR),
        [name, rest @ ..] => {
            let qtype = rest.iter().find_map(|word| word.parse().ok());
            (format!("{name}."), qtype.unwrap_or(RecordType::A))
        }
        [] => panic!("no name"),
    }
}

fn reverse(address: &str) -> String {
    let address: IpAddr = address.parse().expect("an address");
    Name::from(address).to_ascii()
}

fn shows(claim: &str, data: &RData) -> bool {
    let data = data.to_string();
    let data = data.trim_end_matches('.').trim_end_matches('-').trim_end();
    claim.contains(data)
}
