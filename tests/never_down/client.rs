//! A client that asks all the time, never the same query twice, and says what became of each.
//!
//! It is this program again, ahead of others on the machine: it is not the client that is under test.

use std::env;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::asking::ask_by_udp;
use crate::seen::{Book, Kind, Seen};
use crate::streams::{ask_again_and_again, ask_once_each};
use crate::support::{Process, pod, seconds, wait_until};

/// Without an answer for so long a query is lost. Longer than any watchdog here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(6);
/// A client that nobody stops ends by itself.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Names that the agent has, as it were: all of them are asked for again and again.
pub(crate) const HOT: u64 = 200;
/// Ends their names.
pub(crate) const HOT_ZONE: [&str; 3] = ["hot", "load", "test"];
/// Ends all others.
const COLD_ZONE: [&str; 2] = ["load", "test"];
/// Connections that are used again and again.
const KEPT: usize = 3;
/// Holds an [`Order`], in a process that is a client.
const ORDER: &str = "NODENS_TEST_CLIENT";
/// Tells that every name that is to be a hit has been answered once.
const BEGUN: &str = "client: begun";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) server: SocketAddr,
    /// By UDP.
    pub(crate) per_second: u64,
    /// Whether there are connections too.
    pub(crate) tcp: bool,
    /// Whether queries come from the addresses of several pods: no source may have all flights.
    pub(crate) pods: bool,
    /// Part of every name that nobody else is to ask for.
    pub(crate) run: String,
    /// Where the result is written, and `stop` is looked for.
    pub(crate) dir: PathBuf,
}

impl Default for Order {
    fn default() -> Self {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { server, per_second: 0, tcp: false, pods: false, run: String::new(), dir: PathBuf::new() }
    }
}

impl Order {
    /// Where the queries of one of its ports come from.
    pub(crate) fn source(&self, port: usize) -> Ipv4Addr {
        if self.pods { pod(port) } else { Ipv4Addr::UNSPECIFIED }
    }

    fn stop(&self) -> PathBuf {
        self.dir.join("stop")
    }

    fn result(&self) -> PathBuf {
        self.dir.join("seen.json")
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stop().exists()
    }
}

/// A query's bytes with this ID: for the address of one of the names that are asked for again and again, or of another one.
pub(crate) fn question(id: u16, kind: Kind, run: &str, number: u64) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    // RD, one question.
    let mut bytes = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let (first, zone) = match kind {
        Kind::Hit => (format!("h{}", number % HOT), &HOT_ZONE[..]),
        _ => (format!("{run}-{number}"), &COLD_ZONE[..]),
    };
    for label in [first.as_str()].iter().chain(zone).chain(&[""]) {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    // A, IN
    bytes.extend([0, 1, 0, 1]);
    bytes
}

/// What is wrong with a reply to this question, if anything is.
pub(crate) fn fault(question: &[u8], reply: &[u8]) -> Option<String> {
    let asked = question.len();
    if reply.len() < asked || !reply[12..asked].eq_ignore_ascii_case(&question[12..]) {
        return Some("answers another question".to_owned());
    }
    let (code, answers) = (reply[3] & 15, reply[7]);
    (code != 0 || answers == 0).then(|| format!("RCODE {code} and {answers} records"))
}

/// A client at work. Dropping it ends it.
pub(crate) struct Load {
    order: Order,
    process: Process,
    // After the process: fields are dropped in this order.
    _dir: TempDir,
}

impl Load {
    /// Starts one here, and waits until it has begun to ask.
    #[track_caller]
    pub(crate) fn start(server: SocketAddr, per_second: u64) -> Self {
        let mut ahead = Command::new("nice");
        ahead.args(["-n", "-15"]);
        Self::launch(ahead, Order { server, per_second, tcp: true, pods: true, ..Order::default() })
    }

    /// As [`Load::start`], by a program that starts programs.
    #[track_caller]
    pub(crate) fn start_by(starter: Command, server: SocketAddr, per_second: u64, tcp: bool) -> Self {
        Self::launch(starter, Order { server, per_second, tcp, ..Order::default() })
    }

    #[track_caller]
    fn launch(starter: Command, order: Order) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let run = format!("run-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().expect("temporary directory");
        let order = Order { run, dir: dir.path().to_owned(), ..order };
        let mut command = starter;
        command.arg(env::current_exe().expect("this program"));
        let test = "client::every_query_is_counted_and_none_is_repeated";
        command.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
        command.env(ORDER, serde_json::to_string(&order).expect("JSON"));
        let mut process = Process::start(command, "coreutils", &dir.path().join("output"));
        wait_until("the client has begun", seconds(20), || {
            assert!(process.ended().is_none(), "the client has ended: {}", process.output());
            process.output().contains(BEGUN)
        });
        Self { order, process, _dir: dir }
    }

    /// Stops asking, waits for what is on its way, and tells what became of all.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Seen {
        fs::write(self.order.stop(), "").expect("a file");
        let ended = self.process.wait(PATIENCE + seconds(20));
        let text = fs::read_to_string(self.order.result());
        let text = text.unwrap_or_else(|_| panic!("the client ({ended:?}): {}", self.process.output()));
        serde_json::from_str(&text).expect("what a client has seen")
    }
}

/// Carries out an order.
fn run(order: &Order) {
    nodens::sys::raise_open_files().expect("the limit of open files");
    let book = Book::default();
    thread::scope(|scope| {
        if order.tcp {
            for number in 0..KEPT {
                let book = book.clone();
                scope.spawn(move || ask_again_and_again(order, number, &book));
            }
            let book = book.clone();
            scope.spawn(move || ask_once_each(order, &book));
        }
        let book = book.clone();
        scope.spawn(move || ask_by_udp(order, &book, say_begun, LONGEST));
    });
    let text = book.write(|seen| serde_json::to_string(seen)).expect("JSON");
    let new = order.dir.join("new");
    fs::write(&new, text).and_then(|()| fs::rename(new, order.result())).expect("the result");
}

fn say_begun() {
    println!("{BEGUN}");
    let _ = std::io::stdout().flush();
}

/// Answers on loopback, but not every 50th query, for as long as something comes.
fn forgetful_server() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("socket");
    socket.set_read_timeout(Some(seconds(10))).expect("timeout");
    let address = socket.local_addr().expect("address");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        let mut number = 0;
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            number += 1;
            // Those that the client asks before it begins are answered.
            if number > HOT && number % 50 == 0 {
                continue;
            }
            let _ = socket.send_to(&crate::upstream::answer(&buffer[..length]), client);
        }
    });
    address
}

#[test]
fn every_query_is_counted_and_none_is_repeated() {
    if let Ok(order) = env::var(ORDER) {
        return run(&serde_json::from_str(&order).expect("an order"));
    }
    let load = Load::start_by(Command::new("nice"), forgetful_server(), 500, false);
    thread::sleep(seconds(2));
    let seen = load.finish();
    let [hits, misses] = [Kind::Hit, Kind::Miss].map(|kind| seen.of(kind));
    let sent = hits.sent + misses.sent;
    assert!(sent >= 900 && hits.sent.abs_diff(misses.sent) <= 8, "{} {}", hits.sent, misses.sent);
    let lost: Vec<_> = hits.lost.iter().chain(&misses.lost).collect();
    assert_eq!(hits.answered + misses.answered + lost.len() as u64, sent);
    assert!((lost.len() as u64).abs_diff(sent / 50) <= 1, "{} of {sent}", lost.len());
    assert!(lost.iter().all(|lost| lost.why == "silence") && seen.unasked == 0);
}
