//! The client's queries by UDP: half of them for names that were asked for before, at a constant rate.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{HOT, Order, PATIENCE, fault, question};
use crate::seen::{Book, Kind};
use crate::support::PODS;

/// Answers that may wait for the client, bytes.
const ROOM: usize = 4 << 20;
const TURN: Duration = Duration::from_millis(1);

/// A query on its way.
struct Asked {
    kind: Kind,
    at: Instant,
    question: Vec<u8>,
}

/// Those of one port, by ID.
type Pending = Arc<Mutex<HashMap<u16, Asked>>>;

fn lock(pending: &Pending) -> std::sync::MutexGuard<'_, HashMap<u16, Asked>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks until the order is over. Each name that is to be a hit is asked for before `begun`.
pub(crate) fn ask_by_udp(order: &Order, book: &Book, begun: fn(), longest: Duration) {
    let ports: Vec<(UdpSocket, Pending)> =
        (0..PODS).map(|port| (open(order, port), Pending::default())).collect();
    warm(order, &ports[0].0);
    begun();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (socket, pending) in &ports {
            let done = &done;
            scope.spawn(move || receive(socket, pending, book, done));
        }
        send(order, &ports, book, longest);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && ports.iter().any(|(_, pending)| !lock(pending).is_empty()) {
            thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
    });
    for (socket, pending) in &ports {
        give_up(pending, book, |_| true);
        let (_, drops) = nodens::sys::queue_of(socket).expect("what the socket had no room for");
        book.write(|seen| seen.client_drops += u64::from(drops));
    }
}

fn open(order: &Order, port: usize) -> UdpSocket {
    let socket = UdpSocket::bind((order.source(port), 0)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    socket.connect(order.server).expect("a route");
    // What has waited for an agent is answered all at once.
    nodens::sys::force_receive_buffer(&socket, ROOM).expect("CAP_NET_ADMIN");
    socket
}

/// Asks for each name that is to be a hit until it is answered.
fn warm(order: &Order, socket: &UdpSocket) {
    for number in 0..HOT {
        let question = question(number as u16, Kind::Hit, &order.run, number);
        let end = Instant::now() + PATIENCE;
        let mut reply = [0; 512];
        loop {
            assert!(Instant::now() < end, "no answer before anything has happened");
            let _ = socket.send(&question);
            if let Ok(length) = socket.recv(&mut reply)
                && fault(&question, &reply[..length]).is_none()
            {
                break;
            }
        }
    }
}

fn send(order: &Order, ports: &[(UdpSocket, Pending)], book: &Book, longest: Duration) {
    let began = Instant::now();
    let (mut number, mut turn) = (0, began);
    while !order.is_over() && began.elapsed() < longest {
        // The file is looked for about ten times a second, not in each turn.
        for _ in 0..100 {
            turn += TURN;
            thread::sleep(turn.saturating_duration_since(Instant::now()));
            let late = Instant::now().saturating_duration_since(turn).as_micros() as u64;
            book.write(|seen| seen.client_late_us = seen.client_late_us.max(late));
            let due = began.elapsed().as_micros() as u64 * order.per_second / 1_000_000;
            while number < due {
                ask(order, &ports[number as usize % PODS], number, book);
                number += 1;
            }
        }
        for (_, pending) in ports {
            give_up(pending, book, |asked| asked.at.elapsed() > PATIENCE);
        }
    }
}

fn ask(order: &Order, (socket, pending): &(UdpSocket, Pending), number: u64, book: &Book) {
    // Both kinds from every port.
    let kind = if (number / PODS as u64).is_multiple_of(2) { Kind::Hit } else { Kind::Miss };
    let id = (number / PODS as u64) as u16;
    let question = question(id, kind, &order.run, number);
    book.sent(kind);
    lock(pending).insert(id, Asked { kind, at: Instant::now(), question: question.clone() });
    // An error of an earlier query is not this one's.
    if socket.send(&question).is_err() {
        let _ = socket.send(&question);
    }
}

fn receive(socket: &UdpSocket, pending: &Pending, book: &Book, done: &AtomicBool) {
    let mut reply = [0; 512];
    while !done.load(Ordering::Relaxed) {
        let Ok(length) = socket.recv(&mut reply) else { continue };
        let id = u16::from_be_bytes([reply[0], reply[1]]);
        let asked = lock(pending).remove(&id);
        match asked {
            None => book.write(|seen| seen.unasked += 1),
            Some(asked) => match fault(&asked.question, &reply[..length]) {
                None => book.answered(asked.kind, asked.at),
                Some(why) => book.lost(asked.kind, asked.at, &why),
            },
        }
    }
}

fn give_up(pending: &Pending, book: &Book, is_lost: impl Fn(&Asked) -> bool) {
    for (_, asked) in lock(pending).extract_if(|_, asked| is_lost(asked)) {
        book.lost(asked.kind, asked.at, "silence");
    }
}
