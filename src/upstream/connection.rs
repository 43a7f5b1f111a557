//! One persistent connection to a server, with several queries in flight on it.
//!
//! A task owns the stream. It takes all queries that wait and sends them in one write, reads as many
//! answers as there are, and matches each by ID and question.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::transport::Link;
use super::{Counts, Late, LateAnswer};
use crate::wire::frame::{self, Frames};
use crate::wire::key::Key;

/// Bytes read at a time. A CoreDNS answer has 100 to 300.
pub const READ: usize = 16 * 1024;
/// Queries put into one write at the most; a query has under 300 bytes.
const BATCH: usize = 64;
/// Messages in a row that answer nothing, after which the connection is given up: a server that says
/// more than it was asked is broken, or somebody else is.
const STRANGERS: usize = 64;
/// Queries that nobody waits for any more, after which the connection takes no new one: their IDs stay
/// taken, and a server that is silent about so many has lost its thread.
const ABANDONED: usize = 64;
/// A connection that was given up stays this long for the answers under way on it.
const LINGER: Duration = Duration::from_secs(10);

/// Numbers connections, and the turns in which they are used.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// How long one answer takes at first, as far as anybody knows: too long to wait behind it.
const UNKNOWN: Duration = Duration::from_millis(1);
/// What is known of the slowest answer fades by this part with each quicker one.
const FADING: u64 = 64;

/// Who holds connections, and is told when one ends.
pub trait Owner: Send + Sync {
    /// One has ended.
    fn ended(self: Arc<Self>);
}

/// The connection ended before the answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// A query for the connection's task.
struct Ask {
    key: Key,
    edns_size: Option<u16>,
    reply: oneshot::Sender<Vec<u8>>,
}

/// A query that was sent.
struct Pending {
    key: Key,
    asked: Instant,
    reply: oneshot::Sender<Vec<u8>>,
}

/// The side of a connection that its pool holds. Dropping it lets the connection end once its
/// queries have been answered.
pub struct Connection {
    queue: mpsc::UnboundedSender<Ask>,
    shared: Arc<Shared>,
    task: AbortHandle,
    /// No other has it.
    pub number: u64,
    /// No new query after this.
    pub retire_at: Instant,
}

struct Shared {
    /// Queries given to it whose answer is awaited.
    in_flight: AtomicUsize,
    /// Queries that have not been answered, those nobody waits for any more included.
    unanswered: AtomicUsize,
    /// The task has ended or is about to.
    closed: AtomicBool,
    /// Milliseconds from opening to the last query; 0 before the first.
    used_ms: AtomicU64,
    /// Nanoseconds from opening to the last answer, or to the query that came when none was in flight.
    progress_ns: AtomicU64,
    /// Nanoseconds from opening to the last answer; 0 before the first.
    answered_ns: AtomicU64,
    /// Nanoseconds from one answer to the next while more were awaited: the slowest of late.
    service_ns: AtomicU64,
    /// Queries that the task has not taken yet.
    unwritten: AtomicUsize,
    turn: AtomicU64,
    opened: Instant,
    owner: Weak<dyn Owner>,
    counts: Arc<Counts>,
    /// Takes the answers that nobody waits for any more.
    late: Late,
}

impl Shared {
    fn now_ns(&self) -> u64 {
        self.opened.elapsed().as_nanos() as u64
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "connection {}", self.number)
    }
}

impl Connection {
    /// Starts the task of a connected stream. `owner` is told of its end.
    pub fn start(
        link: Link,
        retire_at: Instant,
        owner: Weak<dyn Owner>,
        counts: Arc<Counts>,
        late: Late,
    ) -> Self {
        let (queue, asks) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            in_flight: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            used_ms: AtomicU64::new(0),
            progress_ns: AtomicU64::new(0),
            answered_ns: AtomicU64::new(0),
            service_ns: AtomicU64::new(UNKNOWN.as_nanos() as u64),
            unwritten: AtomicUsize::new(0),
            turn: AtomicU64::new(0),
            opened: Instant::now(),
            owner,
            counts,
            late,
        });
        let end = End(Arc::clone(&shared));
        let task =
            Task { asks, shared: Arc::clone(&shared), pending: HashMap::default(), strangers: 0, _end: end };
        let task = tokio::spawn(task.run(link)).abort_handle();
        Self { queue, shared, task, retire_at, number: NUMBER.fetch_add(1, Ordering::Relaxed) }
    }

    /// Queries in flight on it, as far as somebody waits for them.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Queries that it has not answered, whoever waits: a server may go on working at them.
    pub fn unanswered(&self) -> usize {
        self.shared.unanswered.load(Ordering::Relaxed)
    }

    /// Whether it takes queries.
    pub fn is_open(&self) -> bool {
        let abandoned = self.unanswered().saturating_sub(self.in_flight());
        abandoned <= ABANDONED && !self.shared.closed.load(Ordering::Relaxed)
    }

    /// Whether it has carried a query before.
    pub fn is_used(&self) -> bool {
        self.shared.used_ms.load(Ordering::Relaxed) != 0
    }

    /// When it was used last, in an order that all connections share.
    pub fn last_turn(&self) -> u64 {
        self.shared.turn.load(Ordering::Relaxed)
    }

    /// How long it has had nothing to do.
    pub fn idle_for(&self, now: Instant) -> Duration {
        if self.unanswered() > 0 {
            return Duration::ZERO;
        }
        let used = Duration::from_millis(self.shared.used_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.shared.opened + used)
    }

    /// Whether queries wait on it and none was answered for `patience`: the peer may be gone, or keep
    /// silent about some names until they fill the connection.
    pub fn is_stuck(&self, now: Instant, patience: Duration) -> bool {
        self.unanswered() > 0 && self.silent_for(now) >= patience
    }

    /// How long it has brought nothing while something was awaited.
    pub fn silent_for(&self, now: Instant) -> Duration {
        let progress = Duration::from_nanos(self.shared.progress_ns.load(Ordering::Relaxed));
        now.saturating_duration_since(self.shared.opened + progress)
    }

    /// Whether it brought an answer at `since` or later.
    pub fn has_answered_since(&self, since: Instant) -> bool {
        let answered_ns = self.shared.answered_ns.load(Ordering::Relaxed);
        answered_ns > 0 && self.shared.opened + Duration::from_nanos(answered_ns) >= since
    }

    /// Whether it was opened or brought an answer at `since` or later.
    pub fn has_brought_since(&self, since: Instant) -> bool {
        self.shared.opened >= since || self.has_answered_since(since)
    }

    /// Whether it has ever brought an answer.
    pub fn has_answered(&self) -> bool {
        self.shared.answered_ns.load(Ordering::Relaxed) > 0
    }

    /// When the queries given to it will have been answered, if each takes as long as the slowest of late.
    pub fn expected_wait(&self) -> Duration {
        let service = self.shared.service_ns.load(Ordering::Relaxed);
        Duration::from_nanos(service.saturating_mul(self.unanswered() as u64))
    }

    /// Whether there are queries that go out with its next write.
    pub fn has_unwritten(&self) -> bool {
        self.shared.unwritten.load(Ordering::Relaxed) > 0
    }

    /// Ends it, whatever is under way on it.
    pub fn cut(&self) {
        self.task.abort();
    }

    /// Takes a place on it, to be left again.
    pub fn enter(&self) {
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let now_ns = self.shared.now_ns();
        if self.shared.unanswered.fetch_add(1, Ordering::Relaxed) == 0 {
            self.shared.progress_ns.store(now_ns, Ordering::Relaxed);
        }
        self.shared.used_ms.store((now_ns / 1_000_000).max(1), Ordering::Relaxed);
        self.shared.unwritten.fetch_add(1, Ordering::Relaxed);
        self.shared.turn.store(NUMBER.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Leaves a place, whether or not a query was handed over in it.
    pub fn leave(&self, asked: bool) {
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !asked {
            self.shared.unanswered.fetch_sub(1, Ordering::Relaxed);
            self.shared.unwritten.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Hands a query over. Its answer comes through the channel, which closes if the connection ends first.
    pub fn ask(&self, key: Key, edns_size: Option<u16>) -> oneshot::Receiver<Vec<u8>> {
        let (reply, answer) = oneshot::channel();
        // If the task has ended, the sender is dropped with the query and the receiver says so.
        let _ = self.queue.send(Ask { key, edns_size, reply });
        answer
    }
}

/// The task. Those who wait see that it ended when their senders are dropped with it.
struct Task {
    asks: mpsc::UnboundedReceiver<Ask>,
    shared: Arc<Shared>,
    pending: HashMap<u16, Pending, ahash::RandomState>,
    /// Messages since the last one that answered something.
    strangers: usize,
    _end: End,
}

/// Tells of the end, however it comes.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Relaxed);
        if let Some(owner) = self.0.owner.upgrade() {
            owner.ended();
        }
    }
}

impl Task {
    async fn run(mut self, link: Link) {
        let Link { mut reader, mut writer } = link;
        let mut input = Vec::with_capacity(READ);
        let mut output: Vec<u8> = Vec::new();
        let mut written = 0;
        let mut batch = Vec::new();
        let mut given_up_at = None;
        loop {
            tokio::select! {
                biased;
                sent = writer.write(&output[written..]), if written < output.len() => match sent {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => {
                        self.shared.counts.writes.add(1);
                        written += bytes;
                        if written == output.len() {
                            output.clear();
                            written = 0;
                        }
                    }
                },
                read = reader.read_buf(&mut input) => {
                    if !matches!(read, Ok(1..)) || self.take_answers(&mut input).is_err() {
                        break;
                    }
                    if self.pending.is_empty() && given_up_at.is_some() {
                        break;
                    }
                    if !self.pending.is_empty() && output.is_empty() {
                        reader.acknowledge(); // else the queries written next will
                    }
                }
                taken = self.asks.recv_many(&mut batch, BATCH), if given_up_at.is_none() => {
                    if taken == 0 {
                        if self.pending.is_empty() {
                            break;
                        }
                        given_up_at = Some(Instant::now() + LINGER);
                    }
                    self.shared.unwritten.fetch_sub(batch.len(), Ordering::Relaxed);
                    let asked = Instant::now();
                    for ask in batch.drain(..) {
                        self.encode(ask, asked, &mut output);
                    }
                }
                () = tokio::time::sleep_until(given_up_at.unwrap_or_else(Instant::now)), if given_up_at.is_some() => {
                    break;
                }
            }
        }
        self.shared.closed.store(true, Ordering::Relaxed);
    }

    /// So many answers came at once.
    fn answered(&self, answers: u64, now_ns: u64) {
        let since_ns = now_ns.saturating_sub(self.shared.progress_ns.swap(now_ns, Ordering::Relaxed));
        self.shared.answered_ns.store(now_ns.max(1), Ordering::Relaxed);
        let known = self.shared.service_ns.load(Ordering::Relaxed);
        let service = (since_ns / answers).max(known - known / FADING);
        self.shared.service_ns.store(service, Ordering::Relaxed);
    }

    /// Gives a query its ID and appends it to what is to be written.
    fn encode(&mut self, ask: Ask, asked: Instant, output: &mut Vec<u8>) {
        let id = loop {
            // Bounded: the pool stops at `in_flight` queries, at most 1024 of the 65536 IDs.
            let id: u16 = rand::random();
            if !self.pending.contains_key(&id) {
                break id;
            }
        };
        frame::append(output, |out| ask.key.write_query(id, ask.edns_size, out));
        self.pending.insert(id, Pending { key: ask.key, asked, reply: ask.reply });
    }

    /// Hands out the whole answers at the front of `input`. A message that matches no query is
    /// ignored, unless there is no end of them.
    fn take_answers(&mut self, input: &mut Vec<u8>) -> Result<(), Broken> {
        let now_ns = self.shared.now_ns();
        let mut answers = 0;
        let mut frames = Frames::new(input);
        for message in frames.by_ref() {
            let Some(&id) = message.first_chunk::<2>() else {
                return Err(Broken); // an empty message: the framing is lost
            };
            let id = u16::from_be_bytes(id);
            if self.pending.get(&id).is_none_or(|pending| !pending.key.is_answered_by(message)) {
                self.strangers += 1;
                if self.strangers > STRANGERS {
                    return Err(Broken);
                }
                continue;
            }
            if let Some(Pending { key, asked, reply }) = self.pending.remove(&id) {
                self.strangers = 0;
                answers += 1;
                self.shared.unanswered.fetch_sub(1, Ordering::Relaxed);
                if let Err(message) = reply.send(message.to_vec()) {
                    let counts = Arc::clone(&self.shared.counts);
                    // Beyond the channel's bound the next client has to ask again.
                    let _ = self.shared.late.try_send(LateAnswer { counts, asked, key, message });
                }
            }
        }
        if answers > 0 {
            self.answered(answers, now_ns);
        }
        let used = input.len() - frames.left();
        input.drain(..used);
        input.reserve(READ);
        Ok(())
    }
}
