//! One persistent connection to a server, with several queries in flight on it.
//!
//! A task owns the stream. It takes all queries that wait and sends them in one write, reads as many
//! answers as there are, and matches each by ID and question.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::transport::Link;
use super::{Counts, Late, LateAnswer};
use crate::wire::frame::{self, Frames};
use crate::wire::key::Key;

/// Bytes read at a time. A CoreDNS answer has 100 to 300.
const READ: usize = 16 * 1024;
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
    reply: oneshot::Sender<Vec<u8>>,
}

/// The side of a connection that its pool holds. Dropping it lets the connection end once its
/// queries have been answered.
pub struct Connection {
    queue: mpsc::UnboundedSender<Ask>,
    shared: Arc<Shared>,
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
    /// Milliseconds from opening to the last answer, or to the query that came when none was in flight.
    progress_ms: AtomicU64,
    opened: Instant,
    /// Wakes those who wait for room.
    room: Arc<Notify>,
    counts: Arc<Counts>,
    /// Takes the answers that nobody waits for any more.
    late: Late,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }
}

impl Connection {
    /// Starts the task of a connected stream. `room` is told of each answer.
    pub fn start(link: Link, retire_at: Instant, room: Arc<Notify>, counts: Arc<Counts>, late: Late) -> Self {
        let (queue, asks) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            in_flight: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            used_ms: AtomicU64::new(0),
            progress_ms: AtomicU64::new(0),
            opened: Instant::now(),
            room,
            counts,
            late,
        });
        let task = Task { asks, shared: Arc::clone(&shared), pending: HashMap::default(), strangers: 0 };
        tokio::spawn(task.run(link));
        Self { queue, shared, retire_at }
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
        let progress = Duration::from_millis(self.shared.progress_ms.load(Ordering::Relaxed));
        self.unanswered() > 0 && now.saturating_duration_since(self.shared.opened + progress) > patience
    }

    /// Hands a query over, and gives the place where its answer will be.
    pub fn ask(&self, key: Key, edns_size: Option<u16>) -> Waiting {
        let (reply, answer) = oneshot::channel();
        let now_ms = self.shared.now_ms();
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        if self.shared.unanswered.fetch_add(1, Ordering::Relaxed) == 0 {
            self.shared.progress_ms.store(now_ms, Ordering::Relaxed);
        }
        self.shared.used_ms.store(now_ms.max(1), Ordering::Relaxed);
        // If the task has ended, the sender is dropped with the query and the receiver says so.
        let _ = self.queue.send(Ask { key, edns_size, reply });
        Waiting { answer, shared: Arc::clone(&self.shared) }
    }
}

/// An answer that is awaited. Whoever drops it gives its place on the connection to another query.
pub struct Waiting {
    answer: oneshot::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.shared.room.notify_one();
    }
}

impl Waiting {
    /// The response, whose ID and question match.
    ///
    /// # Errors
    /// [`Broken`] when the connection ended first.
    pub async fn answer(mut self) -> Result<Vec<u8>, Broken> {
        (&mut self.answer).await.map_err(|_| Broken)
    }
}

struct Task {
    asks: mpsc::UnboundedReceiver<Ask>,
    shared: Arc<Shared>,
    pending: HashMap<u16, Pending, ahash::RandomState>,
    /// Messages since the last one that answered something.
    strangers: usize,
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
                    for ask in batch.drain(..) {
                        self.encode(ask, &mut output);
                    }
                }
                () = tokio::time::sleep_until(given_up_at.unwrap_or_else(Instant::now)), if given_up_at.is_some() => {
                    break;
                }
            }
        }
        self.shared.closed.store(true, Ordering::Relaxed);
        drop(self.pending); // their receivers see that it broke
        self.shared.room.notify_waiters();
    }

    /// Gives a query its ID and appends it to what is to be written.
    fn encode(&mut self, ask: Ask, output: &mut Vec<u8>) {
        let id = loop {
            // Bounded: the pool stops at `in_flight` queries, at most 1024 of the 65536 IDs.
            let id: u16 = rand::random();
            if !self.pending.contains_key(&id) {
                break id;
            }
        };
        frame::append(output, |out| ask.key.write_query(id, ask.edns_size, out));
        self.pending.insert(id, Pending { key: ask.key, reply: ask.reply });
    }

    /// Hands out the whole answers at the front of `input`. A message that matches no query is
    /// ignored, unless there is no end of them.
    fn take_answers(&mut self, input: &mut Vec<u8>) -> Result<(), Broken> {
        let now_ms = self.shared.now_ms();
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
            if let Some(Pending { key, reply }) = self.pending.remove(&id) {
                self.strangers = 0;
                self.shared.progress_ms.store(now_ms, Ordering::Relaxed);
                self.shared.unanswered.fetch_sub(1, Ordering::Relaxed);
                if let Err(message) = reply.send(message.to_vec()) {
                    // Beyond the channel's bound the next client has to ask again.
                    let _ = self.shared.late.try_send(LateAnswer { key, message });
                }
            }
        }
        let used = input.len() - frames.left();
        input.drain(..used);
        input.reserve(READ);
        Ok(())
    }
}
