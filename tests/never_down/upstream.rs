//! A server that answers every question a millisecond or two later, by UDP and TCP, and counts.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::HOT_ZONE;

/// What a name that begins so waits for is a long time coming.
pub(crate) const SLOW: &str = "slow";

const DELAY: Duration = Duration::from_micros(1_500);
/// Longer than a handover takes, shorter than an agent's patience with its upstream.
const LONG_DELAY: Duration = Duration::from_millis(2_500);
/// Longer than any test: so names that were asked for once stay hits.
const TTL: u32 = 86_400;

/// Lives as long as the process.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    hot: Arc<AtomicU64>,
}

/// What waits until it is due.
type Later<T> = (Instant, T);

impl Upstream {
    pub(crate) fn start() -> Self {
        // The system chooses a port for UDP; nobody else is in this namespace who could have it by TCP.
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let address = udp.local_addr().expect("an address");
        let tcp = TcpListener::bind(address).expect("the same port by TCP");
        let hot = Arc::new(AtomicU64::new(0));
        let (counter, other) = (Arc::clone(&hot), udp.try_clone().expect("a copy"));
        let (sender, receiver) = channel();
        thread::spawn(move || take_datagrams(&other, &counter, &sender));
        thread::spawn(move || {
            deliver(&receiver, |(reply, client): (Vec<u8>, SocketAddr)| {
                let _ = udp.send_to(&reply, client);
            })
        });
        let counter = Arc::clone(&hot);
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let counter = Arc::clone(&counter);
                thread::spawn(move || take_stream(stream, &counter));
            }
        });
        Self { address, hot }
    }

    /// How often it was asked for names that were asked for before: what no cache has answered.
    pub(crate) fn asked_for_hot(&self) -> u64 {
        self.hot.load(Ordering::Relaxed)
    }
}

fn take_datagrams(socket: &UdpSocket, hot: &AtomicU64, later: &Sender<Later<(Vec<u8>, SocketAddr)>>) {
    let mut buffer = [0; 1500];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        count(&buffer[..length], hot);
        if later.send((Instant::now() + DELAY, (answer(&buffer[..length]), client))).is_err() {
            return;
        }
    }
}

fn take_stream(mut stream: TcpStream, hot: &AtomicU64) {
    let (sender, receiver) = channel::<Later<Vec<u8>>>();
    let Ok(writer) = stream.try_clone() else { return };
    let _ = stream.set_nodelay(true);
    let writer = Arc::new(Mutex::new(writer));
    let write = move |reply: Vec<u8>, writer: &Mutex<TcpStream>| {
        let framed = [&(reply.len() as u16).to_be_bytes()[..], &reply].concat();
        let _ = writer.lock().expect("nobody panics").write_all(&framed);
    };
    let other = Arc::clone(&writer);
    thread::spawn(move || deliver(&receiver, |reply| write(reply, &other)));
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut query).is_err() {
            return;
        }
        count(&query, hot);
        if query.get(13..13 + SLOW.len()) == Some(SLOW.as_bytes()) {
            let writer = Arc::clone(&writer);
            thread::spawn(move || {
                thread::sleep(LONG_DELAY);
                write(answer(&query), &writer);
            });
            continue;
        }
        if sender.send((Instant::now() + DELAY, answer(&query))).is_err() {
            return;
        }
    }
}

/// Hands each on when it is due: they come in that order.
fn deliver<T>(later: &Receiver<Later<T>>, send: impl Fn(T)) {
    let mut waiting = VecDeque::new();
    while let Some((due, what)) = waiting.pop_front().or_else(|| later.recv().ok()) {
        waiting.extend(later.try_iter());
        thread::sleep(Instant::saturating_duration_since(&due, Instant::now()));
        send(what);
    }
}

fn count(query: &[u8], hot: &AtomicU64) {
    let zone: Vec<u8> =
        HOT_ZONE.iter().flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    if query.windows(zone.len()).any(|part| part.eq_ignore_ascii_case(&zone)) {
        hot.fetch_add(1, Ordering::Relaxed);
    }
}

/// An address for whatever is asked for, behind the question and without its OPT.
pub(crate) fn answer(query: &[u8]) -> Vec<u8> {
    let mut end = 12;
    while let Some(&length) = query.get(end).filter(|&&length| length != 0) {
        end += 1 + usize::from(length);
    }
    let Some(question) = query.get(..end + 5) else { return query.to_vec() };
    let mut reply = question.to_vec();
    let is_address = reply[end + 1..] == [0, 1, 0, 1];
    // A response, recursion available.
    reply[2] |= 0x80;
    reply[3] = 0x80;
    reply[6..12].copy_from_slice(&[0, u8::from(is_address), 0, 0, 0, 0]);
    if is_address {
        reply.extend([0xc0, 0x0c, 0, 1, 0, 1]);
        reply.extend(TTL.to_be_bytes());
        reply.extend([0, 4, 10, 9, 9, 9]);
    }
    reply
}
