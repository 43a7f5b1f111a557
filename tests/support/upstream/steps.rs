//! What an upstream writes, and when.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::lock;

/// One thing that is done with a connection, or with a client's address over UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// One message: over TCP with its length in front, in one write.
    Message(Vec<u8>),
    /// Octets as they stand, in one write.
    Octets(Vec<u8>),
    /// A datagram from another port of the same address; nothing over TCP.
    FromElsewhere(Vec<u8>),
    /// Nothing for a while.
    Pause(Duration),
    /// The end of the connection, in good order. What follows is not done.
    Close,
    /// The same by RST.
    Reset,
}

/// A message with its length in front (RFC 1035 §4.2.2).
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    framed_as(u16::try_from(message.len()).expect("at most 64 KiB"), message)
}

/// A message with this length in front, true or not.
pub(crate) fn framed_as(length: u16, message: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes(), message].concat()
}

/// Octets in pieces of this size with a pause between them.
pub(crate) fn pieces(octets: &[u8], size: usize, pause: Duration) -> Vec<Step> {
    octets.chunks(size).flat_map(|piece| [Step::Octets(piece.to_vec()), Step::Pause(pause)]).collect()
}

/// The first half of the octets, then `end`.
pub(crate) fn half(octets: &[u8], end: Step) -> Vec<Step> {
    vec![Step::Octets(octets[..octets.len() / 2].to_vec()), end]
}

/// The way back to the agent. One that has gone away is no fault of the upstream's.
#[derive(Clone)]
pub(super) enum Way {
    Udp(Arc<UdpSocket>, SocketAddr),
    Tcp(Arc<Mutex<TcpStream>>),
}

impl Way {
    /// Sends one message.
    pub(super) fn send(&self, message: &[u8]) {
        match self {
            Self::Udp(socket, peer) => {
                let _ = socket.send_to(message, peer);
            }
            Self::Tcp(stream) => {
                let _ = lock(stream).write_all(&framed(message));
            }
        }
    }

    /// Does the steps, on a thread of their own if they take time.
    pub(super) fn run(self, steps: Vec<Step>) {
        let takes_time = steps.iter().any(|step| matches!(step, Step::Pause(_)));
        let run = move || match self {
            Self::Udp(socket, peer) => run_datagrams(&socket, peer, steps),
            Self::Tcp(stream) => run_stream(&stream, steps),
        };
        if takes_time {
            thread::spawn(run);
        } else {
            run();
        }
    }
}

fn run_datagrams(socket: &UdpSocket, peer: SocketAddr, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Message(octets) | Step::Octets(octets) => {
                let _ = socket.send_to(&octets, peer);
            }
            Step::FromElsewhere(octets) => {
                let other = UdpSocket::bind((peer.ip(), 0)).expect("another socket");
                let _ = other.send_to(&octets, peer);
            }
            Step::Pause(time) => thread::sleep(time),
            Step::Close | Step::Reset => return,
        }
    }
}

fn run_stream(stream: &Mutex<TcpStream>, steps: Vec<Step>) {
    // Octets that are no whole message are not mixed with another answer's.
    let whole = !steps.iter().any(|step| matches!(step, Step::Octets(_)));
    let mut held = (!whole).then(|| lock(stream));
    for step in steps {
        if let Step::Pause(time) = step {
            thread::sleep(time); // while others may write, if all are whole messages
            continue;
        }
        let mut now = None;
        let stream = held.as_deref_mut().unwrap_or_else(|| &mut *now.insert(lock(stream)));
        let written = match step {
            Step::Message(message) => stream.write_all(&framed(&message)),
            Step::Octets(octets) => stream.write_all(&octets),
            Step::Pause(_) | Step::FromElsewhere(_) => Ok(()),
            Step::Close => stream.shutdown(Shutdown::Both),
            Step::Reset => reset(stream),
        };
        if written.is_err() {
            return;
        }
    }
}

/// The reading thread sees an end and lets go of the connection; with nobody lingering the kernel
/// then sends RST instead of FIN.
fn reset(stream: &TcpStream) -> std::io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
    stream.shutdown(Shutdown::Read)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::time::Instant;

    use super::*;
    use crate::support::{
        Accept, Reaction, Tcp, Upstream, address_reply, ask, ask_udp, message, millis, query, seconds,
    };
    use hickory_proto::op::Message;

    /// What a client of one TCP connection reads, and how it ends.
    fn read(upstream: &Upstream, asked: &Message) -> (Vec<u8>, Option<ErrorKind>) {
        let mut stream = TcpStream::connect(upstream.address).expect("connection");
        stream.set_read_timeout(Some(seconds(5))).expect("timeout");
        stream.write_all(&framed(&message(asked))).expect("query");
        let mut octets = Vec::new();
        let end = stream.read_to_end(&mut octets).err().map(|error| error.kind());
        (octets, end)
    }

    #[test]
    fn steps_are_done_in_order_and_end_as_they_say() {
        let upstream = Upstream::start(|_, _| {
            let mut steps = pieces(&framed(b"slow"), 2, millis(50));
            steps.extend([Step::Message(b"whole".to_vec()), Step::Close, Step::Message(b"no more".to_vec())]);
            Reaction::Steps(steps)
        });
        let started = Instant::now();
        let expected = [&framed(b"slow")[..], &framed(b"whole")].concat();
        assert_eq!(read(&upstream, &query("a.example.", "A")), (expected, None));
        assert!(started.elapsed() >= millis(150), "{:?}", started.elapsed());
        let reset = Upstream::start(|_, _| Reaction::Steps(half(b"12345678", Step::Reset)));
        let (octets, end) = read(&reset, &query("a.example.", "A"));
        assert!(b"1234".starts_with(&octets), "{octets:?}");
        assert_eq!(end, Some(ErrorKind::ConnectionReset));
    }

    #[test]
    fn scripts_see_the_connection_and_the_times_asked_before() {
        let upstream = Upstream::scripted(|call| {
            let part = call.connection.map_or(99, |number| 10 * number + call.before);
            Reaction::Answer(address_reply(call.query, 1, &format!("192.0.2.{part}")))
        });
        let mut client = Tcp::connect(upstream.address);
        let mut second = Tcp::connect(upstream.address);
        let asked = |client: &mut Tcp| {
            client.send(&query("a.example.", "A"));
            client.receive().expect("reply").answers[0].data.to_string()
        };
        assert_eq!([asked(&mut client), asked(&mut client)], ["192.0.2.0", "192.0.2.1"]);
        assert_eq!(asked(&mut second), "192.0.2.12");
        assert_eq!(ask(upstream.address, "a.example.", "A").answers[0].data.to_string(), "192.0.2.99");
    }

    #[test]
    fn doors_ignore_and_reset_and_a_port_goes_away_and_comes_back() {
        let upstream = Upstream::plain(1);
        upstream.accept(|number| [Accept::Ignore, Accept::Reset, Accept::Serve][number.min(2)]);
        let asked = query("a.example.", "A");
        let mut ignored = Tcp::connect(upstream.address);
        ignored.send(&asked);
        assert!(!ignored.is_closed_within(millis(100)));
        // The RST may come before the client has looked at its new connection.
        assert!(
            Tcp::try_connect(upstream.address).map_or(true, |mut reset| reset.is_closed_within(seconds(3)))
        );
        let mut served = Tcp::connect(upstream.address);
        served.send(&asked);
        assert!(served.receive().is_some());
        upstream.go_away();
        assert!(served.is_closed_within(seconds(3)) && ignored.is_closed_within(seconds(3)));
        let refused = TcpStream::connect(upstream.address).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let quick = crate::support::datagram_reply(upstream.address, &message(&asked), millis(200));
        assert!(quick.is_none());
        upstream.come_back();
        assert!(ask_udp(upstream.address, &asked).is_some());
        assert!(Tcp::try_connect(upstream.address).is_ok());
    }
}
