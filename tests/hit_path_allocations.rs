//! A hit allocates nothing: neither the reader, nor the store, nor the counters, nor the writer.
//!
//! The counting allocator counts the allocations of the calling thread alone, so tests run side by side.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nodens::cache::entry::Entry;
use nodens::cache::front::Front;
use nodens::config::{Config, Server, Zone};
use nodens::metrics::{Metrics, Source, Transport};
use nodens::resolve::view::{Target, View};
use nodens::resolve::{Client, Resolver, Step};
use nodens::upstream::Pool;
use nodens::wire::key::KeyBuf;
use nodens::wire::query::{OurEdns, Query as Parsed};
use nodens::wire::response::Answer;

const HITS: u16 = 10_000;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn query(owner: &str, edns: bool) -> Message {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(owner), RecordType::A));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.set_edns(edns);
    }
    message
}

/// A response with these many addresses, behind an alias or not; without addresses it is NXDOMAIN.
fn response(query: &Message, alias: bool, addresses: u8) -> Message {
    let asked = query.queries[0].name().clone();
    let mut message = Message::new(2, MessageType::Response, OpCode::Query);
    message.add_query(query.queries[0].clone());
    let mut owner = asked.clone();
    if alias {
        owner = name("real.default.svc.cluster.local.");
        message.add_answer(Record::from_rdata(asked, 30, RData::CNAME(CNAME(owner.clone()))));
    }
    for last in 0..addresses {
        let a = RData::A(A(Ipv4Addr::new(10, 0, 0, last)));
        message.add_answer(Record::from_rdata(owner.clone(), 30, a));
    }
    if addresses == 0 {
        message.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(name("ns.dns.cluster.local."), name("admin.cluster.local."), 1, 2, 3, 4, 30);
        message.add_authority(Record::from_rdata(name("cluster.local."), 30, RData::SOA(soa)));
    }
    message
}

fn resolver(runtime: &tokio::runtime::Runtime) -> Arc<Resolver> {
    let server = Server::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)));
    let zones = [".", "cluster.local."].map(|suffix| Zone::new(vec![name(suffix)], vec![server.clone()]));
    let config = Config { zones: zones.to_vec(), ..Config::default() };
    let metrics = Arc::new(Metrics::new(1));
    let view = View::new(&config, |zone| {
        (Pool::new(zone.upstream.clone(), 1232, &[]), metrics.zone(&zone.matches[0].to_ascii()))
    });
    Resolver::new(view, config.cache.size, &config.limits, metrics, runtime.handle().clone())
}

fn learn(resolver: &Resolver, packet: &[u8], response: &Message, now: Instant) {
    let query = Parsed::parse(packet).expect("a well-formed query");
    let view = resolver.view();
    let mut key = KeyBuf::new(&query);
    let Target::Zone(labels, zone) = view.find(&query, key.name()) else { panic!("no zone") };
    key.bind(labels);
    let key = key.to_key();
    let answer = Answer::read(response.to_vec().expect("it fits"), &key).expect("a well-formed response");
    resolver.cache.store(key, Arc::new(Entry::new(answer, &zone.bounds, now)));
}

#[test]
fn hits_allocate_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let resolver = resolver(&runtime);
    let ours = OurEdns { size: 1232, keepalive: None };
    let client = Client { slot: 0, transport: Transport::Udp, ipv6: false, allowed: true, ours };
    let start = Instant::now();
    // As a worker has it; the longest reply is written before it is cut to the client's size.
    let mut out = Vec::with_capacity(4096);
    let mut front = Front::new();
    for (what, owner, edns, alias, addresses) in [
        ("one address", "one.default.svc.cluster.local.", false, false, 1),
        ("one address, with OPT", "one.default.svc.cluster.local.", true, false, 1),
        ("an alias", "alias.default.svc.cluster.local.", true, true, 1),
        ("rotation", "headless.default.svc.cluster.local.", true, false, 8),
        ("truncation", "large.default.svc.cluster.local.", false, false, 60),
        ("NXDOMAIN", "gone.default.svc.cluster.local.", true, false, 0),
        ("another zone", "www.example.com.", true, false, 2),
    ] {
        let asked = query(owner, edns);
        let mut packet = asked.to_vec().expect("it fits");
        learn(&resolver, &packet, &response(&asked, alias, addresses), start);
        let mut ask = |hits: u16| {
            for id in 0..hits {
                packet[..2].copy_from_slice(&id.to_be_bytes());
                // Up to second 26: beyond that an entry is refreshed, which is no mere hit.
                let now = start + Duration::from_millis(u64::from(id) * 26_000 / u64::from(HITS));
                let view = resolver.view();
                let step = resolver.handle(&view, &client, &packet, now, &mut front, &mut out);
                assert!(matches!(step, Step::Reply(Source::Hit)), "{what}");
            }
        };
        ask(100);
        let counted = allocation_counter::measure(|| ask(HITS));
        assert_eq!(counted.count_total, 0, "{what}: {} bytes in {HITS} hits", counted.bytes_total);
    }
}

/// Otherwise a counter that counts nothing would prove nothing.
#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![0u8; 100])));
    assert_eq!((counted.count_total, counted.bytes_total), (1, 100));
}
