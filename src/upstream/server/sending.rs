//! What a try has sent.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::upstream::Sent;
use crate::upstream::connection::Connection;
use crate::upstream::connections::Proof;
use crate::upstream::queue::Source;

/// On whose behalf a server is asked, and what is known from earlier tries.
#[derive(Debug, Clone, Copy)]
pub struct Errand {
    /// Whose question it is.
    pub source: Source,
    /// What a connection must have shown, if there was a try before.
    pub proof: Option<Proof>,
    /// When nobody waits any more.
    pub deadline: Instant,
}

/// What a try has sent so far, visible while it is under way.
#[derive(Debug)]
pub struct Sending {
    pub(super) udp_first: bool,
    /// It waits for a datagram.
    by_udp: AtomicBool,
    /// Held by the one try at a server that waits for a datagram, where there may be others.
    pub(super) lane: Option<Arc<AtomicBool>>,
    pub(super) udp: AtomicU32,
    pub(super) tcp: AtomicU32,
    /// The connection it went by, when, and whether that had carried queries before.
    pub(super) by: OnceLock<(Arc<Connection>, Instant, bool)>,
    pub(super) repeat: Notify,
}

impl Sending {
    /// Nothing yet.
    pub fn new(udp_first: bool) -> Self {
        let (udp, tcp, by_udp) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(udp_first));
        Self { udp_first, by_udp, lane: None, udp, tcp, by: OnceLock::new(), repeat: Notify::new() }
    }

    /// Of several tries with one `lane`, one at a time waits for a datagram.
    pub fn with(self, lane: Option<Arc<AtomicBool>>) -> Self {
        Self { lane, ..self }
    }

    /// Has the datagram sent again: the one before may be lost.
    pub fn repeat(&self) {
        self.repeat.notify_one();
    }

    /// Whether it waits for a datagram: not after UDP has truncated the answer, but after TCP has failed where UDP
    /// comes next.
    pub fn is_udp(&self) -> bool {
        self.by_udp.load(Ordering::Relaxed)
    }

    /// The connection that it went by, and when.
    pub fn connection(&self) -> Option<(&Connection, Instant)> {
        self.by.get().map(|(connection, at, _)| (&**connection, *at))
    }

    /// So far.
    pub fn sent(&self) -> Sent {
        let by = self.by.get();
        Sent {
            udp: self.udp.load(Ordering::Relaxed),
            tcp: self.tcp.load(Ordering::Relaxed),
            reused: by.is_some_and(|(.., reused)| *reused),
            connection: by.map(|(connection, ..)| connection.number),
        }
    }
}

/// A try that waits for a datagram, the only one of its lane.
pub(super) struct Listening<'a>(&'a Sending);

impl<'a> Listening<'a> {
    /// `None` while another one does.
    pub(super) fn begin(sending: &'a Sending) -> Option<Self> {
        if sending.lane.as_ref().is_some_and(|lane| lane.swap(true, Ordering::Relaxed)) {
            return None;
        }
        sending.by_udp.store(true, Ordering::Relaxed);
        Some(Self(sending))
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.by_udp.store(false, Ordering::Relaxed);
        if let Some(lane) = &self.0.lane {
            lane.store(false, Ordering::Relaxed);
        }
    }
}
