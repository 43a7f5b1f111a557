//! Ports for servers.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

/// Held while a port is looked for and while a program starts. Until its `exec`, a program has a copy of
/// every socket, and the copy of one that only looked would keep the port taken.
static LOOKING: Mutex<()> = Mutex::new(());

/// Starts a program.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _alone = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Runs a program to its end, and gives what it printed.
pub(crate) fn run(command: &mut Command) -> io::Result<Output> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(command)?.wait_with_output()
}

/// Where the system's own client ports begin (`ip_local_port_range`). Ours lie below, so that no
/// client socket takes one between the look and the use.
const FIRST_CLIENT_PORT: u16 = 32_768;
/// Above the ports of well-known services.
const FIRST_PORT: u16 = 15_000;

/// A port that is free for UDP and TCP on every loopback address, and is handed out once.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = FIRST_CLIENT_PORT - FIRST_PORT;
    // Two test processes at once begin at different places.
    let start = (std::process::id().wrapping_mul(7919) % u32::from(span)) as u16;
    let _alone = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST_PORT + (start + step % span) % span;
        let free = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
            && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if free {
            return port;
        }
    }
    panic!("no free port between {FIRST_PORT} and {FIRST_CLIENT_PORT}");
}
