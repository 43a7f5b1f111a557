//! The process that started this one and holds what outlives it: systemd, or `nodens keep`.
//!
//! Both give sockets by `LISTEN_FDS` (sd_listen_fds(3)), hear by datagrams how the agent is doing (sd_notify(3)), and
//! keep descriptors for the agent's next life (`FDSTORE=1`). systemd hears at the address in `NOTIFY_SOCKET`, `keep` at a
//! socket that it passes on among the others, by which it can speak as well.

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::os::unix::process::parent_id;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use socket2::{SockRef, Type};

use crate::sys;

/// The agent can answer.
pub const READY: &str = "READY=1";
/// The agent is leaving.
pub const STOPPING: &str = "STOPPING=1";
/// The agent has answered itself.
pub const WATCHDOG: &str = "WATCHDOG=1";
/// Keep the descriptors that come with this.
pub const STORE: &str = "FDSTORE=1";
/// To the agent: write the cache down, and say [`WRITTEN`].
pub const WRITE: &str = "NODENS_WRITE=1";
/// The cache is written down.
pub const WRITTEN: &str = "NODENS_WRITTEN=1";
/// To the agent: leave, another one is there already. What belongs to the node is the other's.
pub const REPLACED: &str = "NODENS_REPLACED=1";

/// How often an agent was started anew, in the environment.
pub const RESTARTS: &str = "NODENS_RESTARTS";
/// How many queries were passed on while there was no agent, in the environment.
pub const RELAYED: &str = "NODENS_RELAYED";

/// The name of the socket by which `keep` speaks, among inherited descriptors.
pub const CHANNEL: &str = "keep";
/// The name of the memory in which the cache is written down.
pub const CACHE: &str = "cache";
/// The name of sockets that take queries. They are known by what they are bound to; systemd gives them names of its own.
pub const SOCKET: &str = "dns";

/// Descriptors in one datagram (unix(7), SCM_MAX_FD).
const DESCRIPTORS: usize = 253;
/// Descriptors that are taken at the start: addresses times workers.
const INHERITED: usize = 4096;
/// The longest datagram of this protocol.
const WORDS: usize = 4096;

/// Who holds what outlives this process, if anybody does.
#[derive(Debug, Default)]
pub struct Parent {
    channel: Option<UnixDatagram>,
    is_keep: bool,
    started_by: u32,
    sockets: Mutex<Vec<OwnedFd>>,
    cache: Mutex<Option<File>>,
}

impl Parent {
    /// Takes what this process was started with. Once in a process's life: the descriptors are the process's own.
    pub fn find() -> Self {
        let mut parent = Self { started_by: parent_id(), ..Self::default() };
        for (descriptor, name) in inherited() {
            match name.as_str() {
                CHANNEL if env::var_os(RESTARTS).is_some() => {
                    parent.channel = Some(descriptor.into());
                    parent.is_keep = true;
                }
                // A socket unit of systemd may have any name.
                CACHE if bound(&SockRef::from(&descriptor)).is_none() => {
                    parent.cache = Mutex::new(Some(descriptor.into()))
                }
                _ => parent.sockets.get_mut().unwrap_or_else(PoisonError::into_inner).push(descriptor),
            }
        }
        if parent.channel.is_none() {
            parent.channel = notify_socket();
        }
        if let Some(channel) = &parent.channel {
            // A parent that does not listen must not stop the agent.
            let _ = channel.set_nonblocking(true);
        }
        parent
    }

    /// Whether `nodens keep` has started this process and is gone: its sockets are with us, unread, and nobody may read
    /// them who is not kept.
    pub fn is_lost(&self) -> bool {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let was_kept = env::var_os(RESTARTS).is_some() && names.split(':').any(|name| name == CHANNEL);
        was_kept && !(self.is_keep && self.started_by == parent_id())
    }

    /// Whether it is `nodens keep`, which replaces agents one by the next.
    pub fn is_keep(&self) -> bool {
        self.is_keep
    }

    /// Whether anybody is there to keep something.
    pub fn is_there(&self) -> bool {
        self.channel.is_some()
    }

    /// Tells it something, if it is there.
    pub fn tell(&self, words: &str) {
        self.send(words, &[]);
    }

    /// Has it keep descriptors for this process's next life.
    pub fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) {
        self.send(&format!("{STORE}\nFDNAME={name}"), descriptors);
    }

    fn send(&self, words: &str, descriptors: &[BorrowedFd<'_>]) {
        if let Some(channel) = &self.channel
            && let Err(error) = send(channel, words, descriptors)
        {
            tracing::warn!(%error, words, "the parent process does not listen");
        }
    }

    /// How often it wants a sign of life (sd_watchdog_enabled(3)), if it does.
    pub fn watchdog(&self) -> Option<Duration> {
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let period = number("WATCHDOG_USEC").filter(|&period| period > 0)?;
        (for_us && self.is_there()).then(|| Duration::from_micros(period))
    }

    /// How often agents were started anew, and how many queries were passed on without one, if it counts that.
    pub fn counts(&self) -> Option<(u64, u64)> {
        let number = |name: &str| env::var(name).ok()?.parse().ok();
        Some((number(RESTARTS)?, number(RELAYED)?)).filter(|_| self.is_keep)
    }

    /// What it has said, waiting for it. Never returns where it cannot speak.
    pub async fn hear(&self) -> String {
        let channel = self.channel.as_ref().filter(|_| self.is_keep);
        let Some(channel) = channel.and_then(|channel| channel.try_clone().ok()) else {
            return std::future::pending().await;
        };
        let mut words = [0; WORDS];
        match tokio::net::UnixDatagram::from_std(channel) {
            Ok(channel) => match channel.recv(&mut words).await {
                Ok(length) => String::from_utf8_lossy(&words[..length]).into_owned(),
                Err(_) => std::future::pending().await,
            },
            Err(_) => std::future::pending().await,
        }
    }

    /// The sockets of this kind that are bound there, once.
    pub fn sockets(&self, kind: Type, at: SocketAddr) -> Vec<OwnedFd> {
        let mut all = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, others) = std::mem::take(&mut *all)
            .into_iter()
            .partition(|socket| bound(&SockRef::from(socket)) == Some((kind, at)));
        *all = others;
        found
    }

    /// Where there are sockets that nobody has asked for.
    pub fn left(&self) -> BTreeSet<SocketAddr> {
        let all = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|socket| bound(&SockRef::from(socket))).map(|(_, at)| at).collect()
    }

    /// The memory in which the cache was written down, once.
    pub fn cache(&self) -> Option<File> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a socket is, and what it is bound to.
pub fn bound(socket: &SockRef<'_>) -> Option<(Type, SocketAddr)> {
    Some((socket.r#type().ok()?, socket.local_addr().ok()?.as_socket()?))
}

/// The descriptors that this process was started with, and their names. `LISTEN_PID` is ours, or our parent's where the
/// parent could not know ours yet.
fn inherited() -> Vec<(OwnedFd, String)> {
    let number = |name: &str| env::var(name).ok()?.parse::<u32>().ok();
    let us = [Some(std::process::id()), Some(parent_id())];
    let for_us = us.contains(&number("LISTEN_PID"));
    let count = number("LISTEN_FDS").filter(|_| for_us).map_or(0, |count| (count as usize).min(INHERITED));
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let named =
        sys::inherit(count).into_iter().map(|descriptor| (descriptor, names.next().unwrap_or_default()));
    named.filter_map(|(descriptor, name)| Some((descriptor?, name))).collect()
}

/// Where systemd listens.
fn notify_socket() -> Option<UnixDatagram> {
    let at = env::var_os("NOTIFY_SOCKET")?;
    let address = match at.as_bytes() {
        [b'@', name @ ..] => UnixAddr::from_abstract_name(name),
        path => UnixAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    let channel = UnixDatagram::unbound().ok()?;
    channel.connect_addr(&address.ok()?).ok()?;
    Some(channel)
}

/// Tells systemd something, if it has started this process and listens.
pub fn tell_systemd(words: &str) {
    if let Some(channel) = notify_socket() {
        // Nobody else would want to know.
        let _ = send(&channel, words, &[]);
    }
}

/// Sends words, and descriptors with them, without waiting: whoever does not listen shall not stop us.
///
/// # Errors
/// The system's own.
pub fn send(socket: &impl AsFd, words: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !attached.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than one message takes"));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(words.as_bytes())],
        &mut attached,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(())
}

/// Receives what [`send`] has sent, without waiting.
///
/// # Errors
/// The system's own; `WouldBlock` when there is nothing.
pub fn receive(socket: &impl AsFd) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let mut words = [0; WORDS];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut words)], &mut attached, flags)?;
    let mut descriptors = Vec::new();
    for message in attached.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((String::from_utf8_lossy(&words[..received.bytes]).into_owned(), descriptors))
}

/// The fields of a datagram: `NAME=value`, one a line.
pub fn fields(words: &str) -> HashMap<&str, &str> {
    words.lines().filter_map(|line| line.split_once('=')).collect()
}
