//! What the kernel is asked about links, addresses, rules and routes (rtnetlink(7)).
//!
//! It does what a message says before the call that sends it returns, and its reply is there then, so nothing here
//! waits and no task is needed. Messages are written and read by the crate `netlink-packet-route`.

use std::io::{self, ErrorKind};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

pub(super) type Message = NetlinkMessage<RouteNetlinkMessage>;

/// netlink(7): messages begin at multiples of this.
const ALIGNMENT: usize = 4;
/// As much as the kernel says at once (netlink(7); Linux 4.9 and later).
const REPLY: usize = 32 << 10;
/// A list that has changed while it was told is asked for again, so many times.
const ATTEMPTS: usize = 8;

/// A socket of its own for a few questions.
#[derive(Debug)]
pub(super) struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
}

impl Socket {
    /// Opens one in the network namespace of this thread.
    ///
    /// # Errors
    /// The system's own.
    pub(super) fn open() -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        // Lists can be asked for in part, as of Linux 4.20; others tell all, and we pick.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Has the kernel change something.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_ACK | flags).map(|_| ())
    }

    /// Has it list something: all of it, or an error.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn list(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ATTEMPTS {
            let (list, changed) = self.ask(message.clone(), NLM_F_DUMP)?;
            if !changed {
                return Ok(list);
            }
        }
        Err(io::Error::other("it has changed each time while it was read"))
    }

    /// What is said up to the end, and whether it has changed meanwhile.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.sequence += 1;
        let mut message = Message::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut packet = vec![0; message.buffer_len()];
        message.serialize(&mut packet);
        self.socket.send(&packet, 0)?;
        let (mut said, mut changed) = (Vec::new(), false);
        let mut space = Vec::with_capacity(REPLY);
        loop {
            space.clear();
            match self.socket.recv(&mut space, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::other("its reply has no end"));
                }
                Err(error) => return Err(error),
            }
            for Message { header, payload, .. } in messages(&space) {
                if header.sequence_number != self.sequence {
                    continue;
                }
                changed |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload {
                    NetlinkPayload::InnerMessage(message) => said.push(message),
                    NetlinkPayload::Error(error) => {
                        return error.code.map_or(Ok((said, changed)), |_| Err(error.to_io()));
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
                    }
                    NetlinkPayload::Done(_) => return Ok((said, changed)),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of one datagram. One that cannot be read, of a newer kernel, is passed over: a link that looks odd must
/// not hide the others.
pub(super) fn messages(mut rest: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
        let Some(message) = rest.get(..length).filter(|_| length > 0) else { break };
        match Message::deserialize(message) {
            Ok(message) => messages.push(message),
            Err(error) => tracing::debug!(%error, "a message of the kernel about links or routes"),
        }
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    messages
}
