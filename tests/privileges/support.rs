//! What the black-box tests share with these.

#[path = "../support/datagram.rs"]
mod datagram;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/namespace.rs"]
mod namespace;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/running.rs"]
mod running;
#[path = "../support/waiting.rs"]
mod waiting;

pub(crate) use datagram::{ask_udp, query};
pub(crate) use http::Http;
pub(crate) use namespace::inside;
pub(crate) use ports::{free_port, run};
pub(crate) use process::program;
pub(crate) use running::{Agent, Home, Settings};
pub(crate) use waiting::{seconds, wait_until};
