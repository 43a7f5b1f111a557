//! Whether the agent lives: what it says of itself, and whether it answers real questions.
//!
//! An agent is given up when one of these has lasted for the configured time:
//! - it has not said that it answers itself (`WATCHDOG=1`): it is stopped, or a part of it hangs;
//! - it has answered questions by UDP before and does not now, while its sockets had room for them;
//! - the same by TCP.
//!
//! What has never been answered tells nothing: a firewall may be in the way, and another process would be no better.
//! Questions that drown in a flood of others tell nothing either, and the flood shows as datagrams that the sockets had no
//! room for.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys;

/// So often the agent is asked, and four times as often as it may be silent.
const ASK: Duration = Duration::from_secs(1);
/// So often answers are looked for.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// We were not run for so long ourselves, and so cannot tell whether the agent was.
const OVERSLEPT: Duration = Duration::from_millis(500);
/// An agent says its first word by then.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// Streams that wait for an answer, one a second.
const STREAMS: usize = 8;

/// A question for the name that every agent knows, with the ID 0: `_probe.nodens.invalid. A`.
const QUESTION: &[u8] = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x06_probe\x06nodens\x07invalid\0\0\x01\0\x01";

/// What is known of one way to ask.
#[derive(Debug, Default)]
struct Way {
    /// There was an answer, since this agent started.
    has_answered: bool,
    /// Since when there is a question without one, to this or a later one.
    waits_since: Option<Instant>,
}

impl Way {
    fn asked(&mut self, now: Instant) {
        self.waits_since.get_or_insert(now);
    }

    fn answered(&mut self) {
        *self = Self { has_answered: true, waits_since: None };
    }

    fn is_silent(&self, now: Instant, patience: Duration) -> bool {
        let long = |since| now.saturating_duration_since(since) >= patience;
        self.has_answered && self.waits_since.is_some_and(long)
    }
}

/// A question by TCP on its way.
#[derive(Debug)]
struct Stream {
    stream: TcpStream,
    sent: bool,
}

/// What is known of the running agent.
#[derive(Debug)]
pub(super) struct Watchdog {
    at: Option<SocketAddr>,
    patience: Duration,
    born: Instant,
    /// When it last said that it lives.
    said: Option<Instant>,
    next: Instant,
    asked: Instant,
    socket: Option<UdpSocket>,
    udp: Way,
    streams: Vec<Stream>,
    tcp: Way,
    /// Datagrams lost so far, and when the number last grew.
    drops: Option<u64>,
    flooded: Option<Instant>,
}

impl Watchdog {
    /// Of an agent that starts now, to be asked there.
    pub(super) fn new(at: Option<SocketAddr>, patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            at,
            patience,
            born: now,
            said: None,
            next: now + LOOK,
            asked: now,
            socket: None,
            udp: Way::default(),
            streams: Vec::new(),
            tcp: Way::default(),
            drops: None,
            flooded: None,
        }
    }

    /// It has said that it lives.
    pub(super) fn heard(&mut self) {
        self.said = Some(Instant::now());
    }

    /// When to look the next time.
    pub(super) fn due(&self) -> Instant {
        self.next.min(self.last_word())
    }

    /// When the next sign of life is due.
    fn last_word(&self) -> Instant {
        self.said.map_or(self.born + FIRST_WORD, |said| said + self.patience)
    }

    /// Looks, asks, and says why the agent is to be given up, if it is. `sockets` are those where it takes queries.
    pub(super) fn look<'a>(&mut self, sockets: impl Iterator<Item = &'a OwnedFd>) -> Option<&'static str> {
        let now = Instant::now();
        if now.saturating_duration_since(self.next) > OVERSLEPT {
            // The whole machine may have stood still.
            self.said = self.said.and(Some(now));
            (self.udp.waits_since, self.tcp.waits_since) = (None, None);
        }
        self.next = now + LOOK;
        let drops =
            sockets.filter_map(|socket| sys::queue_of(socket).ok()).map(|(_, drops)| u64::from(drops)).sum();
        if self.drops.replace(drops).is_some_and(|before| drops > before) {
            self.flooded = Some(now);
        }
        self.take_answers();
        let verdict = self.verdict(now);
        // Some questions before one is judged by.
        if now.saturating_duration_since(self.asked) >= ASK.min(self.patience / 4) {
            self.asked = now;
            self.ask(now);
        }
        verdict
    }

    fn verdict(&self, now: Instant) -> Option<&'static str> {
        if now >= self.last_word() {
            return Some("gives no sign of life");
        }
        let floods = self.flooded.is_some_and(|at| now.saturating_duration_since(at) < 2 * self.patience);
        if self.udp.is_silent(now, self.patience) && !floods {
            return Some("does not answer by UDP any more");
        }
        self.tcp.is_silent(now, self.patience).then_some("does not answer by TCP any more")
    }

    fn take_answers(&mut self) {
        let mut answer = [0; 512];
        while let Some(socket) = &self.socket
            && let Ok(length) = socket.recv(&mut answer)
        {
            if is_answer(&answer[..length]) {
                self.udp.answered();
            }
        }
        for mut stream in std::mem::take(&mut self.streams) {
            match stream.go_on() {
                Ok(true) => self.tcp.answered(),
                Ok(false) => self.streams.push(stream),
                Err(_) => {}
            }
        }
    }

    fn ask(&mut self, now: Instant) {
        let Some(at) = self.at else { return };
        if self.socket.is_none() {
            self.socket = udp(at).ok();
        }
        // What cannot be sent is asked the next time, from another socket: the address may have gone and come.
        match self.socket.as_ref().map(|socket| socket.send(QUESTION)) {
            Some(Ok(_)) => self.udp.asked(now),
            _ => self.socket = None,
        }
        if self.streams.len() == STREAMS {
            self.streams.remove(0);
        }
        if let Ok(stream) = connect(at) {
            self.tcp.asked(now);
            self.streams.push(Stream { stream, sent: false });
        }
    }
}

impl Stream {
    /// Whether it was answered.
    fn go_on(&mut self) -> io::Result<bool> {
        let would_block = |error: &io::Error| {
            [io::ErrorKind::WouldBlock, io::ErrorKind::NotConnected].contains(&error.kind())
        };
        if !self.sent {
            let mut framed = (QUESTION.len() as u16).to_be_bytes().to_vec();
            framed.extend(QUESTION);
            match self.stream.write(&framed) {
                Ok(_) => self.sent = true,
                Err(error) if would_block(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let mut answer = [0; 512];
        match self.stream.read(&mut answer) {
            // It was let in and sent away, as the limit of clients may be reached: that takes somebody who lives.
            Ok(0) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Ok(length) => Ok(answer.get(2..length).is_some_and(is_answer)),
            Err(error) if would_block(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A response: QR is set (RFC 1035 §4.1.1).
fn is_answer(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

fn udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let any = match at {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(at)?;
    Ok(socket)
}

/// A connection that is being made.
fn connect(at: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&at.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn watchdog() -> Watchdog {
        Watchdog::new(None, PATIENCE)
    }

    #[test]
    fn an_agent_is_given_up_when_it_says_nothing_and_not_before() {
        let mut watchdog = watchdog();
        let born = watchdog.born;
        assert_eq!(watchdog.verdict(born + FIRST_WORD - LOOK), None, "it may still start");
        assert_eq!(watchdog.verdict(born + FIRST_WORD), Some("gives no sign of life"));
        watchdog.said = Some(born + ASK);
        assert_eq!(watchdog.verdict(born + ASK + PATIENCE - LOOK), None);
        assert_eq!(watchdog.verdict(born + ASK + PATIENCE), Some("gives no sign of life"));
    }

    #[test]
    fn silence_counts_where_there_was_an_answer_before() {
        let mut watchdog = watchdog();
        let later = watchdog.born + 10 * PATIENCE;
        watchdog.said = Some(later);
        watchdog.udp.asked(later - PATIENCE);
        assert_eq!(watchdog.verdict(later), None, "it has never answered: something is in the way");
        watchdog.udp.answered();
        assert_eq!(watchdog.verdict(later), None, "there is no question without an answer");
        watchdog.udp.asked(later - PATIENCE);
        watchdog.udp.asked(later - LOOK);
        assert_eq!(watchdog.verdict(later), Some("does not answer by UDP any more"));
        assert_eq!(watchdog.verdict(later - LOOK), None);
        watchdog.flooded = Some(later - PATIENCE);
        assert_eq!(watchdog.verdict(later), None, "its sockets were full: the question may have been lost");
        watchdog.tcp.answered();
        watchdog.tcp.asked(later - PATIENCE);
        assert_eq!(watchdog.verdict(later), Some("does not answer by TCP any more"));
        watchdog.tcp.answered();
        assert_eq!(watchdog.verdict(later), None);
    }

    #[test]
    fn questions_go_out_by_both_and_answers_are_taken() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(at).unwrap();
        let mut watchdog = Watchdog::new(Some(at), PATIENCE);
        let now = Instant::now();
        watchdog.ask(now);
        let mut space = [0; 512];
        let (length, peer) = udp.recv_from(&mut space).unwrap();
        assert_eq!(&space[..length], QUESTION);
        space[2] |= 0x80;
        udp.send_to(&space[..length], peer).unwrap();
        let (mut client, _) = tcp.accept().unwrap();
        watchdog.take_answers();
        assert!(watchdog.tcp.waits_since == Some(now) && !watchdog.tcp.has_answered);
        let length = client.read(&mut space).unwrap();
        assert_eq!(&space[2..length], QUESTION);
        space[4] |= 0x80;
        client.write_all(&space[..length]).unwrap();
        let deadline = now + Duration::from_secs(5);
        while !(watchdog.udp.has_answered && watchdog.tcp.has_answered) {
            assert!(Instant::now() < deadline, "{watchdog:?}");
            watchdog.take_answers();
        }
        assert_eq!(
            (watchdog.udp.waits_since, watchdog.tcp.waits_since, watchdog.streams.len()),
            (None, None, 0)
        );
    }
}
