//! Any packet from a client: what [`Resolver::handle`] makes of it, without any I/O.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nodens::cache::entry::Entry;
use nodens::cache::failure::{Cause, Times};
use nodens::cache::front::Front;
use nodens::cache::lifetime::MAX_TTL;
use nodens::config::{Config, Server, StaleMode, Zone};
use nodens::metrics::{Metrics, Source, Transport};
use nodens::resolve::view::{Target, View};
use nodens::resolve::{Client, Resolver, Step};
use nodens::upstream::Pool;
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::{OurEdns, Query, Reject};
use nodens::wire::response::Answer;
use nodens::wire::{HEADER, flag, rcode};
use tokio::runtime::{Builder, Runtime};

use super::walk::{u16_of, walk};

/// Seconds after the cache was filled: all is fresh, or what lives [`SHORT`] has expired.
const TIMES: [u64; 2] = [1, 20];
/// A TTL that ends between them.
const SHORT: u32 = 5;
const OURS: u16 = 1232;

/// A resolver without sockets whose cache holds a bit of everything.
struct World {
    resolver: Arc<Resolver>,
    start: Instant,
    /// Its flights are never driven.
    _runtime: Runtime,
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

impl World {
    fn get() -> &'static Self {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(Self::new)
    }

    fn new() -> Self {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let mut zone = Zone::new(vec![name("test.")], vec![Server::Tcp(nobody)]);
        let stale = zone.policy.stale.as_mut().expect("stale answers are the default");
        stale.mode = StaleMode::Immediate;
        let mut config = Config { zones: vec![zone], ..Config::default() };
        config.hosts.records.push((IpAddr::from([10, 0, 0, 7]), vec![name("host.test.")]));
        let metrics = Arc::new(Metrics::new(1));
        let view = View::new(&config, |zone| {
            let pool = Pool::new(zone.upstream.clone(), OURS, &[]);
            (pool, metrics.zone("test."))
        });
        let handle = runtime.handle().clone();
        let resolver = Resolver::new(view, config.cache.size, &config.limits, metrics, handle);
        let world = Self { resolver, start: Instant::now(), _runtime: runtime };
        world.fill();
        world
    }

    fn fill(&self) {
        let addresses = |owner: &str, ttl, count: u8| -> Vec<Record> {
            let a = |last| RData::A(A(Ipv4Addr::new(10, 0, 0, last)));
            (0..count).map(|last| Record::from_rdata(name(owner), ttl, a(last))).collect()
        };
        let alias = Record::from_rdata(name("c.test."), 30, RData::CNAME(CNAME(name("a.test."))));
        let soa = SOA::new(name("ns.test."), name("admin.test."), 1, 2, 3, 4, 30);
        let soa = || vec![Record::from_rdata(name("test."), 30, RData::SOA(soa.clone()))];
        self.learn("a.test.", ResponseCode::NoError, addresses("a.test.", 30, 3), Vec::new());
        self.learn("b.test.", ResponseCode::NoError, addresses("b.test.", 30, 120), Vec::new());
        let chain = [vec![alias], addresses("a.test.", 30, 40)].concat();
        self.learn("c.test.", ResponseCode::NoError, chain, soa());
        self.learn("n.test.", ResponseCode::NXDomain, Vec::new(), soa());
        self.learn("o.test.", ResponseCode::NoError, Vec::new(), soa());
        self.learn("s.test.", ResponseCode::NoError, addresses("s.test.", SHORT, 60), Vec::new());
        let view = self.resolver.view();
        let zone = view.zone_of(&name("f.test.")).expect("the zone");
        let minute = Duration::from_secs(60);
        let times = Times { servfail: minute, servfail_max: minute, ..zone.times };
        let key = self.key(&question("f.test."));
        self.resolver.failures.store(
            &key,
            Cause::Rcode(rcode::SERVFAIL),
            zone.pool.generation(),
            &times,
            self.start,
        );
    }

    fn key(&self, question: &Message) -> Key {
        let packet = question.to_vec().expect("a query that fits");
        let query = Query::parse(&packet).expect("a well-formed query");
        let mut key = KeyBuf::new(&query);
        if let Target::Zone(labels, _) = self.resolver.view().find(&query, key.name()) {
            key.bind(labels);
        }
        key.to_key()
    }

    fn learn(&self, owner: &str, code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) {
        let mut message = question(owner);
        let key = self.key(&message);
        message.metadata.message_type = MessageType::Response;
        message.metadata.response_code = code;
        message.insert_answers(answers);
        message.insert_authorities(authorities);
        let bytes = message.to_vec().expect("a response that fits");
        let answer = Answer::read(bytes, &key).expect("a well-formed response");
        let view = self.resolver.view();
        let zone = view.zone_of(message.queries[0].name()).expect("the zone");
        let entry = Entry::new(answer, &zone.bounds, self.start);
        assert!(entry.life() > 0, "{owner} is cached");
        self.resolver.cache.store(key, Arc::new(entry));
    }

    fn handle(&self, client: &Client, packet: &[u8], second: u64, front: &mut Front) -> (Step, Vec<u8>) {
        let now = self.start + Duration::from_secs(second);
        let mut out = b"what was here before".to_vec();
        let step = self.resolver.handle(&self.resolver.view(), client, packet, now, front, &mut out);
        (step, out)
    }
}

fn question(owner: &str) -> Message {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(owner), RecordType::A));
    message
}

/// Lets clients by UDP, by TCP and from outside send `packet`, and checks every reply. The sources of
/// all replies.
pub(crate) fn check(packet: &[u8]) -> Vec<Source> {
    let world = World::get();
    let udp = Client {
        slot: 0,
        transport: Transport::Udp,
        ipv6: false,
        allowed: true,
        ours: OurEdns { size: OURS, keepalive: None },
    };
    let tcp = OurEdns { size: OURS, keepalive: Some(100) };
    let clients = [
        udp,
        Client { ours: OurEdns { size: 512, keepalive: None }, ipv6: true, ..udp },
        Client { transport: Transport::Tcp, ours: tcp, ..udp },
        Client { allowed: false, ..udp },
    ];
    let mut sources = Vec::new();
    // A new one for each packet, so that a finding needs nothing but its own packet.
    let mut front = Front::new();
    for second in TIMES {
        for client in &clients {
            let (step, out) = world.handle(client, packet, second, &mut Front::none());
            match step {
                Step::Reply(source) => {
                    sources.push(source);
                    check_reply(packet, client, source, &out);
                    for _ in 0..2 {
                        let (_, again) = world.handle(client, packet, second, &mut front);
                        assert!(out == again, "a worker's own memory answers as the store does");
                    }
                }
                Step::Drop(_) => assert!(
                    packet.len() < HEADER || u16_of(packet, 2) & flag::QR != 0,
                    "a query is never silently lost"
                ),
                Step::Wait(_) => {
                    let query = Query::parse(packet).expect("what is asked upstream was read");
                    assert!(client.allowed && query.recursion_desired());
                }
            }
        }
    }
    sources
}

fn check_reply(packet: &[u8], client: &Client, source: Source, out: &[u8]) {
    let walked = walk(out);
    let (asked, flags) = (u16_of(packet, 2), u16_of(out, 2));
    assert_eq!(out[..2], packet[..2], "ID");
    assert_eq!(flags & (flag::QR | flag::OPCODE), flag::QR | asked & flag::OPCODE, "QR and opcode");
    assert_eq!(flags & flag::RD, asked & flag::RD, "RD");
    assert!(Message::from_vec(out).is_ok(), "another implementation reads it: {out:02x?}");
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Reject::Header(code)) => {
            assert_eq!((out.len(), flags & flag::RCODE), (HEADER, code), "a header alone");
            return;
        }
        Err(reject) => panic!("a reply to {reject:?}"),
    };
    assert_eq!(out[HEADER..walked.question_end], packet[HEADER..walked.question_end], "the question");
    assert_eq!(flags & flag::CD, asked & flag::CD, "CD");
    let limit = match (client.transport, query.edns) {
        (Transport::Tcp, _) => 65_535,
        (Transport::Udp, None) => 512,
        (Transport::Udp, Some(edns)) => usize::from(edns.size.max(512).min(client.ours.size)),
    };
    assert!(out.len() <= limit, "{} bytes for a client of {limit}", out.len());
    assert_eq!(walked.opt.is_some(), query.edns.is_some(), "OPT if the query had one");
    let mut code = flags & flag::RCODE;
    if let (Some((record, ours)), Some(theirs)) = (walked.opt, query.edns) {
        code |= (record.ttl >> 24 << 4) as u16;
        assert_eq!((ours.version, ours.dnssec_ok), (0, theirs.dnssec_ok), "version and DO");
        assert_eq!(record.class, client.ours.size, "our size");
    }
    for record in walked.sections.iter().flatten() {
        assert!(record.ttl <= MAX_TTL, "TTL {}", record.ttl);
    }
    if !client.allowed || query.is_transfer() || query.is_chaos() {
        assert_eq!(code, rcode::REFUSED);
        assert!(
            client.allowed || out.len() <= packet.len(),
            "strangers' refusals are no larger than queries"
        );
    } else if query.edns.is_some_and(|edns| edns.version != 0) {
        assert_eq!(code, rcode::BADVERS);
    } else {
        assert_ne!(code, rcode::BADVERS);
    }
    let records: usize = walked.sections.iter().map(Vec::len).sum();
    if matches!(source, Source::Failure) {
        assert_eq!(records, 0, "a failure has no records");
    }
}
