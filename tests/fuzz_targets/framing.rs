//! Any stream of bytes, cut into any reads: the messages in it are the same however they arrive.
//!
//! An input is the number of reads, the length of each, and the stream.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use nodens::upstream::Counts;
use nodens::upstream::connection::{Connection, Owner};
use nodens::upstream::transport::{Link, Reader};
use nodens::wire::frame::{self, Frames};
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::Query;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, duplex, split};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

/// Names asked on the upstream's connection.
const NAMES: [&[u8]; 3] = [b"\x01a\x00", b"\x01b\x00", b"\x00"];
/// Largest stream that is tried, so that all of it fits into the pipe at once.
const LARGEST: usize = 128 * 1024;

/// The stream of an input, in pieces. What is behind the last cut is one piece.
fn pieces(input: &[u8]) -> Vec<&[u8]> {
    let Some((&count, rest)) = input.split_first() else { return Vec::new() };
    let (cuts, mut stream) = rest.split_at(usize::from(count).min(rest.len()));
    stream = &stream[..stream.len().min(LARGEST)];
    let mut pieces = Vec::new();
    for &cut in cuts {
        let (piece, rest) = stream.split_at(usize::from(cut).min(stream.len()));
        pieces.push(piece);
        stream = rest;
    }
    pieces.push(stream);
    pieces
}

/// Reads the stream of `input` whole and in pieces, as a client's and as an upstream's. The messages in it.
pub(crate) fn check(input: &[u8]) -> usize {
    let pieces = pieces(input);
    let stream = pieces.concat();
    let mut frames = Frames::new(&stream);
    let whole: Vec<&[u8]> = frames.by_ref().collect();
    let left = frames.left();

    let mut buffer = Vec::new();
    let mut messages: Vec<Vec<u8>> = Vec::new();
    for piece in &pieces {
        buffer.extend_from_slice(piece);
        let mut frames = Frames::new(&buffer);
        messages.extend(frames.by_ref().map(<[u8]>::to_vec));
        let used = buffer.len() - frames.left();
        buffer.drain(..used);
    }
    assert_eq!(messages, whole, "the same messages");
    assert_eq!(buffer, stream[stream.len() - left..], "the same rest");

    let mut again = Vec::new();
    for message in &messages {
        frame::append(&mut again, |out| out.extend_from_slice(message));
    }
    assert_eq!(again, stream[..stream.len() - left], "written as it was read");
    read_as_upstream(&pieces);
    messages.len()
}

struct Half(ReadHalf<DuplexStream>);

impl AsyncRead for Half {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Reader for Half {}

/// Holds no connections.
struct Nobody;

impl Owner for Nobody {
    fn ended(self: Arc<Self>) {}
}

fn key(name: &[u8]) -> Key {
    KeyBuf::new(&Query { id: 0, flags: 0, name, qtype: 1, qclass: 1, edns: None }).to_key()
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// Asks [`NAMES`] on a connection whose peer then sends the pieces, and compares the answers with those
/// that a reader of the whole stream takes.
fn read_as_upstream(pieces: &[&[u8]]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (ours, mut peer) = duplex(2 * LARGEST);
            let (reader, writer) = split(ours);
            let retire_at = tokio::time::Instant::now() + Duration::from_secs(3600);
            let link = Link { reader: Box::new(Half(reader)), writer: Box::new(writer) };
            let (owner, counts) = (Weak::<Nobody>::new(), Arc::new(Counts::default()));
            let connection = Connection::start(link, retire_at, owner, counts, mpsc::channel(1).0);
            let waiting = NAMES.map(|name| {
                connection.enter();
                connection.ask(key(name), None)
            });
            let ids = queries(&mut peer).await;

            let sent = with_ids(pieces, &ids);
            let expected = answers(&sent.concat(), &ids);
            for piece in &sent {
                if peer.write_all(piece).await.is_err() {
                    break; // a message without an ID: the framing is lost, and the connection ends
                }
                tokio::task::yield_now().await;
            }
            drop(peer);
            for (name, waiting) in NAMES.into_iter().zip(waiting) {
                let got = waiting.await.ok();
                assert_eq!(got.as_ref(), expected.get(name), "the answer for {name:?}");
            }
        });
    });
}

/// The ID that each name was asked with.
async fn queries(peer: &mut DuplexStream) -> HashMap<&'static [u8], [u8; 2]> {
    let mut ids = HashMap::new();
    for name in NAMES {
        let length = peer.read_u16().await.expect("a length");
        let mut query = vec![0; length.into()];
        peer.read_exact(&mut query).await.expect("a query");
        let asked = Query::parse(&query).expect("a well-formed query");
        assert_eq!(asked.name, name, "queries come in the order in which they were asked");
        ids.insert(name, asked.id.to_be_bytes());
    }
    ids
}

/// The pieces, with an ID in every message whose first octet is the place of a name.
fn with_ids(pieces: &[&[u8]], ids: &HashMap<&'static [u8], [u8; 2]>) -> Vec<Vec<u8>> {
    let mut stream = pieces.concat();
    let mut at = 2;
    let lengths: Vec<usize> = Frames::new(&stream.clone()).map(<[u8]>::len).collect();
    for length in lengths {
        if length >= 2
            && let Some(name) = NAMES.get(usize::from(stream[at]))
        {
            stream[at..at + 2].copy_from_slice(&ids[name]);
        }
        at += length + 2;
    }
    let mut from = 0;
    let cut = |piece: &&[u8]| {
        from += piece.len();
        stream[from - piece.len()..from].to_vec()
    };
    pieces.iter().map(cut).collect()
}

/// Messages in a row that answer nothing, which a connection bears.
const STRANGERS: usize = 64;

/// What a reader of the whole stream takes for each name: the first answer, up to a message without an ID
/// or one stranger too many.
fn answers(stream: &[u8], ids: &HashMap<&'static [u8], [u8; 2]>) -> HashMap<&'static [u8], Vec<u8>> {
    let mut answers = HashMap::new();
    let mut strangers = 0;
    for message in Frames::new(stream) {
        let Some(id) = message.first_chunk::<2>() else { break };
        strangers += 1;
        let of_id = ids.iter().find(|&(name, known)| known == id && !answers.contains_key(name));
        if let Some((&name, _)) = of_id
            && key(name).is_answered_by(message)
        {
            answers.insert(name, message.to_vec());
            strangers = 0;
        }
        if strangers > STRANGERS {
            break;
        }
    }
    answers
}
