//! The servers that are compared, and the authoritative server behind all of them.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::authority::{self, program};
use crate::echo;
use crate::mix::{Inputs, KNOWN_NAME, Question, zones};
use crate::node::Node;
use crate::process::{Process, free_address};
use crate::tuned;
use crate::way::Way;

/// How long a server may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Between two queries while its first answer is awaited.
const START_INTERVAL: Duration = Duration::from_micros(200);
/// How long the authoritative server may take for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Echo,
    Nodens,
    Unbound,
    Dnsdist,
    Dnsmasq,
    /// The agent, on the addresses of a node
    OnNode(Way),
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Echo, Self::Nodens, Self::Unbound, Self::Dnsdist, Self::Dnsmasq];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Nodens => "nodens",
            Self::Unbound => "unbound",
            Self::Dnsdist => "dnsdist",
            Self::Dnsmasq => "dnsmasq",
            Self::OnNode(way) => way.name(),
        }
    }

    /// What the program says of its version, or why it says nothing.
    pub(crate) fn version(self) -> String {
        match self {
            Self::Echo => "the floor: no DNS, replies of the real size".into(),
            Self::Nodens | Self::OnNode(_) => {
                version_line(Command::new(env!("CARGO_BIN_EXE_nodens")).arg("--version"))
            }
            Self::Unbound => version_line(program("unbound").arg("-V")),
            Self::Dnsdist => version_line(program("dnsdist").arg("--version")),
            Self::Dnsmasq => version_line(program("dnsmasq").arg("--version")),
        }
    }
}

/// The versions of the programs that are not compared but have a part in it.
pub(crate) fn tool_versions() -> [(&'static str, String); 2] {
    [("nsd", version_line(program("nsd").arg("-v"))), ("dnsperf", version_line(program("dnsperf").arg("-h")))]
}

/// The first line with a number in it.
fn version_line(command: &mut Command) -> String {
    match command.output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let line = text.lines().find(|line| line.contains(|letter: char| letter.is_ascii_digit()));
            line.map_or_else(|| "says no version".into(), |line| line.trim().to_owned())
        }
        Err(error) => format!("cannot be started: {error}"),
    }
}

/// A server that answers.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    /// From the start of the process to its first answer.
    pub(crate) started_in: Duration,
}

impl Server {
    /// Starts a server with so many workers on `cpus`, and waits for its first answer.
    pub(crate) fn start(kind: Kind, workers: u32, bed: &Bed, cpus: &[usize]) -> Result<Self> {
        let (mut address, admin) = (free_address()?, free_address()?);
        if let Kind::OnNode(way) = kind {
            address = way.asked();
        }
        let directory = bed.directory.join(kind.name());
        fs::create_dir_all(&directory)?;
        let command = match kind {
            Kind::Echo => tuned::echo(address, workers, &bed.replies)?,
            Kind::Nodens => tuned::nodens(address, admin, workers, bed.upstream, &directory)?,
            Kind::Unbound => tuned::unbound(address, workers, bed.upstream, &directory)?,
            Kind::Dnsdist => tuned::dnsdist(address, bed.upstream, &directory)?,
            Kind::Dnsmasq => tuned::dnsmasq(address, bed.upstream, &directory)?,
            Kind::OnNode(way) => tuned::nodens_on_node(way, admin, bed.upstream, &directory)?,
        };
        let start = Instant::now();
        let mut process = Process::start(command, cpus, directory.join("log"))?;
        let started_in = first_answer(&mut process, address, start)?;
        Ok(Self { process, address, admin, started_in })
    }

    /// Lets it leave, with what it has set up.
    pub(crate) fn leave(mut self) {
        self.process.terminate();
    }

    /// The sum of a metric over its labels, where the server exports metrics.
    pub(crate) fn metrics(&self) -> Result<Metrics> {
        let mut stream = TcpStream::connect_timeout(&self.admin, ANSWER_LIMIT)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(Metrics(text))
    }
}

/// What `/metrics` said.
pub(crate) struct Metrics(String);

impl Metrics {
    /// The sum of a metric over its labels, if it is exported.
    pub(crate) fn sum(&self, name: &str) -> Option<f64> {
        let values = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            (rest.starts_with('{') || rest.starts_with(' '))
                .then_some(rest.rsplit(' ').next()?.parse::<f64>().ok()?)
        });
        values.reduce(|sum, value| sum + value)
    }
}

/// Asks again and again until the first good answer.
fn first_answer(process: &mut Process, address: SocketAddr, start: Instant) -> Result<Duration> {
    let socket = client(address)?;
    socket.set_nonblocking(true)?;
    let query = Question::a(KNOWN_NAME).wire(0x4e44);
    let mut reply = [0; 1500];
    let mut next_check = START_INTERVAL * 50;
    while start.elapsed() < START_LIMIT {
        // Before the server has its socket, both calls fail.
        let _ = socket.send(&query);
        let sent = Instant::now();
        while sent.elapsed() < START_INTERVAL {
            if let Ok(length @ 12..) = socket.recv(&mut reply)
                && is_good(&query, &reply[..length])
            {
                return Ok(start.elapsed());
            }
        }
        if start.elapsed() > next_check {
            process.must_live()?;
            next_check += START_INTERVAL * 50;
        }
    }
    bail!("no answer within {START_LIMIT:?}: {}", process.last_words())
}

/// Same ID, a response, NOERROR.
fn is_good(query: &[u8], reply: &[u8]) -> bool {
    reply[..2] == query[..2] && reply[2] & 0x80 != 0 && reply[3] & 0x0f == 0
}

fn client(server: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    Ok(socket)
}

/// The authoritative server behind all others, the inputs, and a place for files.
pub(crate) struct Bed {
    directory: PathBuf,
    upstream: SocketAddr,
    pub(crate) authority: Process,
    pub(crate) inputs: Inputs,
    /// Length and RCODE of the real answers, for the echo server.
    replies: PathBuf,
    /// Where this process is on one.
    pub(crate) node: Option<Node>,
}

impl Bed {
    /// Writes zones and inputs, starts NSD on the load's CPU (it rests while cached answers are measured), and
    /// asks it for every distinct question of the mix.
    pub(crate) fn new(directory: &Path, misses: usize, cpus: &[usize]) -> Result<Self> {
        let inputs = Inputs::write(directory, misses)?;
        let upstream = free_address()?;
        let command = authority::nsd(upstream, directory, &zones()?)?;
        let start = Instant::now();
        let mut authority = Process::start(command, cpus, directory.join("nsd.log"))?;
        first_answer(&mut authority, upstream, start).context("NSD")?;
        let replies = directory.join("replies");
        fs::write(&replies, real_replies(upstream, &inputs.distinct.questions)?)?;
        Ok(Self { directory: directory.to_owned(), upstream, authority, inputs, replies, node: None })
    }

    pub(crate) fn upstream_port(&self) -> u16 {
        self.upstream.port()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // NSD is several processes.
        self.authority.terminate();
    }
}

/// A line for each question, as the echo server reads them.
fn real_replies(server: SocketAddr, questions: &[Question]) -> Result<String> {
    let socket = client(server)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut lines = String::new();
    let mut reply = [0; 1500];
    for (number, question) in questions.iter().enumerate() {
        let query = question.wire(number as u16);
        socket.send(&query)?;
        let length = socket.recv(&mut reply).with_context(|| format!("NSD does not answer {question:?}"))?;
        ensure!(length <= echo::LONGEST_REPLY && reply[..2] == query[..2], "not the answer to {question:?}");
        writeln!(lines, "{} {length} {}", echo::key(&query), reply[3] & 0x0f)?;
    }
    Ok(lines)
}
