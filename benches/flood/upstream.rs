//! The upstream of this bench: it answers, keeps silent, holds its answers back, or lets nobody connect.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use socket2::SockRef;

use crate::packet;

/// How often the thread that accepts looks for connections.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(1);
/// Addresses under a name that begins with `big`: 48 KB.
const BIG: u16 = 3000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Answer,
    /// It takes queries and says nothing.
    Silent,
    /// It answers what it has taken when it is told to answer again.
    Hold,
    /// SYNs are dropped.
    Unreachable,
    End,
}

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    /// Those that fill the backlog.
    _fillers: Mutex<Vec<TcpStream>>,
}

struct Shared {
    listener: TcpListener,
    mode: Mutex<Mode>,
    ttl: AtomicU32,
    streams: Mutex<Vec<TcpStream>>,
    held: Mutex<Vec<(TcpStream, Vec<u8>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstream {
    /// Starts, with answers that live so many seconds. Its threads run where the caller's does.
    pub(crate) fn start(ttl: u32) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            listener,
            mode: Mutex::new(Mode::Answer),
            ttl: AtomicU32::new(ttl),
            streams: Mutex::default(),
            held: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&accepting));
        Ok(Self { address, shared, _fillers: Mutex::default() })
    }

    /// Changes what it does from now on.
    pub(crate) fn turn(&self, mode: Mode) -> Result<()> {
        *lock(&self.shared.mode) = mode;
        match mode {
            Mode::Answer => {
                for (mut stream, reply) in lock(&self.shared.held).drain(..) {
                    let _ = stream.write_all(&reply);
                }
            }
            Mode::Unreachable => {
                SockRef::from(&self.shared.listener).listen(0)?;
                let mut fillers = lock(&self._fillers);
                while let Ok(stream) = TcpStream::connect_timeout(&self.address, Duration::from_millis(300)) {
                    fillers.push(stream);
                    ensure!(fillers.len() < 10, "the backlog does not fill");
                }
                for stream in lock(&self.shared.streams).drain(..) {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
            Mode::Silent | Mode::Hold | Mode::End => {}
        }
        Ok(())
    }

    /// Answers live so many seconds from now on.
    pub(crate) fn set_ttl(&self, ttl: u32) {
        self.shared.ttl.store(ttl, Ordering::Relaxed);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.turn(Mode::End);
        for stream in lock(&self.shared.streams).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(shared: &Arc<Shared>) {
    loop {
        let mode = *lock(&shared.mode);
        if mode == Mode::End {
            return;
        }
        if mode != Mode::Unreachable
            && let Ok((stream, _)) = shared.listener.accept()
            && stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true)).is_ok()
            && let Ok(copy) = stream.try_clone()
        {
            lock(&shared.streams).push(copy);
            let shared = Arc::clone(shared);
            thread::spawn(move || serve(&shared, stream));
        } else {
            thread::sleep(ACCEPT_INTERVAL);
        }
    }
}

/// One connection to its end.
fn serve(shared: &Shared, mut stream: TcpStream) {
    let mut input = Vec::new();
    let mut room = vec![0; 1 << 16];
    loop {
        match stream.read(&mut room) {
            Ok(0) => return,
            Ok(length) => input.extend_from_slice(&room[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        let mut output = Vec::new();
        let mut at = 0;
        while let Some((length, rest)) = input[at..].split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(query) = rest.get(..length) else { break };
            let addresses = if packet::begins(query, b"big") { BIG } else { 1 };
            if let Some(reply) = packet::reply(query, shared.ttl.load(Ordering::Relaxed), addresses) {
                output.extend(packet::framed(&reply));
            }
            at += 2 + length;
        }
        input.drain(..at);
        // Held while the mode is looked at, or an answer could be put by after its release.
        let mode = lock(&shared.mode);
        match *mode {
            Mode::Answer => {
                drop(mode);
                if stream.write_all(&output).is_err() {
                    return;
                }
            }
            Mode::Hold => {
                if let Ok(copy) = stream.try_clone() {
                    lock(&shared.held).push((copy, output));
                }
            }
            Mode::Silent | Mode::Unreachable | Mode::End => {}
        }
    }
}
