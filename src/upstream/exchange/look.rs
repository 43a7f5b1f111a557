//! What is done about a try that brings no answer for a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Asking, TRIES};
use crate::upstream::pace::PATIENCE;
use crate::upstream::{Cause, Why};

/// A datagram is not repeated sooner: one that was lost is rare, and the servers of `system` are far away.
const DATAGRAM: Duration = Duration::from_millis(80);
/// After its first second a try is looked at as often as this: that nobody is there may have become known meanwhile.
const LOOK: Duration = Duration::from_millis(500);
/// Queries of one flight that may be outstanding.
const AT_ONCE: usize = 2;
/// Looks after which the time to the next one does not double any more. It is beyond the longest deadline by then
/// (30 s): a time that has passed would be looked at over and over.
const LOOKS: u32 = 10;

impl Asking<'_> {
    /// No answer for a while: is there a reason to ask again?
    pub(super) fn look(&mut self) {
        let Some(newest) = self.open.last_mut() else { return };
        let server = &self.servers[newest.server];
        let (waited, silence) = (newest.waits_since().elapsed(), newest.silent_after(server));
        if newest.sending.is_udp() {
            newest.looks += 1;
            self.look_at_datagram();
        } else if waited >= silence.min(PATIENCE) {
            newest.looks += 1;
            let has_connection = newest.sending.connection().is_some();
            if newest.has_fallen_silent(server) || (waited >= PATIENCE && has_connection) {
                self.ask_again(Why::Silent);
            }
        } else if !newest.hedged && waited >= server.pace.late_after() {
            // Who waits in the queue of a server that answers would only wait there twice.
            newest.hedged = newest.sending.connection().is_some() || newest.is_silent(server);
            if newest.hedged && self.open.len() < AT_ONCE {
                self.hedge();
            }
        }
        self.plan();
    }

    /// Asks a second time, if the budget allows it and there is somebody to ask.
    fn hedge(&mut self) {
        if self.pool.budget.spend() {
            let before = self.tried;
            self.ask_again(Why::Hedge);
            self.pool.hedges.sent.increment((self.tried - before) as u64);
        } else if self.pool.definition.hedge.is_some() {
            self.pool.hedges.denied.increment(1);
        }
    }

    /// A try has failed. The one that it was to help is as late as before.
    pub(super) fn look_at_once(&mut self) {
        match self.open.last() {
            Some(newest) if newest.looks > 0 => self.wake = Instant::now(),
            _ => self.plan(),
        }
    }

    /// When the last try is looked at next.
    pub(super) fn plan(&mut self) {
        let Some(newest) = self.open.last() else { return };
        let server = &self.servers[newest.server];
        let (pace, silence) = (&server.pace, newest.silent_after(server));
        let (since, late) = (newest.waits_since(), pace.late_after());
        let after = if newest.sending.is_udp() {
            pace.silent_after().max(DATAGRAM) * ((1 << newest.looks.min(LOOKS)) * 2 - 1)
        } else if !newest.hedged && newest.looks == 0 && late < silence && since.elapsed() < late {
            late
        } else {
            silence * ((1 << newest.looks.min(LOOKS)) * 2 - 1)
        };
        self.wake = since + after;
        if !newest.sending.is_udp() {
            let patience_ends = since + PATIENCE;
            let soon = if since.elapsed() < PATIENCE { patience_ends } else { Instant::now() + LOOK };
            self.wake = self.wake.min(soon);
        }
    }

    /// Asks once more because the last try is late or silent. The oldest one gives way if there are too many.
    fn ask_again(&mut self, why: Why) {
        let by_udp = (why == Why::Silent).then(|| self.next_by_udp()).flatten();
        if why == Why::Silent && by_udp.is_none() {
            (0..self.open.len()).for_each(|index| self.judge(index));
            if self.nobody_answers() || !self.may_move() {
                return;
            }
            self.moved = true;
        }
        let Some(index) = by_udp.or_else(|| self.next()) else { return };
        if self.open.len() >= AT_ONCE {
            let oldest = self.open.remove(0);
            self.asked[oldest.server].went_by(&oldest.sending);
            self.write_down(&oldest, Some(Cause::Timeout));
        }
        self.start(index, why);
    }

    /// Whether its silence is reason enough. There is a budget for it, because a slow name silences a connection as a
    /// dead server does; after a second nobody counts.
    fn may_move(&self) -> bool {
        let is_old = self.open.last().is_some_and(|newest| newest.started.elapsed() >= PATIENCE);
        is_old || self.pool.moves.spend()
    }

    /// Whether it has been asked elsewhere already, and nobody has been answered by any server meanwhile: more
    /// queries would only wait with the others, for a while at least.
    fn nobody_answers(&self) -> bool {
        let Some(newest) = self.open.last() else { return true };
        let since = newest.started;
        self.moved
            && since.elapsed() < PATIENCE
            && !self.servers.iter().any(|server| server.has_answered_since(since))
    }

    /// The server of the last try, if it is the one to be asked by UDP: TCP is silent, whose fault is not the server's yet.
    fn next_by_udp(&mut self) -> Option<usize> {
        let newest = self.open.last()?;
        let (index, server) = (newest.server, &self.servers[newest.server]);
        let asked = &mut self.asked[index];
        let is_free = asked.lane.as_ref().is_none_or(|lane| !lane.load(Ordering::Relaxed));
        if !newest.lacks_tcp(server) || !is_free || asked.tries >= TRIES {
            return None;
        }
        asked.tries += 1;
        asked.no_tcp = true;
        Some(index)
    }

    /// The same for a datagram.
    fn look_at_datagram(&mut self) {
        let last = self.open.len() - 1;
        self.judge(last);
        let current = self.open[last].server;
        let sending = Arc::clone(&self.open[last].sending);
        let Some(index) = self.next() else { return };
        if index == current {
            return sending.repeat();
        }
        self.cut_off();
        self.start(index, Why::Silent);
    }

    /// Holds the server of a try responsible, once, if it has been silent towards everybody for as long.
    pub(super) fn judge(&mut self, index: usize) {
        let silence = self.servers[self.open[index].server].pace.silent_after().min(PATIENCE);
        self.judge_after(index, silence);
    }

    pub(super) fn judge_after(&mut self, index: usize, silence: Duration) {
        let open = &mut self.open[index];
        let server = &self.servers[open.server];
        if open.started.elapsed() >= silence
            && !open.judged
            && !self.asked[open.server].failed
            && !server.has_answered_since(open.started)
        {
            open.judged = true;
            self.pool.is_silent(server, open.started);
        }
    }
}
