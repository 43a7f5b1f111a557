//! Scenarios that a seed makes up: servers fail in every way the language knows, at random times, while clients
//! ask. What comes back cannot be told beforehand, but this holds for all: each query gets one reply inside its
//! deadline, with nothing in it that nobody said to this question; and once all is well again, each name is
//! answered at once and nothing is left of what was under way.

use std::fmt::Write as _;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use crate::check::same;
use crate::script;
use crate::world::{Asked, TOLERANCE, World, quietly};

/// Names that are asked for; the second octet of an address says for which of them it was given.
const NAMES: usize = 6;
/// Longest life of an answer, seconds.
const TTL: u32 = 5;
/// The TTL of a stale answer.
const STALE: u32 = 30;
/// An address in what no client may ever see.
const POISON: &str = "A 192.0.2.66";
/// What may become of a server.
const STATES: [&str; 13] = [
    "up",
    "up",
    "up",
    "up",
    "refuses",
    "unreachable",
    "silent",
    "resets",
    "moves",
    "serial",
    "refuses tcp",
    "unreachable tcp",
    "streams=1",
];
/// After this nothing is remembered or under way: failures last 10 s, connections idle 8 s.
const QUIET: Duration = Duration::from_secs(60);
/// The connection of a probe is idle by then.
const PROBED: Duration = Duration::from_secs(10);
/// The most servers of a story.
const SERVERS: usize = 3;

struct Story {
    random: StdRng,
    text: String,
    servers: usize,
    timeout: Duration,
    /// Queries so far.
    asked: usize,
    /// Answers made up so far.
    said: usize,
}

/// Plays the story of this seed. Its text comes with what is wrong with it.
pub(crate) fn play(seed: u64) -> Result<(), String> {
    let mut story = Story::begin(seed);
    (0..80).for_each(|_| story.go_on());
    story.end_silence();
    let (timeout, asked) = (story.timeout, story.asked);
    let end = story.end();
    quietly(run(&story.text, &end, timeout, asked))
        .map_err(|error| format!("seed {seed}: {error}\n{}", story.text))
}

async fn run(text: &str, end: &str, timeout: Duration, asked: usize) -> Result<(), String> {
    let scenario = script::parse(text)?.pop().ok_or("no scenario")?;
    let mut world = World::new(&scenario)?;
    for (_, step) in &scenario.steps {
        world.step(step).await?;
    }
    tokio::time::sleep(QUIET).await;
    for label in (0..asked).map(|number| number.to_string()) {
        judge(&world.asked[&label], timeout).map_err(|error| format!("query {label}: {error}"))?;
    }
    let is_empty = |world: &World| {
        let flights = &world.resolver.flights;
        same("flights and waiters", (flights.len(), flights.waiting()), (0, 0))?;
        let view = world.resolver.view();
        let left: usize = view.zones[0].pool.servers().iter().map(|server| server.in_flight()).sum();
        same("queries in flight", left, 0)
    };
    is_empty(&world)?;
    // More can be counted than came: what was on a connection that broke.
    let counted: u64 =
        world.resolver.view().zones[0].requests().iter().map(|requests| requests.udp + requests.tcp).sum();
    let seen = world.servers.seen(|_| true).len() as u64;
    if counted < seen {
        return Err(format!("{seen} queries upstream, but {counted} are counted"));
    }
    // An auto:// server may just have been probed by TCP; its next probe is at least a minute away.
    for _ in 0..SERVERS {
        if world.servers.streams().1 > 0 {
            tokio::time::sleep(PROBED).await;
        }
    }
    same("open streams", world.servers.streams().1, 0)?;
    world.servers.forget();
    let end = script::parse(&format!("scenario end\n  As above.\n{end}"))?.pop().ok_or("no end")?;
    for (_, step) in &end.steps {
        world.step(step).await.map_err(|error| format!("once all is well: {error}"))?;
    }
    is_empty(&world)
}

/// Whether a query had one reply, in time, of what was said to it.
fn judge(asked: &Asked, timeout: Duration) -> Result<(), String> {
    same("replies", asked.reply.count(), 1)?;
    let (bytes, at, _) = asked.reply.came().ok_or("no reply")?;
    let took: Duration = Instant::duration_since(&at, asked.at);
    if took > timeout + TOLERANCE {
        return Err(format!("the reply came after {took:?}"));
    }
    let reply = Message::from_vec(&bytes).map_err(|error| format!("unreadable: {error}"))?;
    let query = asked.query.as_ref().ok_or("no query")?;
    same("ID", reply.metadata.id, query.metadata.id)?;
    same("question", &reply.queries, &query.queries)?;
    let number = query.queries[0].name.to_ascii()[1..2].parse::<u8>().map_err(|error| error.to_string())?;
    let wrong = |what: &str| Err(format!("{what}: {reply}"));
    match reply.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain | ResponseCode::ServFail | ResponseCode::Refused => {}
        _ => return wrong("an RCODE of nobody's"),
    }
    let positive = reply.metadata.response_code == ResponseCode::NoError && reply.authorities.is_empty();
    if positive == reply.answers.is_empty() {
        return wrong("records that do not fit the RCODE");
    }
    for record in reply.answers.iter().chain(&reply.authorities) {
        if record.ttl > TTL && record.ttl != STALE {
            return wrong("a TTL of nobody's");
        }
    }
    for record in &reply.answers {
        match &record.data {
            RData::A(a) if a.octets()[..2] == [10, number] && record.name == query.queries[0].name => {}
            _ => return wrong("an answer to another question"),
        }
    }
    Ok(())
}

impl Story {
    fn begin(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let servers = random.random_range(1..=SERVERS);
        let list: Vec<String> = (1..=servers)
            .map(|n| format!("\"{}://192.0.2.{n}\"", ["tcp", "udp", "auto"][random.random_range(0..3)]))
            .collect();
        let policy = ["sequential", "random", "round_robin", "least_loaded"][random.random_range(0..4)];
        let timeout = Duration::from_millis(random.random_range(1..=4) * 1000 - random.random_range(0..500));
        let (max, in_flight) = (random.random_range(1..4), random.random_range(1..5));
        let stale = ["off", "{ mode: immediate }", "{ client_response: 500ms }", "{ client_response: 0s }"]
            [random.random_range(0..4)];
        let text = format!(
            "scenario seed_{seed}\n  Made up.\nupstream {{ servers: [{}], policy: {policy}, timeout: {timeout:?}, \
             mixed_case: {}, connections: {{ max: {max}, min: 1, in_flight: {in_flight} }} }}\n\
             cache {{ stale: {stale} }}\n",
            list.join(", "),
            random.random_bool(0.3),
        );
        let mut story = Self { random, text, servers, timeout, asked: 0, said: 0 };
        for name in 0..NAMES {
            let answer = story.answer(name);
            story.line(&format!("on n{name}.test. *\n  {answer}"));
        }
        story
    }

    fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "{line}");
    }

    fn up_to(&mut self, bound: usize) -> usize {
        self.random.random_range(0..bound)
    }

    /// A good answer, unlike any other.
    fn answer(&mut self, name: usize) -> String {
        self.said += 1;
        let ttl = self.up_to(TTL as usize + 1);
        format!("n{name}.test. {ttl} A 10.{name}.{}.{}", self.said / 256, self.said % 256)
    }

    fn go_on(&mut self) {
        match self.up_to(10) {
            0..5 => self.ask(),
            5..8 => self.teach(),
            8 => {
                let time = [1, 20, 300, 1000, 2500, 9000][self.up_to(6)];
                let time = time / 2 + self.up_to(time) + 1;
                self.line(&format!("wait {time}ms"));
            }
            _ => {
                let (server, state) = (self.up_to(self.servers) + 1, self.up_to(STATES.len()));
                let state = STATES[state];
                self.line(&format!("server 192.0.2.{server} {state}"));
            }
        }
    }

    /// Some clients ask for the same name, or each for another.
    fn ask(&mut self) {
        let (first, step) = (self.up_to(NAMES), self.up_to(2));
        for client in 0..=self.up_to(4) {
            let options = ["", " tcp", " edns", " do", " cd"][self.up_to(5)];
            let (number, id, name) = (self.asked, self.up_to(65_536), (first + step * client) % NAMES);
            self.line(&format!("ask {number}: n{name}.test. A{options} id={id}"));
            self.asked += 1;
        }
    }

    /// A server says something else from now on, for good or for some queries.
    fn teach(&mut self) {
        let name = self.up_to(NAMES);
        let good = self.answer(name);
        let bad = format!("n{name}.test. {TTL} {POISON}");
        let times = [String::new(), " once".to_owned(), format!(" times={}", self.up_to(5) + 1)]
            [self.up_to(3)]
        .clone();
        let mut over = "";
        let other = (name + 1) % NAMES;
        let says = match self.up_to(20) {
            0..4 => good,
            4 => "silence".to_owned(),
            5 => "close".to_owned(),
            6 => "SERVFAIL".to_owned(),
            7 => "REFUSED\n  question none".to_owned(),
            8 => "FORMERR".to_owned(),
            9 => format!("NXDOMAIN\n  ns test. {TTL} SOA a.test. b.test. 1 2 3 4 {TTL}"),
            10 => format!("ns test. {TTL} SOA a.test. b.test. 1 2 3 4 {TTL}"),
            11 => format!("{bad}\n  count an 2"),
            12 => format!("{bad}\n  trailing 00"),
            13 => format!("{bad}\n  wrong-id"),
            14 => format!("{bad}\n  question n{other}.test. A"),
            15 => format!("NOERROR tc\n  {bad}"),
            16 => format!("{good}\n  strangers {}\n  copies 2", self.up_to(80)),
            17 => format!("{good}\n  close"),
            18 => format!("{good}\n  question upper"),
            _ => {
                over = " tcp";
                let cut = self.up_to(30);
                [
                    format!("{bad}\n  cut {cut}"),
                    format!("{good}\n  drip 40ms"),
                    format!("{bad}\n  frame {cut}"),
                ][self.up_to(3)]
                .clone()
            }
        };
        let server = match self.up_to(2) {
            0 => String::new(),
            _ => format!(" at=192.0.2.{}", self.up_to(self.servers) + 1),
        };
        self.line(&format!("on n{name}.test. *{server}{over}{times}\n  {says}"));
        if self.random.random_bool(0.4) {
            let thinks = [10, 200, 700, 1000, 1500, 5000][self.up_to(6)];
            self.line(&format!("  after {thinks}ms"));
        }
    }

    /// A server that takes connections and says nothing is probed for ever, and that would be seen.
    fn end_silence(&mut self) {
        for server in (1..=self.servers).map(|n| format!("server 192.0.2.{n} ")) {
            let mut states = self.text.lines().filter_map(|line| line.strip_prefix(&server));
            if states.rfind(|state| !["resets", "moves", "serial", "streams=1"].contains(state))
                == Some("silent")
            {
                self.line(&format!("{server}up"));
            }
        }
    }

    /// Each server is there and answers, and so does the agent.
    fn end(&mut self) -> String {
        let mut end = String::new();
        for server in 1..=self.servers {
            let _ = writeln!(end, "server 192.0.2.{server} up\nserver 192.0.2.{server} streams=99");
        }
        end.push_str("wait 501ms\nflush\n"); // a probe finds out
        for name in 0..NAMES {
            let record = format!("n{name}.test. 10 A 10.255.255.{name}");
            let _ = writeln!(end, "on n{name}.test. A\n  {record}");
            let _ = writeln!(end, "ask n{name}.test. A\nexpect NOERROR miss\n  {record}");
        }
        end
    }
}
