//! A resolver without sockets, its clock, and answers to put into it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use nodens::cache::entry::Entry;
use nodens::cache::failure::Cause;
use nodens::cache::front::Front;
use nodens::config::{Config, Server, Zone};
use nodens::metrics::{Metrics, Source, Transport};
use nodens::resolve::view::{Target, View};
use nodens::resolve::{Client, Resolver, Step};
use nodens::upstream::Pool;
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::{OurEdns, Query as Parsed};
use nodens::wire::response::Answer;
use tokio::runtime::{Builder, Runtime};

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A zone whose server nobody ever asks here.
pub(crate) fn zone(suffix: &str) -> Zone {
    Zone::new(vec![name(suffix)], vec![Server::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)))])
}

/// A configuration of one zone for everything, changed by `change`.
pub(crate) fn config(change: impl FnOnce(&mut Zone)) -> Config {
    let mut zone = zone(".");
    change(&mut zone);
    Config { zones: vec![zone], ..Config::default() }
}

/// A query: the name, its type, RD set and no OPT.
pub(crate) fn query(owner: &str, qtype: u16) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(owner), RecordType::from(qtype)));
    message
}

/// The same query with an OPT.
pub(crate) fn with_opt(mut message: Message) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

/// A record with a TTL in seconds.
pub(crate) fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name(owner), ttl, data)
}

pub(crate) fn a(last: u8) -> RData {
    RData::A(A(Ipv4Addr::new(10, 0, 0, last)))
}

pub(crate) fn cname(target: &str) -> RData {
    RData::CNAME(CNAME(name(target)))
}

pub(crate) fn soa(minimum: u32) -> RData {
    RData::SOA(SOA::new(name("ns.test."), name("admin.test."), 1, 2, 3, 4, minimum))
}

/// A server's response to a query.
pub(crate) fn response(query: &Message, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(query.queries[0].clone());
    message.insert_answers(answers);
    message.insert_authorities(authorities);
    message
}

pub(crate) fn nxdomain(query: &Message, authorities: Vec<Record>) -> Message {
    let mut message = response(query, Vec::new(), authorities);
    message.metadata.response_code = ResponseCode::NXDomain;
    message
}

/// What became of a query.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply(Source, Message, usize),
    Drop,
    Wait,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn reply(self) -> (Source, Message) {
        match self {
            Self::Reply(source, message, _) => (source, message),
            other => panic!("no reply but {other:?}"),
        }
    }

    pub(crate) fn waits(&self) -> bool {
        matches!(self, Self::Wait)
    }
}

/// The TTLs of the answer and authority section.
pub(crate) fn ttls(message: &Message) -> Vec<u32> {
    message.answers.iter().chain(&message.authorities).map(|record| record.ttl).collect()
}

/// The code of the extended error in a reply.
pub(crate) fn extended_error(message: &Message) -> Option<u16> {
    match message.edns.as_ref()?.options().get(EdnsCode::from(15u16))? {
        EdnsOption::Unknown(_, value) => Some(u16::from_be_bytes([value[0], value[1]])),
        other => panic!("extended error as {other:?}"),
    }
}

/// A resolver and second 0 of its clock.
pub(crate) struct Agent {
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) client: Client,
    pub(crate) start: Instant,
    _runtime: Runtime,
}

impl Agent {
    pub(crate) fn new(config: &Config) -> Self {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let metrics = Arc::new(Metrics::new(1));
        let view = View::new(config, |zone| {
            let pool = Pool::new(zone.upstream.clone(), config.edns_size, &[]);
            (pool, metrics.zone(&zone.matches[0].to_ascii()))
        });
        let resolver =
            Resolver::new(view, config.cache.size, &config.limits, metrics, runtime.handle().clone());
        let ours = OurEdns { size: config.edns_size, keepalive: None };
        let client = Client { slot: 0, transport: Transport::Udp, ipv6: false, allowed: true, ours };
        Self { resolver, client, start: Instant::now(), _runtime: runtime }
    }

    /// With the defaults and one zone for everything.
    pub(crate) fn plain() -> Self {
        Self::new(&config(|_| {}))
    }

    pub(crate) fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    /// The key under which a query is cached.
    pub(crate) fn key(&self, query: &Message) -> Key {
        let packet = query.to_vec().expect("a query that fits");
        let query = Parsed::parse(&packet).expect("a well-formed query");
        let mut key = KeyBuf::new(&query);
        if let Target::Zone(labels, _) = self.resolver.view().find(&query, key.name()) {
            key.bind(labels);
        }
        key.to_key()
    }

    /// Does at second 0 what a flight does when its answer comes, and says how long the answer lives.
    pub(crate) fn learn(&self, query: &Message, response: &Message) -> u32 {
        self.learn_at(0.0, query, response)
    }

    pub(crate) fn learn_at(&self, seconds: f64, query: &Message, response: &Message) -> u32 {
        let key = self.key(query);
        let bytes = response.to_vec().expect("a response that fits");
        assert!(key.is_answered_by(&bytes));
        let answer = Answer::read(bytes, &key).expect("a well-formed response");
        let view = self.resolver.view();
        let zone = view.zone_of(query.queries[0].name()).expect("a zone");
        let entry = Arc::new(Entry::new(answer, &zone.bounds, self.at(seconds)));
        let life = entry.life();
        if life > 0 {
            self.resolver.cache.store(key, entry);
        }
        life
    }

    /// Does what a flight does when it fails.
    pub(crate) fn fail(&self, seconds: f64, query: &Message, cause: Cause) {
        let view = self.resolver.view();
        let zone = view.zone_of(query.queries[0].name()).expect("a zone");
        let generation = zone.pool.generation();
        self.resolver.failures.store(&self.key(query), cause, generation, &zone.times, self.at(seconds));
    }

    pub(crate) fn ask(&self, seconds: f64, query: &Message) -> Outcome {
        self.ask_bytes(seconds, &query.to_vec().expect("a query that fits"))
    }

    pub(crate) fn ask_bytes(&self, seconds: f64, packet: &[u8]) -> Outcome {
        let mut out = Vec::new();
        let view = self.resolver.view();
        match self.resolver.handle(
            &view,
            &self.client,
            packet,
            self.at(seconds),
            &mut Front::none(),
            &mut out,
        ) {
            Step::Reply(source) => {
                let message = Message::from_vec(&out).expect("a well-formed reply");
                Outcome::Reply(source, message, out.len())
            }
            Step::Drop(_) => Outcome::Drop,
            Step::Wait(_) => Outcome::Wait,
        }
    }
}

/// The same query in another class.
pub(crate) fn in_class(mut message: Message, class: u16) -> Message {
    message.queries[0].set_query_class(DNSClass::from(class));
    message
}
