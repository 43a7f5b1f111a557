//! The agent under a parent that is systemd: socket activation (sd_listen_fds(3)) and sd_notify(3), without `nodens keep`.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{SockRef, Type};

use crate::client::{fault, question};
use crate::home::{Home, send};
use crate::seen::Kind;
use crate::support::{on_a_node, program, seconds, wait_until};

/// What systemd is told to wait for between two signs of life.
const WATCHDOG: Duration = Duration::from_secs(1);

/// systemd's part.
struct Systemd {
    home: Home,
    listen: SocketAddr,
    notified: UnixDatagram,
    address: String,
}

/// A service's main process. Dropping it ends it.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // Not an error: it may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Service {
    #[track_caller]
    fn must_end(&mut self) -> ExitStatus {
        let mut ended = None;
        wait_until("it ends", seconds(7), || {
            ended = self.0.try_wait().expect("wait for a child");
            ended.is_some()
        });
        ended.expect("just seen")
    }
}

impl Systemd {
    fn new(is_abstract: bool) -> Self {
        let home = Home::new("");
        let listen = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
        let listen = listen.expect("a free port in a new namespace");
        home.configure_as(&format!(
            "listen: [\"{listen}\"]\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://{}\"] }}\n",
            home.upstream.address
        ));
        let (address, bound) = if is_abstract {
            let name = format!("nodens-test-{}", std::process::id());
            let bound = UnixAddr::from_abstract_name(&name).and_then(|name| UnixDatagram::bind_addr(&name));
            (format!("@{name}"), bound)
        } else {
            let path = home.path("notify");
            (path.display().to_string(), UnixDatagram::bind(path))
        };
        let notified = bound.expect("a socket");
        Self { home, listen, notified, address }
    }

    /// Starts the service with these descriptors.
    fn start(&self, descriptors: &[BorrowedFd<'_>], names: &str) -> Service {
        let output =
            File::options().create(true).append(true).open(self.home.path("service")).expect("a file");
        let mut command = Command::new("sh");
        // Its number is known to itself alone before it begins.
        let script = "export LISTEN_PID=$$ WATCHDOG_PID=$$; exec \"$0\" run --config \"$1\"";
        command.args(["-c", script]).arg(program()).arg(self.home.config());
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a file")).stderr(output);
        command.env("LISTEN_FDS", descriptors.len().to_string()).env("LISTEN_FDNAMES", names);
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()).env("NOTIFY_SOCKET", &self.address);
        Service(nodens::sys::spawn_with(&mut command, descriptors).expect("sh"))
    }

    /// The next message, if there is one by then.
    fn hear(&self, limit: Duration) -> Option<(String, Vec<OwnedFd>)> {
        let end = Instant::now() + limit;
        loop {
            match nodens::parent::receive(&self.notified) {
                Ok(message) => return Some(message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return None,
            }
        }
    }

    /// All that comes until this does, which has to.
    #[track_caller]
    fn hear_until(&self, last: &str) -> Vec<(String, Vec<OwnedFd>)> {
        let end = Instant::now() + seconds(10);
        let mut all = Vec::new();
        while Instant::now() < end {
            all.extend(self.hear(Duration::from_millis(100)));
            if all.last().is_some_and(|(words, _): &(String, _)| words.lines().any(|line| line == last)) {
                return all;
            }
        }
        let log = std::fs::read_to_string(self.home.path("service"));
        panic!("{last} does not come, but {all:?}\n{log:?}");
    }

    /// How many messages of this kind come in that time; no other may.
    #[track_caller]
    fn count(&self, words: &str, time: Duration) -> usize {
        let end = Instant::now() + time;
        let mut count = 0;
        while let Some((heard, _)) = self.hear(end.saturating_duration_since(Instant::now())) {
            assert!(heard == words || heard.starts_with("FDSTORE=1"), "{heard:?}");
            count += usize::from(heard == words);
        }
        count
    }

    /// Asks by UDP and TCP.
    #[track_caller]
    fn must_answer(&self) {
        let question = question(7, Kind::Miss, "systemd", 1);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        socket.set_read_timeout(Some(seconds(5))).expect("a timeout");
        socket.send_to(&question, self.listen).expect("a datagram");
        let mut reply = [0; 512];
        let (length, from) = socket.recv_from(&mut reply).expect("an answer by UDP");
        assert_eq!((fault(&question, &reply[..length]), from), (None, self.listen));
        let mut stream = std::net::TcpStream::connect(self.listen).expect("a connection");
        stream.set_read_timeout(Some(seconds(5))).expect("a timeout");
        let framed = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
        io::Write::write_all(&mut stream, &framed).expect("a query");
        let length = io::Read::read(&mut stream, &mut reply).expect("an answer by TCP");
        assert_eq!(fault(&question, &reply[2..length]), None);
    }
}

#[track_caller]
fn is_told_all(is_abstract: bool) {
    let systemd = Systemd::new(is_abstract);
    let udp = UdpSocket::bind(systemd.listen).expect("a socket");
    let tcp = TcpListener::bind(systemd.listen).expect("a listener");
    // Asked before the agent is there: the sockets are.
    let early = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let first = question(1, Kind::Miss, "early", 1);
    early.send_to(&first, systemd.listen).expect("a datagram");
    let mut service = systemd.start(&[udp.as_fd(), tcp.as_fd()], "nodens-dns.socket:nodens-dns.socket");
    let began = Instant::now();
    let all = systemd.hear_until("READY=1");
    eprintln!("READY=1 after {:?}", began.elapsed());
    for (words, _) in &all {
        let is_of_sockets = words.starts_with("FDSTORE=1") && !words.contains("FDNAME=cache");
        assert!(!is_of_sockets, "it has opened what it was given: {words:?}");
    }
    let mut reply = [0; 512];
    early.set_read_timeout(Some(seconds(5))).expect("a timeout");
    let length = early.recv(&mut reply).expect("an answer to what was asked before the start");
    assert_eq!(fault(&first, &reply[..length]), None);
    systemd.must_answer();

    // Twice in each period is what sd_notify(3) asks for.
    let pings = systemd.count("WATCHDOG=1", 3 * WATCHDOG);
    assert!(pings >= 6, "{pings} signs of life in three periods");
    send(service.0.id(), Signal::STOP);
    systemd.count("WATCHDOG=1", Duration::from_millis(200));
    assert_eq!(systemd.count("WATCHDOG=1", 2 * WATCHDOG), 0, "signs of life of a process that is stopped");
    send(service.0.id(), Signal::CONT);
    systemd.hear_until("WATCHDOG=1");
    while systemd.hear(Duration::ZERO).is_some() {}
    send(service.0.id(), Signal::TERM);
    systemd.hear_until("STOPPING=1");
    assert!(service.must_end().success());
}

#[test]
fn systemd_gives_sockets_and_hears_of_everything_at_a_path() {
    on_a_node(|| is_told_all(false));
}

#[test]
fn systemd_gives_sockets_and_hears_of_everything_at_an_abstract_name() {
    on_a_node(|| is_told_all(true));
}

#[test]
fn systemd_keeps_what_the_agent_has_opened_for_its_next_life() {
    on_a_node(|| {
        let systemd = Systemd::new(false);
        let mut service = systemd.start(&[], "");
        let mut stored: Vec<(String, OwnedFd)> = Vec::new();
        for (words, descriptors) in systemd.hear_until("READY=1") {
            if let Some(name) = words.lines().find_map(|line| line.strip_prefix("FDNAME=")) {
                assert!(words.lines().any(|line| line == "FDSTORE=1"), "{words:?}");
                stored.extend(descriptors.into_iter().map(|descriptor| (name.to_owned(), descriptor)));
            }
        }
        let bound: Vec<Type> = stored
            .iter()
            .filter_map(|(_, descriptor)| nodens::parent::bound(&SockRef::from(descriptor)))
            .inspect(|(_, at)| assert_eq!(*at, systemd.listen))
            .map(|(kind, _)| kind)
            .collect();
        let udp = bound.iter().filter(|kind| **kind == Type::DGRAM).count();
        assert_eq!((udp, bound.len()), (2, 3), "two workers' sockets and a listener: {stored:?}");
        systemd.must_answer();
        // It crashes; systemd has the sockets, so what comes meanwhile waits in them.
        send(service.0.id(), Signal::KILL);
        service.must_end();
        let early = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        early.set_read_timeout(Some(seconds(10))).expect("a timeout");
        let first = question(1, Kind::Miss, "between", 1);
        early.send_to(&first, systemd.listen).expect("a datagram");
        while systemd.hear(Duration::ZERO).is_some() {}
        let names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
        let descriptors: Vec<_> = stored.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        let _service = systemd.start(&descriptors, &names.join(":"));
        let mut reply = [0; 512];
        let length = early.recv(&mut reply).expect("an answer to what was asked in between");
        assert_eq!(fault(&first, &reply[..length]), None);
        systemd.hear_until("READY=1");
        systemd.must_answer();
    });
}
