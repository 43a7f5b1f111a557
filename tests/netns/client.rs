//! A client that asks at a constant rate, never the same twice, and says what became of each query.
//!
//! It is this program again, in the namespace of a pod: a thread cannot change its namespace without `unsafe`.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::client_ways::{Outcome, run_order};
use crate::support::{Process, seconds, wait_until};
use crate::topology::{Node, Place};

/// Without an answer for so long a query is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Holds an [`Order`], in a process that is a client.
const ORDER: &str = "NODENS_TEST_CLIENT";
/// Precede what a client prints, so that it is found among what the test runner prints.
const BEGUN: &str = "client: begun";
const SEEN: &str = "client: seen ";

/// How queries go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    /// Each from a port of its own, as stub resolvers do it.
    Udp,
    /// All from one port.
    UdpOnePort,
    /// A connection for each.
    Tcp,
    /// One connection for all; when it is closed, another follows with the next query.
    TcpOneConnection,
}

/// How many, and how fast.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Pace {
    /// So many a second, for so long.
    Rate { per_second: u64, for_ms: u64 },
    /// So many, of which 32 are outstanding at once.
    Count(u64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) server: SocketAddr,
    pub(crate) way: Way,
    pub(crate) pace: Pace,
    /// Begins every name, which `load.test` ends.
    pub(crate) run: String,
}

/// A query without a good answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lost {
    /// When it was sent, after the first one.
    pub(crate) at_ms: u64,
    pub(crate) why: String,
}

/// What became of all queries.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Answers by the TTL of their first record, which says who gave them.
    pub(crate) by_ttl: BTreeMap<u32, u64>,
    /// When the first answer with each TTL was asked for, and the last one, after the first query.
    pub(crate) when_ms: BTreeMap<u32, [u64; 2]>,
    pub(crate) lost: Vec<Lost>,
    /// When the first one was sent, since 1970.
    pub(crate) began_ms: u64,
    /// From the first one to the last one.
    pub(crate) sending_ms: u64,
    pub(crate) slowest_ms: u64,
    /// Connections opened, of [`Way::TcpOneConnection`].
    pub(crate) connections: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, at: Duration, took: Duration, outcome: Outcome) {
        let at_ms = at.as_millis() as u64;
        match outcome {
            Outcome::Answer { ttl } => {
                self.answered += 1;
                *self.by_ttl.entry(ttl).or_default() += 1;
                let [first, last] = self.when_ms.entry(ttl).or_insert([at_ms, at_ms]);
                (*first, *last) = ((*first).min(at_ms), (*last).max(at_ms));
                self.slowest_ms = self.slowest_ms.max(took.as_millis() as u64);
            }
            Outcome::Lost(why) => self.lost.push(Lost { at_ms, why }),
        }
    }

    /// Answers that carry this TTL.
    pub(crate) fn with_ttl(&self, ttl: u32) -> u64 {
        self.by_ttl.get(&ttl).copied().unwrap_or(0)
    }

    /// Queries sent in a second.
    pub(crate) fn rate(&self) -> u64 {
        self.sent * 1000 / self.sending_ms.max(1)
    }

    /// Every query was answered, and by the agent: nothing carries what the cluster's DNS itself says.
    #[track_caller]
    pub(crate) fn must_all_have(&self, ttl: u32) {
        assert!(self.lost.is_empty() && self.answered == self.sent, "{self}");
        assert_eq!(self.with_ttl(ttl), self.sent, "{self}");
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent at {}/s, {} answered (by TTL {:?}), slowest {} ms, {} lost",
            self.sent,
            self.rate(),
            self.answered,
            self.by_ttl,
            self.slowest_ms,
            self.lost.len()
        )?;
        let mut by_cause: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for lost in &self.lost {
            by_cause.entry(&lost.why).or_default().push(lost.at_ms);
        }
        for (why, at) in by_cause {
            let (first, last) = (at.iter().min().unwrap_or(&0), at.iter().max().unwrap_or(&0));
            write!(f, "; {} {why}, sent from {first} ms to {last} ms", at.len())?;
        }
        Ok(())
    }
}

/// A client at work. Dropping it ends it.
pub(crate) struct Load {
    pace: Pace,
    process: Process,
    // After the process: fields are dropped in this order.
    _dir: TempDir,
}

impl Load {
    /// Starts a client there, and waits until it has begun to ask.
    #[track_caller]
    pub(crate) fn start(place: Place, server: SocketAddr, way: Way, pace: Pace) -> Self {
        let load = Self::launch(place, server, way, pace, &Self::new_names());
        wait_until("the client has begun", seconds(10), || load.process.output().contains(BEGUN));
        load
    }

    /// What names begin with that nobody has asked for.
    pub(crate) fn new_names() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("run-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// As [`Load::start`], with names that begin so, and without waiting.
    #[track_caller]
    fn launch(place: Place, server: SocketAddr, way: Way, pace: Pace, names: &str) -> Self {
        let order = Order { server, way, pace, run: names.to_owned() };
        let this: PathBuf = env::current_exe().expect("this program");
        let mut command = Node::command(place, this.to_str().expect("a path in UTF-8"));
        let test = "client::queries_are_asked_at_the_rate_and_each_lost_one_is_counted";
        command.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
        command.env(ORDER, serde_json::to_string(&order).expect("JSON"));
        let dir = tempfile::tempdir().expect("temporary directory");
        let process = Process::start(command, "iproute2", &dir.path().join("output"));
        Self { pace, process, _dir: dir }
    }

    /// Waits for the end. A client that could not keep its rate has shown nothing.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Seen {
        let limit = match self.pace {
            Pace::Rate { for_ms, .. } => Duration::from_millis(for_ms) + seconds(10),
            Pace::Count(_) => seconds(60),
        };
        let ended = self.process.wait(limit);
        let output = self.process.output();
        let line = output.lines().find_map(|line| line.split_once(SEEN).map(|(_, rest)| rest));
        let line = line.unwrap_or_else(|| panic!("the client ({ended:?}) has said nothing: {output}"));
        let seen: Seen = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if let Pace::Rate { per_second, .. } = self.pace {
            assert!(seen.rate() * 10 >= per_second * 9, "{per_second}/s were asked for: {seen}");
        }
        seen
    }
}

/// Asks so many queries from each place, all places at once, and returns what each of them saw.
#[track_caller]
pub(crate) fn ask_from(places: &[Place], server: SocketAddr, way: Way, count: u64) -> Vec<Seen> {
    let start = |&place: &Place| Load::launch(place, server, way, Pace::Count(count), &Load::new_names());
    let loads: Vec<_> = places.iter().map(start).collect();
    loads.into_iter().map(Load::finish).collect()
}

/// Asks for so many names that begin so, which others may have asked for.
#[track_caller]
pub(crate) fn ask_again(place: Place, server: SocketAddr, way: Way, count: u64, names: &str) -> Seen {
    Load::launch(place, server, way, Pace::Count(count), names).finish()
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64
}

/// What it begins with when it is a client, so that others can wait for that.
pub(crate) fn say_begun() {
    println!("{BEGUN}");
    let _ = std::io::stdout().flush();
}

/// Answers on loopback, but not every 50th query, for as long as something comes.
fn forgetful_server() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("socket");
    // A client takes its time to begin on a busy machine.
    socket.set_read_timeout(Some(seconds(30))).expect("timeout");
    let address = socket.local_addr().expect("address");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        let mut number = 0;
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            number += 1;
            if number % 50 == 0 {
                continue;
            }
            let mut reply = buffer[..length].to_vec();
            // A response with one answer, whose owner is the question's; A, IN, 30 s, 10.9.9.9.
            reply[2] |= 0x80;
            reply[7] = 1;
            reply.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 9, 9, 9]);
            let _ = socket.send_to(&reply, client);
        }
    });
    address
}

#[test]
fn queries_are_asked_at_the_rate_and_each_lost_one_is_counted() {
    if let Ok(order) = env::var(ORDER) {
        let order: Order = serde_json::from_str(&order).expect("an order");
        let seen = run_order(&order);
        println!("\n{SEEN}{}", serde_json::to_string(&seen).expect("JSON"));
        return;
    }
    let pace = Pace::Rate { per_second: 500, for_ms: 1_000 };
    let loads =
        [Way::Udp, Way::UdpOnePort].map(|way| Load::start(Place::Host, forgetful_server(), way, pace));
    for load in loads {
        let seen = load.finish();
        assert_eq!(seen.sent, 500, "{seen}");
        assert_eq!(seen.lost.len(), 10, "{seen}");
        assert_eq!(seen.with_ttl(30), 490, "{seen}");
        assert!(seen.lost.iter().all(|lost| lost.why == "silence" && lost.at_ms <= 1_100), "{seen}");
        assert!(seen.lost.iter().any(|lost| lost.at_ms >= 700), "{seen}");
    }
}
