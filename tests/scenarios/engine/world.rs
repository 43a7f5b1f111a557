//! Plays a scenario: the agent's resolver, its flights, pools and connections, over servers in memory
//! and under a clock that moves only when all is quiet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::serialize::binary::BinDecodable;
use nodens::cache::front::Front;
use nodens::clock;
use nodens::config::{Config, Upstream, file};
use nodens::metrics::{Metrics, Source, Transport};
use nodens::resolve::flight::{Outlet, ReplyTo};
use nodens::resolve::view::View;
use nodens::resolve::{Client, Resolver, Step as Decided};
use nodens::upstream::Pool;
use nodens::wire::query::OurEdns;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::check::{check, same, sent};
use crate::network::Servers;
use crate::records::hex;
use crate::saying::Saying;
use crate::script::{Ask, Expect, Nothing, Scenario, Step};

/// No reply takes longer: the deadline of a query is 4 s unless a scenario sets another.
const PATIENCE: Duration = Duration::from_secs(60);
/// Timers of the runtime are exact to a millisecond.
pub(crate) const TOLERANCE: Duration = Duration::from_millis(1);
/// How often the agent tidies its pools.
const TICK: Duration = Duration::from_secs(1);

const SOURCES: [Source; 6] =
    [Source::Hit, Source::Miss, Source::Stale, Source::Failure, Source::Hosts, Source::Local];

/// Answers by source.
type Counts = [u64; SOURCES.len()];
/// A reply, when it came, and what had been counted by then.
type Came = (Vec<u8>, Instant, Counts);

/// Plays it from the first step to the last.
pub(crate) fn play(scenario: &Scenario) -> Result<(), String> {
    quietly(async {
        let mut world = World::new(scenario)?;
        for (line, step) in &scenario.steps {
            world.step(step).await.map_err(|error| format!("{line}: {}: {error}", scenario.name))?;
        }
        if !scenario.ends_with_a_look() {
            return Err(format!("0: {}: nothing is looked at in the end", scenario.name));
        }
        world.all_is_looked_at().map_err(|error| format!("0: {}: {error}", scenario.name))
    })
}

/// Runs it under a clock that moves only when all is quiet.
pub(crate) fn quietly<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(story)
}

pub(crate) struct World {
    pub(crate) servers: Servers,
    pub(crate) resolver: Arc<Resolver>,
    edns_size: u16,
    pub(crate) asked: HashMap<String, Asked>,
}

/// A query, and what has come back.
pub(crate) struct Asked {
    id: Option<u16>,
    /// As far as it can be read.
    pub(crate) query: Option<Message>,
    pub(crate) at: Instant,
    counts: Counts,
    pub(crate) reply: Arc<Reply>,
    /// Whether an `expect` has looked at what came of it.
    looked_at: bool,
}

#[derive(Default)]
pub(crate) struct Reply {
    came: Mutex<Option<Came>>,
    count: AtomicUsize,
    news: Notify,
}

impl World {
    pub(crate) fn new(scenario: &Scenario) -> Result<Self, String> {
        let config: Config = file::parse(&scenario.config, "config")
            .map_err(|error| format!("0: {}: {error}", scenario.name))?;
        let servers = Servers::default();
        let metrics = Arc::new(Metrics::new(1));
        let (late, mut answers) = mpsc::channel(16);
        let mut pools: HashMap<Upstream, Arc<Pool>> = HashMap::new();
        let view = View::new(&config, |zone| {
            let network = Arc::new(servers.clone());
            let make = || Pool::with(zone.upstream.clone(), config.edns_size, &[], network, late.clone());
            let pool = pools.entry(zone.upstream.clone()).or_insert_with(make);
            (Arc::clone(pool), metrics.zone(&zone.matches[0].to_ascii()))
        });
        for (index, zone) in view.zones.iter().enumerate().rev() {
            zone.pool.probe_with(&zone.apex); // as the agent does
            if !view.zones[..index].iter().any(|first| Arc::ptr_eq(&first.pool, &zone.pool)) {
                servers.expect_probes(Name::from_bytes(&zone.apex).map_err(|error| error.to_string())?);
            }
        }
        let runtime = tokio::runtime::Handle::current();
        let resolver = Resolver::new(view, config.cache.size, &config.limits, metrics, runtime);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                pools.values().for_each(|pool| pool.tidy());
            }
        });
        let keeper = Arc::clone(&resolver);
        tokio::spawn(async move {
            while let Some(answer) = answers.recv().await {
                keeper.keep_late(answer);
            }
        });
        Ok(Self { servers, resolver, edns_size: config.edns_size, asked: HashMap::new() })
    }

    /// In the end: no query that nothing was said about, and no reply that nobody looked at.
    fn all_is_looked_at(&self) -> Result<(), String> {
        if let Some(first) = self.servers.unexpected().first() {
            return Err(format!("nothing is said about this: {first}"));
        }
        match self.asked.iter().find(|(_, asked)| !asked.looked_at) {
            Some((label, _)) => Err(format!("what came of `ask {label}` is not looked at")),
            None => Ok(()),
        }
    }

    pub(crate) async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::On(of, left, saying) => self.servers.teach(of.clone(), *left, Saying::clone(saying)),
            Step::Server(server, by, reachable) => self.servers.reach(*server, *by, *reachable),
            Step::Limit(server, most) => self.servers.limit(*server, *most),
            Step::Refuse(server, count) => self.servers.refuse(*server, *count),
            Step::Reset(server) => {
                self.servers.reset(*server);
                tokio::task::yield_now().await;
            }
            Step::Ask(label, ask) => self.ask(label, ask)?,
            Step::Replace(server) => self.servers.replace(*server),
            Step::Serialize(server) => self.servers.serialize(*server),
            Step::Expect(label, expect) => self.expect(label, expect).await?,
            Step::Wait(duration) => tokio::time::sleep(*duration).await,
            Step::Asked(count, of) => {
                let seen = self.servers.seen(|seen| {
                    let question = seen.message.queries.first();
                    of.server.is_none_or(|server| server == seen.server)
                        && of.name.as_ref().is_none_or(|name| question.is_some_and(|of| of.name == *name))
                        && of.rtype.is_none_or(|rtype| question.is_some_and(|of| of.query_type == rtype))
                });
                same("queries upstream", seen.len(), *count)?;
            }
            Step::Probed(count, server) => same("probes", self.servers.probed(*server), *count)?,
            Step::Sent(name, rtype, wanted) => {
                let seen = self.servers.seen(|seen| {
                    let question = seen.message.queries.first();
                    question.is_some_and(|question| question.name == *name && question.query_type == *rtype)
                });
                let (last, before) = seen.split_last().ok_or("nothing like it went upstream")?;
                for wanted in wanted {
                    sent(last, before.last(), wanted)?;
                }
            }
            Step::Streams { opened, open } => {
                tokio::task::yield_now().await;
                let (so_far, now) = self.servers.streams();
                opened.map_or(Ok(()), |wanted| same("streams opened", so_far, wanted))?;
                open.map_or(Ok(()), |wanted| same("streams open", now, wanted))?;
            }
            Step::Flush => {
                self.resolver.cache.flush(|_| true);
                self.resolver.failures.flush(|_| true);
            }
        }
        Ok(())
    }

    /// Answers so far, by source.
    fn counts(resolver: &Resolver) -> Counts {
        let view = resolver.view();
        SOURCES.map(|source| {
            let zones: u64 = view.zones.iter().map(|zone| zone.metrics.answered(source)).sum();
            zones + resolver.metrics.no_zone.answered(source)
        })
    }

    fn ask(&mut self, label: &str, ask: &Ask) -> Result<(), String> {
        let (query, packet) = match &ask.raw {
            Some(raw) => (Message::from_vec(raw).ok(), raw.clone()),
            None => {
                let query = query(ask)?;
                let mut packet = query.to_vec().map_err(|error| error.to_string())?;
                small_size(ask, &query, &mut packet);
                (Some(query), packet)
            }
        };
        let has = |option: &str| ask.options.iter().any(|known| known == option);
        let (transport, keepalive) =
            if has("tcp") { (Transport::Tcp, Some(100)) } else { (Transport::Udp, None) };
        let client = Client {
            slot: 0,
            transport,
            ipv6: false,
            allowed: !has("stranger"),
            ours: OurEdns { size: self.edns_size, keepalive },
        };
        let reply = Arc::new(Reply::default());
        let counts = Self::counts(&self.resolver);
        let view = self.resolver.view();
        let mut out = Vec::new();
        let now = clock::now();
        match self.resolver.handle(&view, &client, &packet, now, &mut Front::none(), &mut out) {
            Decided::Reply(_) => reply.take(out, &self.resolver),
            Decided::Drop(_) => {}
            Decided::Wait(miss) => {
                let to = Arc::new(Waits { reply: Arc::clone(&reply), resolver: Arc::clone(&self.resolver) });
                self.resolver.wait(miss, ReplyTo::Stream(to));
            }
        }
        let id = packet.first_chunk().map(|id| u16::from_be_bytes(*id));
        let asked = Asked { id, query, at: Instant::now(), counts, reply, looked_at: false };
        match self.asked.insert(label.to_owned(), asked) {
            Some(Asked { looked_at: false, .. }) => {
                Err("what came of the one before it is not looked at".to_owned())
            }
            _ => Ok(()),
        }
    }

    async fn expect(&mut self, label: &str, expect: &Expect) -> Result<(), String> {
        let asked = self.asked.get_mut(label).ok_or_else(|| format!("nobody asked `{label}`"))?;
        asked.looked_at |= expect.nothing != Some(Nothing::Waiting);
        if expect.nothing == Some(Nothing::Waiting) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return match asked.reply.came() {
                None => Ok(()),
                Some(_) => Err("there is a reply already".to_owned()),
            };
        }
        let waited = tokio::time::timeout(PATIENCE, async {
            while asked.reply.came().is_none() {
                asked.reply.news.notified().await;
            }
        });
        let came = if waited.await.is_ok() { asked.reply.came() } else { None };
        let Some((bytes, at, counts)) = came else {
            return match expect.nothing {
                Some(_) => Ok(()),
                None => Err(format!("no reply within {PATIENCE:?}")),
            };
        };
        let reply = Message::from_vec(&bytes).map_err(|error| format!("unreadable reply: {error}"))?;
        if expect.nothing.is_some() {
            return Err(format!("a reply came: {}", reply.metadata.response_code));
        }
        let took = at - asked.at;
        if took + TOLERANCE < expect.after || took > expect.after + TOLERANCE {
            return Err(format!("the reply came after {took:?}, not {:?}", expect.after));
        }
        if let Some(wanted) = &expect.source {
            let index = SOURCES.iter().position(|source| source.label() == wanted).ok_or("no such source")?;
            if counts[index] == asked.counts[index] {
                let come: Vec<_> = (0..SOURCES.len())
                    .filter(|&i| counts[i] > asked.counts[i])
                    .map(|i| SOURCES[i].label())
                    .collect();
                return Err(format!("not a {wanted} but {come:?}: {reply}"));
            }
        }
        check(asked.id, asked.query.as_ref(), &reply, bytes.len(), expect)
            .map_err(|error| format!("{error}\n{reply}"))
    }
}

/// Where the reply of a query that has to wait comes out.
struct Waits {
    reply: Arc<Reply>,
    resolver: Arc<Resolver>,
}

impl Outlet for Waits {
    fn deliver(&self, message: &[u8]) -> bool {
        self.reply.take(message.to_vec(), &self.resolver);
        true
    }

    fn source(&self) -> Option<IpAddr> {
        None
    }
}

impl std::fmt::Debug for Waits {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Waits")
    }
}

impl Reply {
    fn take(&self, bytes: Vec<u8>, resolver: &Resolver) {
        let counts = World::counts(resolver);
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        *came = Some((bytes, Instant::now(), counts));
        self.count.fetch_add(1, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// Replies that came.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn came(&self) -> Option<Came> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sizes below 512, which hickory would not write, go into the OPT at the packet's end.
fn small_size(ask: &Ask, query: &Message, packet: &mut [u8]) {
    let size = ask.options.iter().rev().find_map(|option| option.strip_prefix("size=")?.parse::<u16>().ok());
    if let (Some(size @ ..512), Some(edns)) = (size, &query.edns) {
        let options: usize =
            edns.options().as_ref().iter().map(|(_, option)| 4 + usize::from(option.len())).sum();
        let at = packet.len() - options - 8;
        packet[at..at + 2].copy_from_slice(&size.to_be_bytes());
    }
}

/// The message of an `ask`.
fn query(ask: &Ask) -> Result<Message, String> {
    let mut message = Message::new(0x2a2a, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut question = Query::query(ask.name.clone(), ask.rtype);
    question.set_query_class(ask.class);
    message.add_query(question);
    let mut edns: Option<Edns> = None;
    for option in &ask.options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let number = || value.parse::<u16>().map_err(|_| format!("`{option}` wants a number"));
        let opt = |edns: &mut Option<Edns>, change: &dyn Fn(&mut Edns)| {
            change(edns.get_or_insert_with(|| {
                let mut edns = Edns::new();
                edns.set_max_payload(1232);
                edns
            }));
        };
        match key {
            "tcp" | "stranger" => {}
            "id" => message.metadata.id = number()?,
            "no-rd" => message.metadata.recursion_desired = false,
            "cd" => message.metadata.checking_disabled = true,
            "ad" => message.metadata.authentic_data = true,
            "opcode" => message.metadata.op_code = OpCode::from_u8(number()? as u8),
            "edns" => opt(&mut edns, &|_| {}),
            "size" => {
                let size = number()?;
                opt(&mut edns, &|edns| {
                    edns.set_max_payload(size);
                });
            }
            "do" => opt(&mut edns, &|edns| {
                edns.set_dnssec_ok(true);
            }),
            "version" => {
                let version = number()? as u8;
                opt(&mut edns, &|edns| {
                    edns.set_version(version);
                });
            }
            "option" => {
                let (code, digits) = value.split_once(':').unwrap_or((value, ""));
                let code = code.parse().map_err(|_| format!("`{option}` wants CODE or CODE:HEX"))?;
                let bytes = hex(digits)?;
                opt(&mut edns, &|edns| edns.options_mut().insert(EdnsOption::Unknown(code, bytes.clone())));
            }
            _ => return Err(format!("`{option}` is no option of a query")),
        }
    }
    if let Some(edns) = edns {
        message.set_edns(edns);
    }
    Ok(message)
}
