//! Whether a server answers at all, and by which transport.

use std::sync::atomic::AtomicBool;

use tokio::time::timeout;

use super::{Errand, How, Sending, Server};
use crate::clock;
use crate::upstream::Cause;
use crate::upstream::auto::FALLBACK;
use crate::upstream::connection::Connection;
use crate::wire::key::Key;

impl Server {
    /// Whether it answers at all: by a datagram, or by a new connection, which is kept if it does. `reached` tells
    /// that there was a connection.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn probe(&self, key: &Key, reached: &AtomicBool) -> Result<(), Cause> {
        match self.how {
            How::Udp => self.probe_udp(key).await,
            How::Auto => self.probe_both(key, reached).await,
            _ => self.probe_tcp(key, reached).await,
        }
    }

    async fn probe_udp(&self, key: &Key) -> Result<(), Cause> {
        let sending = Sending::new(true);
        self.send_datagram(key, Some(self.settings.edns_size), &sending).await.map(drop)
    }

    /// Whether it answers by a new connection, which is kept if it does.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn probe_tcp(&self, key: &Key, reached: &AtomicBool) -> Result<(), Cause> {
        self.connections.probe(key, Some(self.settings.edns_size), reached).await
    }

    /// Both at once: a server that is back is asked by what it answers.
    async fn probe_both(&self, key: &Key, reached: &AtomicBool) -> Result<(), Cause> {
        let (by_tcp, by_udp) = (self.probe_tcp(key, reached), self.probe_udp(key));
        tokio::pin!(by_tcp, by_udp);
        let (tcp, udp) = tokio::select! {
            tcp = &mut by_tcp => match tcp {
                Ok(()) => (Ok(()), Err(Cause::GivenUp)),
                Err(cause) => (Err(cause), by_udp.await),
            },
            udp = &mut by_udp => match udp {
                Ok(()) => (timeout(FALLBACK, by_tcp).await.unwrap_or(Err(Cause::Timeout)), udp),
                Err(_) => (by_tcp.await, udp),
            },
        };
        match (tcp, udp) {
            (Ok(()), _) => self.decide(true),
            (Err(_), Ok(())) => self.doubt(),
            (Err(cause), Err(_)) => return Err(cause),
        }
        Ok(())
    }

    /// TCP has failed a query, and UDP answered it. If other connections work, there were too many.
    pub(super) fn tcp_failed(&self, connection: Option<&Connection>) {
        match connection {
            Some(connection) if connection.has_answered() => {}
            _ if !self.connections.work() => self.doubt(),
            Some(connection) => self.connections.was_cut_off(connection.number),
            None => {}
        }
    }

    /// UDP answers what TCP does not: it comes first for now, for those as well who wait for a connection.
    pub fn doubt(&self) {
        if let Some(retry) = self.choice.doubt(clock::now()) {
            tracing::info!(server = %self.label, ?retry, "answers by UDP and not by TCP: it is asked by UDP");
            self.connections.give_up();
        }
    }

    /// Whether it is to be probed by TCP now; once for each probe.
    pub fn is_tcp_due(&self) -> bool {
        self.is_auto() && !self.health.is_passed_over() && self.choice.is_due(clock::now())
    }

    /// What a probe by TCP has shown.
    pub fn decide(&self, answered: bool) {
        let now = clock::now();
        if !answered {
            let retry = self.choice.fails(now);
            tracing::debug!(server = %self.label, ?retry, "does not answer by TCP yet");
        } else if self.choice.works(now) {
            tracing::info!(server = %self.label, "answers by TCP: it is asked by TCP");
        }
    }
}

/// Whether a failure is one of TCP, so that UDP may do better: no connection, one that ended before it brought anything,
/// or one that ended for a query that had no luck with another before.
pub(super) fn is_about_tcp(cause: Cause, connection: Option<&Connection>, errand: &Errand) -> bool {
    match cause {
        Cause::Connect => true,
        Cause::Closed => errand.proof.is_some() || connection.is_some_and(|of| !of.has_answered()),
        _ => false,
    }
}
