//! The tries of one question: those under way, and what has been asked of each server.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::auto::FALLBACK;
use crate::upstream::pace::PATIENCE;
use crate::upstream::server::{Sending, Server};
use crate::upstream::{Cause, Why};
use crate::wire::response::Answer;

/// What has been asked of one server.
#[derive(Default, Clone)]
pub(super) struct Asked {
    pub(super) tries: u32,
    /// It answered with a failure, and would do so again.
    pub(super) failed: bool,
    /// A connection that worked has ended under the question. The first time that is no try (RFC 7766 §6.2.4).
    pub(super) spared: bool,
    /// When it was asked first, or a connection ended before its answer.
    pub(super) since: Option<Instant>,
    /// The connections of the last tries, the last one first.
    pub(super) last: [Option<u64>; 2],
    /// TCP has been silent about it, and `auto://` goes on by UDP.
    pub(super) no_tcp: bool,
    /// Held by the try that waits for a datagram, where TCP and UDP may be under way at once.
    pub(super) lane: Option<Arc<AtomicBool>>,
}

impl Asked {
    /// A try has ended, or given way.
    pub(super) fn went_by(&mut self, sending: &Sending) {
        let [last, _] = self.last;
        self.last = [sending.sent().connection, last];
    }
}

/// A try under way.
pub(super) struct Try {
    pub(super) server: usize,
    pub(super) why: Why,
    pub(super) started: Instant,
    /// How often it was looked at in vain.
    pub(super) looks: u32,
    /// A hedge was thought of.
    pub(super) hedged: bool,
    /// Its server has been held responsible for its silence.
    pub(super) judged: bool,
    pub(super) sending: Arc<Sending>,
    pub(super) answer: Pin<Box<dyn Future<Output = Result<Answer, Cause>> + Send>>,
}

impl Try {
    /// Whether it has nothing to wait for: its connection has brought nothing since, or there is none yet at a
    /// server that answers nobody.
    pub(super) fn is_silent(&self, server: &Server) -> bool {
        match self.sending.connection() {
            Some((connection, at)) => !connection.has_answered_since(at),
            None if server.is_auto() => !server.has_answered_by_tcp_since(self.started),
            None => !server.has_answered_since(self.started),
        }
    }

    /// Since when it waits for an answer: it may have waited for room before.
    pub(super) fn waits_since(&self) -> Instant {
        self.sending.connection().map_or(self.started, |(_, at)| at)
    }

    /// How long it is waited for: less for a connection where UDP may do better.
    pub(super) fn silent_after(&self, server: &Server) -> Duration {
        let silence = server.pace.silent_after();
        let no_connection = server.is_auto() && self.sending.connection().is_none();
        if no_connection { silence.min(FALLBACK) } else { silence }
    }

    /// Whether its connection owes answers and brings none any more, whatever it brought before.
    pub(super) fn has_fallen_silent(&self, server: &Server) -> bool {
        match self.sending.connection() {
            Some((connection, _)) => connection.is_stuck(Instant::now(), self.silent_after(server)),
            None => self.is_silent(server),
        }
    }

    /// Whether TCP has brought it nothing where UDP may: no connection, or one that is silent for a second, or after
    /// another one, at a server that has never answered on any.
    pub(super) fn lacks_tcp(&self, server: &Server) -> bool {
        let patience = if self.why == Why::Silent { self.silent_after(server) } else { PATIENCE };
        let lacks = || match self.sending.connection() {
            Some((_, at)) => at.elapsed() >= patience && server.is_mute_by_tcp(),
            None => self.is_silent(server),
        };
        server.is_auto() && !self.sending.is_udp() && lacks()
    }

    /// Whether UDP's answer at this time speaks against TCP.
    pub(super) fn accuses_tcp(&self, server: &Server) -> bool {
        let has_connection = self.sending.connection().is_some();
        self.lacks_tcp(server) && (!has_connection || server.is_silent_by_tcp(PATIENCE))
    }
}
