//! The client's queries by TCP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Order, PATIENCE, fault, question};
use crate::seen::{Book, Kind};

/// Queries that are sent in one write.
const AT_ONCE: u64 = 3;
/// Between the answers and the next queries of a connection.
const PAUSE: Duration = Duration::from_millis(30);
/// Between two connections for a query each.
const BETWEEN: Duration = Duration::from_millis(20);

/// Some queries at once on one connection, again and again. Another one follows when it is closed.
pub(crate) fn ask_again_and_again(order: &Order, number: usize, book: &Book) {
    let mut stream: Option<TcpStream> = None;
    let mut next = 0;
    while !order.is_over() {
        thread::sleep(PAUSE);
        if stream.as_ref().is_some_and(|stream| is_closed(stream, book)) {
            stream = None;
        }
        let asked = Instant::now();
        let questions: Vec<Vec<u8>> = (0..AT_ONCE)
            .map(|at| {
                let kind = if at == 0 { Kind::Miss } else { Kind::Hit };
                question((next + at) as u16, kind, &format!("{}-t{number}", order.run), next + at)
            })
            .collect();
        next += AT_ONCE;
        questions.iter().for_each(|_| book.sent(Kind::Kept));
        let mut open = questions.clone();
        if let Err(error) = converse(&mut stream, order, &mut open, (Kind::Kept, asked, book)) {
            let why = ended(&error, book);
            open.iter().for_each(|_| book.lost(Kind::Kept, asked, why));
            stream = None;
        }
    }
}

/// A connection for each query.
pub(crate) fn ask_once_each(order: &Order, book: &Book) {
    let mut number = 0;
    while !order.is_over() {
        thread::sleep(BETWEEN);
        number += 1;
        let kind = if number % 2 == 0 { Kind::Miss } else { Kind::Hit };
        let mut open = vec![question(number as u16, kind, &format!("{}-f", order.run), number)];
        let asked = Instant::now();
        book.sent(Kind::Fresh);
        if let Err(error) = converse(&mut None, order, &mut open, (Kind::Fresh, asked, book)) {
            book.lost(Kind::Fresh, asked, ended(&error, book));
        }
    }
}

/// Sends all, and takes those off whose answers have come.
fn converse(
    stream: &mut Option<TcpStream>,
    order: &Order,
    open: &mut Vec<Vec<u8>>,
    (kind, asked, book): (Kind, Instant, &Book),
) -> io::Result<()> {
    let stream = match stream {
        Some(stream) => stream,
        None => {
            let new = TcpStream::connect_timeout(&order.server, PATIENCE)?;
            new.set_nodelay(true)?;
            new.set_read_timeout(Some(PATIENCE))?;
            stream.insert(new)
        }
    };
    // RFC 1035 §4.2.2
    let framed = |question: &Vec<u8>| [&(question.len() as u16).to_be_bytes()[..], question].concat();
    stream.write_all(&open.iter().flat_map(framed).collect::<Vec<_>>())?;
    while !open.is_empty() {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        match open.iter().position(|question| question[..2] == reply[..2]) {
            None => book.write(|seen| seen.unasked += 1),
            Some(at) => match fault(&open.swap_remove(at), &reply) {
                None => book.answered(kind, asked),
                Some(why) => book.lost(kind, asked, &why),
            },
        }
    }
    Ok(())
}

/// Whether the other side has closed a connection on which nothing is awaited.
fn is_closed(stream: &TcpStream, book: &Book) -> bool {
    stream.set_nonblocking(true).expect("an option");
    let peeked = stream.peek(&mut [0; 1]);
    stream.set_nonblocking(false).expect("an option");
    match peeked {
        Ok(0) => book.write(|seen| seen.closed += 1),
        Ok(_) => book.write(|seen| seen.unasked += 1),
        Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
        Err(error) => {
            ended(&error, book);
        }
    }
    true
}

/// How a connection has ended on which something was awaited.
fn ended(error: &io::Error, book: &Book) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            book.write(|seen| seen.reset += 1);
            "reset"
        }
        ErrorKind::UnexpectedEof => "closed",
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "silence",
        _ => "another error",
    }
}
