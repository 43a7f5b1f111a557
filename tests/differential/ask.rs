//! The same queries to several servers, many at a time.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::message::{Query, Reply};
use crate::support::Tcp;

/// Longer than the agent's own deadline.
const PATIENCE: Duration = Duration::from_secs(6);

/// One server, and our way to it.
pub(crate) struct Server {
    address: SocketAddr,
    socket: UdpSocket,
}

/// A reply, and when it was asked for and came.
#[derive(Clone)]
pub(crate) struct Answered {
    pub(crate) asked: Instant,
    pub(crate) came: Instant,
    pub(crate) reply: Reply,
}

impl Server {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("client socket");
        socket.connect(address).expect("connect");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { address, socket }
    }

    /// Sends a batch and gives the replies in the batch's order, `None` for those that never came or cannot be read.
    /// IDs count from `first`, so a late reply to an earlier batch is told apart.
    pub(crate) fn ask(&self, first: u16, batch: &[&Query]) -> Vec<Option<Answered>> {
        let asked = Instant::now();
        let mut connection = None;
        let (mut by_udp, mut by_tcp) = (0, 0);
        for (query, id) in batch.iter().zip(0..) {
            let bytes = query.to_bytes(first.wrapping_add(id));
            if query.tcp {
                let connection = connection.get_or_insert_with(|| Tcp::connect(self.address));
                connection.send_bytes(&[&(bytes.len() as u16).to_be_bytes(), &bytes[..]].concat());
                by_tcp += 1;
            } else {
                self.socket.send(&bytes).expect("send");
                by_udp += 1;
            }
        }
        let mut answered = vec![None; batch.len()];
        let mut take = |bytes: &[u8], tcp: bool| {
            let id = bytes.first_chunk().map_or(first, |id| u16::from_be_bytes(*id));
            let place = usize::from(id.wrapping_sub(first));
            let expected = batch.get(place).is_some_and(|query| query.tcp == tcp);
            let counts = expected && answered[place].is_none();
            if counts {
                answered[place] =
                    Reply::read(bytes).map(|reply| Answered { asked, came: Instant::now(), reply });
            }
            counts
        };
        while let Some(bytes) = (by_tcp > 0).then(|| connection.as_mut()?.receive_bytes()).flatten() {
            by_tcp -= usize::from(take(&bytes, true));
        }
        let mut buffer = vec![0; 65_535];
        while by_udp > 0 {
            let Ok(length) = self.socket.recv(&mut buffer) else { break };
            by_udp -= usize::from(take(&buffer[..length], false));
        }
        answered
    }
}
