//! Connections that are open when one `keep` takes over from another.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{fault, question};
use crate::home::Home;
use crate::seen::Kind;
use crate::support::{on_a_node, seconds};
use crate::upstream::SLOW;

/// edns-tcp-keepalive without a value, in an OPT record (RFC 7828 §3.1).
const ASKS_FOR_KEEPALIVE: [u8; 15] = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4, 0, 11, 0, 0];
/// The same option with a timeout of zero: close this as soon as nothing is awaited (§3.4).
const KEEPALIVE_ZERO: [u8; 6] = [0, 11, 0, 2, 0, 0];

fn connect(home: &Home) -> TcpStream {
    let stream = TcpStream::connect(home.listen()).expect("a connection");
    stream.set_read_timeout(Some(seconds(10))).expect("a timeout");
    stream
}

fn send(stream: &mut TcpStream, question: &[u8]) {
    let framed = [&(question.len() as u16).to_be_bytes()[..], question].concat();
    stream.write_all(&framed).expect("a query");
}

fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// The other side closes in good order, after how long.
#[track_caller]
fn must_close(stream: &mut TcpStream, what: &str) -> Duration {
    let began = Instant::now();
    match stream.read(&mut [0; 1]) {
        Ok(length) => assert_eq!(length, 0, "{what}: something comes that nobody has asked for"),
        Err(error) => panic!("{what}: {error}"),
    }
    began.elapsed()
}

#[test]
fn open_connections_get_their_answers_and_are_closed_in_good_order() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let [mut busy, mut used, mut unused, mut half] = [(); 4].map(|()| connect(&home));
        let before = question(1, Kind::Miss, "before", 1);
        send(&mut used, &before);
        assert_eq!(fault(&before, &receive(&mut used).expect("an answer")), None);
        // Half of a query: its length and no more.
        half.write_all(&[0]).expect("a byte");

        let next = home.keep();
        next.must_say("the agent runs as", seconds(10));
        let mut slow = question(2, Kind::Miss, SLOW, 1);
        slow[11] = 1;
        slow.extend(ASKS_FOR_KEEPALIVE);
        send(&mut busy, &slow);
        let plain = &slow[..slow.len() - ASKS_FOR_KEEPALIVE.len()];
        let began = Instant::now();
        next.must_say("the previous one may go", seconds(15));
        let took_over = began.elapsed();

        let used_for = must_close(&mut used, "a connection that was used");
        let reply = receive(&mut busy).expect("the answer that was awaited");
        let answered = began.elapsed();
        assert_eq!(fault(plain, &reply), None);
        assert!(answered > took_over, "it was awaited across the handover: {took_over:?} {answered:?}");
        let says_so = reply.windows(KEEPALIVE_ZERO.len()).any(|part| part == KEEPALIVE_ZERO);
        let busy_for = must_close(&mut busy, "the one whose answer was awaited");
        let unused_for = must_close(&mut unused, "a connection that was never used");
        let half_for = must_close(&mut half, "one that sends half of a query");
        keep.must_end(seconds(10));
        eprintln!(
            "connections at a handover after {took_over:?}: answered {answered:?}, then closed after {busy_for:?}, idle \
             ones after {used_for:?}, {unused_for:?} and {half_for:?}; keepalive 0: {says_so}"
        );
        assert!(says_so, "the client is told that it is to close: {reply:?}");
        thread::sleep(Duration::from_millis(100));
        let mut again = connect(&home);
        send(&mut again, &before);
        assert_eq!(fault(&before, &receive(&mut again).expect("an answer of the next one")), None);
    });
}
