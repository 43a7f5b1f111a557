//! What the black-box tests share: servers, clients, the agent itself, and waiting.
//!
//! Everything lives in a temporary directory and dies with the value that started it. A program
//! that is not installed fails the test and names its Debian package; nothing is skipped.

mod agent;
mod crowd;
mod datagram;
mod http;
mod ports;
mod process;
mod servers;
mod tools;
mod upstream;
mod waiting;
mod wire;
pub(crate) mod zones;

pub(crate) use agent::{Agent, Demo, Launch, nodens};
pub(crate) use crowd::{Bystander, Crowd, datagrams_from, source, stream_from};
pub(crate) use datagram::{ask_udp, datagram_reply, message, name, query};
pub(crate) use http::Http;
pub(crate) use ports::{free_port, run};
pub(crate) use servers::{Nsd, Unbound};
pub(crate) use tools::{dig, dnsperf, kdig};
pub(crate) use upstream::reply::{address_reply, reply_code};
pub(crate) use upstream::steps::{Step, framed, framed_as, half, pieces};
pub(crate) use upstream::{Accept, Reaction, Transport, Upstream, edit};
pub(crate) use waiting::{seconds, wait_until};
pub(crate) use wire::{Tcp, ask, ask_tcp, option, with_edns};

use std::time::Duration;

pub(crate) const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
