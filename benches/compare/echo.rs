//! The floor: a server that does what any DNS server must (take datagrams, send replies of the real size) and
//! nothing else. What it costs is the kernel's share; the rest of a server's cost is its own.

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sys::{Batch, Epoll, spread_at_random};

/// Length of a DNS header (RFC 1035 §4.1.1); a shorter message is no query.
const HEADER: usize = 12;
/// Slots of the table of replies, a power of two several times the number of questions.
const SLOTS: usize = 1 << 15;
/// Longest reply that the table may ask for: what fits a datagram without EDNS (RFC 1035 §4.2.1).
pub(crate) const LONGEST_REPLY: usize = 512;
/// As the agent's workers have it, so that they notice the end of the process.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(500);
/// Read from one TCP connection at once, at most.
const TCP_ROOM: usize = 64 * 1024;

/// Length and RCODE of the reply to each question, found without parsing it.
pub(crate) struct Replies(Vec<Slot>);

#[derive(Clone, Copy, Default)]
struct Slot {
    key: u64,
    length: u16,
    rcode: u8,
}

/// A number that tells the questions of the mix apart: 24 bytes of the message and its length, mixed.
pub(crate) fn key(query: &[u8]) -> u64 {
    let eight = |at: usize| {
        query.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let start = eight(HEADER).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let middle = eight(HEADER + 8).rotate_left(23).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let end = eight(query.len().saturating_sub(8)).rotate_left(41) ^ query.len() as u64;
    let mixed = (start ^ middle ^ end).wrapping_mul(0x94d0_49bb_1331_11eb);
    // Zero marks an empty slot.
    (mixed ^ (mixed >> 29)) | 1
}

fn slot_of(key: u64) -> usize {
    // The lowest bit is always set.
    (key >> 32) as usize % SLOTS
}

impl Replies {
    /// Reads lines of key, length and RCODE.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut slots = vec![Slot::default(); SLOTS];
        let mut lines = HashMap::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut word = || words.next().context("a line of replies is too short");
            let (key, length, rcode): (u64, u16, u8) = (word()?.parse()?, word()?.parse()?, word()?.parse()?);
            ensure!(lines.insert(key, length).is_none(), "two questions have the same key");
            ensure!(lines.len() < SLOTS / 2, "too many questions");
            let mut at = slot_of(key);
            while slots[at].key != 0 {
                at = (at + 1) % SLOTS;
            }
            slots[at] = Slot { key, length, rcode };
        }
        Ok(Self(slots))
    }

    /// Makes a query into its reply where it lies, and returns the reply's length. The bytes after the question
    /// are whatever was there before. An unknown question comes back as it was, without records.
    fn answer(&self, room: &mut [u8], query: usize) -> usize {
        if query < HEADER {
            return 0;
        }
        let key = key(&room[..query]);
        let mut at = slot_of(key);
        let (length, rcode) = loop {
            let slot = self.0[at];
            if slot.key == key {
                break (slot.length as usize, slot.rcode);
            }
            if slot.key == 0 {
                break (query, 0);
            }
            at = (at + 1) % SLOTS;
        };
        room[2] = 0x81; // QR and RD
        room[3] = 0x80 | rcode; // RA
        length
    }
}

/// Serves UDP with `workers` threads and TCP with one more, for ever.
pub(crate) fn run(address: SocketAddr, workers: u32, replies: &Path) -> Result<()> {
    let replies: &'static Replies = Box::leak(Box::new(Replies::read(replies)?));
    let listener = TcpListener::bind(address)?;
    thread::Builder::new().name("echo-tcp".into()).spawn(move || serve_tcp(&listener, replies))?;
    let sockets = (0..workers).map(|_| udp_socket(address)).collect::<Result<Vec<_>>>()?;
    if workers > 1 {
        spread_at_random(&sockets[0], workers)?;
    }
    let threads = sockets.into_iter().enumerate().map(|(worker, socket)| {
        thread::Builder::new().name(format!("echo-udp-{worker}")).spawn(move || serve_udp(&socket, replies))
    });
    for thread in threads.collect::<std::io::Result<Vec<_>>>()? {
        drop(thread.join());
    }
    Ok(())
}

fn udp_socket(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn serve_udp(socket: &Socket, replies: &Replies) {
    let mut batch = Batch::new();
    loop {
        // An error is the timeout, an interruption, or a reply that its client no longer wants.
        let _ = batch.serve(socket, |room, query| replies.answer(room, query));
    }
}

/// One thread for all connections: under load one wait finds several of them ready. A blocking thread for each was
/// measured to cost 10 to 25 % more.
fn serve_tcp(listener: &TcpListener, replies: &Replies) -> Result<()> {
    let epoll = Epoll::new()?;
    epoll.add(listener)?;
    let mut connections: HashMap<RawFd, Connection> = HashMap::new();
    let (mut ready, mut out) = (Vec::new(), Vec::with_capacity(TCP_ROOM));
    loop {
        if epoll.wait(&mut ready, RECEIVE_TIMEOUT).is_err() {
            continue;
        }
        for &fd in &ready {
            if fd == listener.as_raw_fd() {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                epoll.add(&stream)?;
                connections
                    .insert(stream.as_raw_fd(), Connection { stream, room: vec![0; TCP_ROOM], filled: 0 });
            } else if let Some(connection) = connections.get_mut(&fd)
                && connection.serve(replies, &mut out).is_err()
            {
                connections.remove(&fd);
            }
        }
    }
}

struct Connection {
    stream: TcpStream,
    room: Vec<u8>,
    filled: usize,
}

impl Connection {
    /// Reads once what is there, and answers all complete frames (RFC 1035 §4.2.2) by one write.
    fn serve(&mut self, replies: &Replies, out: &mut Vec<u8>) -> std::io::Result<()> {
        let read = self.stream.read(&mut self.room[self.filled..])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.filled += read;
        let mut start = 0;
        let mut reply = [0; LONGEST_REPLY];
        out.clear();
        while let Some(prefix) = self.room[start..self.filled].first_chunk::<2>() {
            let length = u16::from_be_bytes(*prefix) as usize;
            let Some(query) = self.room[..self.filled].get(start + 2..start + 2 + length) else { break };
            let copied = length.min(LONGEST_REPLY);
            reply[..copied].copy_from_slice(&query[..copied]);
            let replied = replies.answer(&mut reply, copied);
            out.extend_from_slice(&(replied as u16).to_be_bytes());
            out.extend_from_slice(&reply[..replied]);
            start += 2 + length;
        }
        self.room.copy_within(start..self.filled, 0);
        self.filled -= start;
        self.stream.write_all(out)
    }
}
