//! The client's queries on their way.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::client::{Order, PATIENCE, Pace, Seen, Way, now_ms, say_begun};

/// Queries outstanding at once where no rate is asked for.
const WINDOW: usize = 32;

pub(crate) enum Outcome {
    Answer { ttl: u32 },
    Lost(String),
}

/// Carries out an order, and says what became of it.
pub(crate) fn run_order(order: &Order) -> Seen {
    nodens::sys::raise_open_files().expect("the limit of open files");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, send_all(order))
}

async fn send_all(order: &Order) -> Seen {
    let way = Rc::new(Line::new(order.server, order.way).await);
    let seen = Rc::new(RefCell::new(Seen { began_ms: now_ms(), ..Seen::default() }));
    let (began, mut tasks) = (Instant::now(), JoinSet::new());
    let window = Arc::new(Semaphore::new(WINDOW));
    let mut last = Duration::ZERO;
    let mut ask = |number: u64, permit: Option<OwnedSemaphorePermit>| {
        let (bytes, way, seen) = (question(&order.run, number), Rc::clone(&way), Rc::clone(&seen));
        tasks.spawn_local(async move {
            let sent = Instant::now();
            let outcome = match timeout(PATIENCE, way.ask(&bytes)).await {
                Err(_) => Outcome::Lost("silence".to_owned()),
                Ok(Err(error)) => Outcome::Lost(error.kind().to_string()),
                Ok(Ok(reply)) => judge(&bytes, &reply),
            };
            seen.borrow_mut().add(sent - began, sent.elapsed(), outcome);
            drop(permit);
        });
        last = began.elapsed();
    };
    say_begun();
    let mut sent = 0;
    match order.pace {
        Pace::Rate { per_second, for_ms } => {
            let mut ticks = interval(Duration::from_millis(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let all = per_second * for_ms / 1000;
            while sent < all {
                ticks.tick().await;
                let due = began.elapsed().as_micros() as u64 * per_second / 1_000_000 + 1;
                while sent < due.min(all) {
                    ask(sent, None);
                    sent += 1;
                }
            }
        }
        Pace::Count(all) => {
            while sent < all {
                let permit = Arc::clone(&window).acquire_owned().await.expect("an open window");
                ask(sent, Some(permit));
                sent += 1;
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    let mut seen = seen.take();
    (seen.sent, seen.sending_ms, seen.connections) = (sent, last.as_millis() as u64, way.opened.get());
    seen
}

/// A question for the address of a name that nobody asks for twice.
pub(crate) fn question(run: &str, number: u64) -> Vec<u8> {
    let [.., high, low] = number.to_be_bytes();
    // RD, one question.
    let mut bytes = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [&format!("{run}-{number}"), "load", "test", ""] {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    // A, IN
    bytes.extend([0, 1, 0, 1]);
    bytes
}

/// What a reply to this question is worth.
fn judge(question: &[u8], reply: &[u8]) -> Outcome {
    let lost = |why: String| Outcome::Lost(why);
    let asked = question.len();
    if reply.len() < asked || reply[..2] != question[..2] || reply[12..asked] != question[12..] {
        return lost("answer to another question".to_owned());
    }
    if reply[3] & 15 != 0 {
        return lost(format!("RCODE {}", reply[3] & 15));
    }
    // A pointer to the question's name, type, class, TTL.
    match reply[asked..] {
        [0xc0, 0x0c, 0, 1, 0, 1, a, b, c, d, ..] => Outcome::Answer { ttl: u32::from_be_bytes([a, b, c, d]) },
        _ => lost("no address".to_owned()),
    }
}

/// Who waits for which ID.
type Waiting = Rc<RefCell<HashMap<[u8; 2], oneshot::Sender<Vec<u8>>>>>;

/// What lies between the client and the server.
struct Line {
    server: SocketAddr,
    way: Way,
    /// Of [`Way::UdpOnePort`].
    socket: Option<Rc<UdpSocket>>,
    waiting: Waiting,
    /// Of [`Way::TcpOneConnection`]: the one in use, with those that wait for its answers.
    connection: tokio::sync::Mutex<Option<(OwnedWriteHalf, Waiting)>>,
    opened: Cell<u64>,
}

impl Line {
    async fn new(server: SocketAddr, way: Way) -> Self {
        let mut line = Self {
            server,
            way,
            socket: None,
            waiting: Waiting::default(),
            connection: tokio::sync::Mutex::new(None),
            opened: Cell::new(0),
        };
        if way == Way::UdpOnePort {
            let socket = Rc::new(datagrams(server).await.expect("a socket"));
            tokio::task::spawn_local(hand_out(Rc::clone(&socket), Rc::clone(&line.waiting)));
            line.socket = Some(socket);
        }
        line
    }

    async fn ask(&self, question: &[u8]) -> Result<Vec<u8>, Error> {
        match self.way {
            Way::Udp => {
                let socket = datagrams(self.server).await?;
                socket.send(question).await?;
                receive(&socket).await
            }
            Way::UdpOnePort => {
                let socket = self.socket.as_ref().expect("the one");
                let reply = wait_for(&self.waiting, question);
                // An error of an earlier query is not this one's.
                if socket.send(question).await.is_err() {
                    socket.send(question).await?;
                }
                reply.await.map_err(|_| Error::from(ErrorKind::ConnectionReset))
            }
            Way::Tcp => {
                let mut stream = TcpStream::connect(self.server).await?;
                stream.write_all(&framed(question)).await?;
                read_framed(&mut stream).await
            }
            Way::TcpOneConnection => {
                let reply = self.send_on_the_connection(question).await?;
                reply.await.map_err(|_| Error::from(ErrorKind::ConnectionReset))
            }
        }
    }

    async fn send_on_the_connection(&self, question: &[u8]) -> Result<oneshot::Receiver<Vec<u8>>, Error> {
        let mut connection = self.connection.lock().await;
        // The reading side lets go of what it shares when the connection is closed.
        if connection.as_ref().is_none_or(|(_, waiting)| Rc::strong_count(waiting) == 1) {
            let stream = TcpStream::connect(self.server).await?;
            stream.set_nodelay(true)?;
            let (read, write) = stream.into_split();
            let waiting = Waiting::default();
            tokio::task::spawn_local(hand_out_framed(read, Rc::clone(&waiting)));
            self.opened.set(self.opened.get() + 1);
            *connection = Some((write, waiting));
        }
        let (write, waiting) = connection.as_mut().expect("just opened");
        let reply = wait_for(waiting, question);
        write.write_all(&framed(question)).await?;
        Ok(reply)
    }
}

fn wait_for(waiting: &Waiting, question: &[u8]) -> oneshot::Receiver<Vec<u8>> {
    let (sender, receiver) = oneshot::channel();
    waiting.borrow_mut().insert([question[0], question[1]], sender);
    receiver
}

fn deliver(waiting: &Waiting, reply: Vec<u8>) {
    let id = reply.first_chunk().copied();
    if let Some(sender) = id.and_then(|id: [u8; 2]| waiting.borrow_mut().remove(&id)) {
        // Nobody is there when it has come too late.
        let _ = sender.send(reply);
    }
}

/// Hands replies to those that wait for them.
async fn hand_out(socket: Rc<UdpSocket>, waiting: Waiting) {
    loop {
        // An error tells of a datagram that nobody took; whose it was shows when nothing comes.
        if let Ok(reply) = receive(&socket).await {
            deliver(&waiting, reply);
        }
    }
}

async fn hand_out_framed(mut stream: OwnedReadHalf, waiting: Waiting) {
    while let Ok(reply) = read_framed(&mut stream).await {
        deliver(&waiting, reply);
    }
    waiting.borrow_mut().clear();
}

/// A socket that hears only this server.
async fn datagrams(server: SocketAddr) -> Result<UdpSocket, Error> {
    let socket = match server {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?,
    };
    socket.connect(server).await?;
    Ok(socket)
}

async fn receive(socket: &UdpSocket) -> Result<Vec<u8>, Error> {
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await?;
    Ok(buffer[..length].to_vec())
}

/// RFC 1035 §4.2.2
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a short message");
    [&length.to_be_bytes(), message].concat()
}

async fn read_framed(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<Vec<u8>, Error> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
