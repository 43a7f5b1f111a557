//! Whether the agent answers: questions of our own, for the name that only agents know.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::sockets::Protocol;
use crate::resolve::local;
use crate::wire::{self, class, flag, rcode, rtype};

/// A name that is answered without any upstream is answered at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Who was asked.
    pub addr: SocketAddr,
    /// By what.
    pub protocol: Protocol,
    /// Who answered, or why nobody did.
    pub from: Result<Answerer, String>,
    /// Whether a packet is sure to have gone out for it.
    pub has_left: bool,
}

/// Whether an error says that somebody has seen our packet: whoever refused it, or a rule that dropped it on its way out
/// (`EPERM`). Without a way, an address of our own, or room for a socket no packet ever was.
fn came_after_a_packet(error: &std::io::Error) -> bool {
    let after = [libc::ECONNREFUSED, libc::ECONNRESET, libc::EPERM, libc::ETIMEDOUT, libc::EPIPE];
    match error.raw_os_error() {
        Some(code) => after.contains(&code),
        None => error.kind() == std::io::ErrorKind::UnexpectedEof,
    }
}

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answerer {
    /// An agent: nobody else knows its name.
    Agent,
    /// Somebody else.
    Other,
}

/// Asks each address by UDP and by TCP, all at once.
pub async fn ask(addrs: &[SocketAddr]) -> Vec<Answer> {
    let each = addrs.iter().flat_map(|&addr| [(addr, Protocol::Udp), (addr, Protocol::Tcp)]);
    let asked = each.map(|(addr, protocol)| async move {
        let began = Instant::now();
        let exchange = async {
            match protocol {
                Protocol::Udp => udp(addr).await,
                Protocol::Tcp => tcp(addr).await,
            }
        };
        let (from, has_left) = match timeout(PATIENCE, exchange).await {
            Ok(Ok(reply)) => (Ok(answerer(&reply)), true),
            Ok(Err(error)) => (Err(error.to_string()), came_after_a_packet(&error)),
            Err(_) => (Err(format!("no answer within {} s", began.elapsed().as_secs().max(1))), true),
        };
        Answer { addr, protocol, from, has_left }
    });
    futures_util::future::join_all(asked).await
}

/// The question, as every stub resolver asks.
fn question() -> Vec<u8> {
    let mut message = vec![0; wire::HEADER];
    wire::put_u16(&mut message, 0, rand::random());
    wire::put_u16(&mut message, 2, flag::RD);
    wire::put_u16(&mut message, 4, 1);
    message.extend(local::PROBE);
    message.extend(rtype::A.to_be_bytes());
    message.extend(class::IN.to_be_bytes());
    message
}

/// An agent says that its name exists; to everybody else it lies below `invalid.` (RFC 6761 §6.4).
fn answerer(reply: &[u8]) -> Answerer {
    let code = reply.get(3).map(|flags| u16::from(flags & 0xf));
    let has_answer = reply.get(6..8).is_some_and(|count| count != [0, 0]);
    if code == Some(rcode::NOERROR) && has_answer { Answerer::Agent } else { Answerer::Other }
}

async fn udp(addr: SocketAddr) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if addr.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(addr).await?;
    let question = question();
    socket.send(&question).await?;
    let mut space = vec![0; 1232];
    loop {
        let length = socket.recv(&mut space).await?;
        if space.get(..2) == question.get(..2) {
            return Ok(space[..length].to_vec());
        }
    }
}

async fn tcp(addr: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    let mut framed = Vec::new();
    wire::frame::append(&mut framed, |out| out.extend(question()));
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_could_not_be_sent_has_not_left() {
        let after = |code| came_after_a_packet(&std::io::Error::from_raw_os_error(code));
        for code in
            [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EADDRNOTAVAIL, libc::EMFILE, libc::EAFNOSUPPORT]
        {
            assert!(!after(code), "{code}");
        }
        for code in [libc::ECONNREFUSED, libc::ECONNRESET, libc::EPERM] {
            assert!(after(code), "{code}");
        }
    }

    #[tokio::test]
    async fn only_what_went_out_has_left() {
        // Nobody listens at the one; the other is no address that can be asked.
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nowhere: SocketAddr = "[fe80::1]:53".parse().unwrap();
        let answers = ask(&[closed, nowhere]).await;
        let left: Vec<bool> = answers.iter().map(|answer| answer.has_left).collect();
        assert_eq!(left, [true, true, false, false], "{answers:?}");
    }

    #[test]
    fn only_an_answer_with_the_name_is_an_agents() {
        let reply = |code: u8, answers: u8| [0, 1, 0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
        assert_eq!(answerer(&reply(0, 1)), Answerer::Agent);
        assert_eq!(answerer(&reply(0, 0)), Answerer::Other);
        assert_eq!(answerer(&reply(3, 0)), Answerer::Other);
        assert_eq!(answerer(&[]), Answerer::Other);
    }
}
