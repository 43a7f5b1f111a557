//! What the parts of a hit cost, without sockets: `cargo bench --bench micro`.
//!
//! `cargo bench --bench micro -- handle` runs the benches whose name has `handle` in it. Few samples, so
//! that the whole takes less than a minute; compare runs on a quiet machine only.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nodens::cache::entry::{Entry, Style, Ttls};
use nodens::cache::front::Front;
use nodens::config::{Config, Server, Zone};
use nodens::metrics::{Metrics, Source, Transport};
use nodens::resolve::view::{Target, View};
use nodens::resolve::{Client, Resolver, Step};
use nodens::upstream::Pool;
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::{OurEdns, Query};
use nodens::wire::response::Answer;

/// Names in the cache: as many as the pods of a busy node ask.
const NAMES: usize = 1000;
/// Threads of the last bench, each with a slot of counters as the UDP workers have.
const THREADS: usize = 2;
const UDP: OurEdns = OurEdns { size: 1232, keepalive: None };
const STYLE: Style = Style { edns: UDP, rotate: true, error: None };

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

/// A query as libc sends it, with an OPT.
fn query(owner: &str) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(owner), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

/// An alias and three addresses.
fn response(asked: &Message) -> Message {
    let owner = asked.queries[0].name().clone();
    let target = name("backend.default.svc.cluster.local.");
    let mut message = Message::new(2, MessageType::Response, OpCode::Query);
    message.add_query(asked.queries[0].clone());
    message.add_answer(Record::from_rdata(owner, 30, RData::CNAME(CNAME(target.clone()))));
    for last in 1..=3 {
        message.add_answer(Record::from_rdata(
            target.clone(),
            30,
            RData::A(A(Ipv4Addr::new(10, 0, 0, last))),
        ));
    }
    message.set_edns(Edns::new());
    message
}

/// A resolver whose cache holds the answers to all `packets`.
struct Warm {
    resolver: Arc<Resolver>,
    packets: Vec<Vec<u8>>,
    now: Instant,
    _runtime: tokio::runtime::Runtime,
}

impl Warm {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let server = Server::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)));
        let zones = [".", "cluster.local."].map(|zone| Zone::new(vec![name(zone)], vec![server.clone()]));
        let config = Config { zones: zones.to_vec(), ..Config::default() };
        let metrics = Arc::new(Metrics::new(THREADS));
        let view = View::new(&config, |zone| {
            (Pool::new(zone.upstream.clone(), 1232, &[]), metrics.zone(&zone.matches[0].to_ascii()))
        });
        let handle = runtime.handle().clone();
        let resolver = Resolver::new(view, config.cache.size, &config.limits, metrics, handle);
        let now = Instant::now();
        let packets =
            (0..NAMES).map(|n| learn(&resolver, &format!("web-{n}.default.svc.cluster.local."), now));
        Self { packets: packets.collect(), resolver, now, _runtime: runtime }
    }

    /// One hit, from the packet to the reply.
    fn hit(&self, slot: usize, turn: usize, front: &mut Front, out: &mut Vec<u8>) {
        let client = Client { slot, transport: Transport::Udp, ipv6: false, allowed: true, ours: UDP };
        let view = self.resolver.view();
        let packet = &self.packets[turn % NAMES];
        let step = self.resolver.handle(&view, &client, black_box(packet), self.now, front, out);
        assert!(matches!(step, Step::Reply(Source::Hit)));
    }
}

fn key(resolver: &Resolver, packet: &[u8]) -> Key {
    let query = Query::parse(packet).expect("a well-formed query");
    let mut key = KeyBuf::new(&query);
    if let Target::Zone(labels, _) = resolver.view().find(&query, key.name()) {
        key.bind(labels);
    }
    key.to_key()
}

fn learn(resolver: &Resolver, owner: &str, now: Instant) -> Vec<u8> {
    let asked = query(owner);
    let packet = asked.to_vec().expect("it fits");
    let key = key(resolver, &packet);
    let bytes = response(&asked).to_vec().expect("it fits");
    let answer = Answer::read(bytes, &key).expect("a well-formed response");
    let bounds = resolver.view().zones[0].bounds;
    resolver.cache.store(key, Arc::new(Entry::new(answer, &bounds, now)));
    packet
}

fn wire(criterion: &mut Criterion, warm: &Warm) {
    let packet = &warm.packets[0];
    criterion.bench_function("Query::parse", |bencher| {
        bencher.iter(|| Query::parse(black_box(packet)).expect("a well-formed query"));
    });
    let key = key(&warm.resolver, packet);
    let message = response(&query("web-0.default.svc.cluster.local.")).to_vec().expect("it fits");
    criterion.bench_function("Answer::read", |bencher| {
        let read = |message| Answer::read(message, &key).expect("a well-formed response");
        bencher.iter_batched(|| message.clone(), read, BatchSize::SmallInput);
    });
    let answer = Answer::read(message, &key).expect("a well-formed response");
    let entry = Entry::new(answer, &warm.resolver.view().zones[0].bounds, warm.now);
    let query = Query::parse(packet).expect("a well-formed query");
    let mut out = Vec::with_capacity(2048);
    criterion.bench_function("Entry::write", |bencher| {
        bencher.iter(|| entry.write(black_box(&query), Ttls::Aged(7), &STYLE, &mut out));
    });
}

fn cache(criterion: &mut Criterion, warm: &Warm) {
    let mut keys = Vec::with_capacity(NAMES);
    for packet in &warm.packets {
        let query = Query::parse(packet).expect("a well-formed query");
        let mut key = KeyBuf::new(&query);
        key.bind(2); // cluster.local
        keys.push(key);
    }
    let mut turn = 0;
    criterion.bench_function("Cache::lookup", |bencher| {
        bencher.iter(|| {
            turn += 1;
            warm.resolver.cache.lookup(black_box(&keys[turn % NAMES])).expect("it is there")
        });
    });
}

fn handle(criterion: &mut Criterion, warm: &Warm) {
    let mut group = criterion.benchmark_group("Resolver::handle, hit");
    let (mut front, mut out) = (Front::new(), Vec::with_capacity(2048));
    let mut turn = 0;
    group.throughput(Throughput::Elements(1));
    group.bench_function("1 thread", |bencher| {
        bencher.iter(|| {
            turn += 1;
            warm.hit(0, turn, &mut front, &mut out);
        });
    });
    // Each iteration is one hit on every thread: the time is that of a thread, the throughput that of all.
    group.throughput(Throughput::Elements(THREADS as u64));
    group.bench_function(format!("{THREADS} threads"), |bencher| {
        bencher.iter_custom(|hits| {
            thread::scope(|scope| {
                let run = |slot: usize| {
                    move || {
                        let (mut front, mut out) = (Front::new(), Vec::with_capacity(2048));
                        let started = Instant::now();
                        for turn in 0..hits as usize {
                            warm.hit(slot, turn, &mut front, &mut out);
                        }
                        started.elapsed()
                    }
                };
                let threads: Vec<_> = (0..THREADS).map(|slot| scope.spawn(run(slot))).collect();
                let took = threads.into_iter().map(|thread| thread.join().expect("no panic"));
                took.max().unwrap_or_default()
            })
        });
    });
}

fn main() {
    let warm = Warm::new();
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args();
    wire(&mut criterion, &warm);
    cache(&mut criterion, &warm);
    handle(&mut criterion, &warm);
    criterion.final_summary();
}
