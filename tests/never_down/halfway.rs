//! A successor that fails before its time: the one before goes on as if nothing had happened.

use std::io::ErrorKind;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::client::Load;
use crate::home::{Home, Keep, send};
use crate::seen::Events;
use crate::support::{bound_ms, on_a_node, program, rate, run, seconds, wait_until};

/// Has something happen under load to a node whose agent must not notice.
#[track_caller]
fn goes_on(title: &str, happen: impl FnOnce(&Home, &Keep, &mut Events)) {
    let home = Home::new("watchdog: 3s");
    let mut keep = home.keep();
    home.wait_until_ready(&mut keep);
    let agent = keep.agent();
    let load = Load::start(home.listen(), rate());
    thread::sleep(seconds(1));
    let (mut events, descriptors) = (Events::default(), keep.descriptors());
    happen(&home, &keep, &mut events);
    events.happens("after");
    thread::sleep(seconds(1));
    let seen = load.finish();
    eprint!("{}", seen.report(title, &events));
    assert!(keep.process.ended().is_none(), "{}", keep.process.output());
    assert_eq!(keep.agent(), agent, "the agent is the one that it was:\n{}", keep.process.output());
    seen.must_be_whole();
    assert!(seen.slowest_ms() <= bound_ms(50, 500), "{} ms", seen.slowest_ms());
    wait_until("it is ready", seconds(5), || home.admin.get("/ready").is_some_and(|(code, _)| code == 200));
    wait_until("nobody's descriptors stay", seconds(5), || keep.descriptors() == descriptors);
    let mut stats = Command::new(program());
    stats.arg("stats").arg("--control").arg(home.path("control.sock"));
    let stats = run(&mut stats).expect("nodens stats");
    assert!(stats.status.success(), "its control socket: {}", String::from_utf8_lossy(&stats.stderr));
    // The next one that is well still takes over.
    let mut next = home.keep();
    keep.must_end(seconds(20));
    home.wait_until_ready(&mut next);
}

#[test]
fn a_successor_whose_agent_crashes_at_the_start_changes_nothing() {
    on_a_node(|| {
        goes_on("successor crashes at the start", |home, _, events| {
            home.spoil();
            for number in 1..=3 {
                events.happens(format!("successor {number}"));
                let mut next = home.keep();
                let ended = next.process.wait(seconds(20));
                assert!(ended.is_some_and(|status| !status.success()), "{ended:?}");
                next.must_say("the previous one goes on", seconds(1));
            }
            home.configure("");
        });
    });
}

#[test]
fn a_successor_whose_agent_is_killed_before_it_is_ready_changes_nothing() {
    on_a_node(|| {
        goes_on("successor's agent is killed", |home, _, events| {
            let mut next = home.keep();
            let agent = next.agent_after(0);
            events.happens("kill of the successor's agent");
            send(agent, Signal::KILL);
            let ended = next.process.wait(seconds(20));
            assert!(ended.is_some_and(|status| !status.success()), "{ended:?} {}", next.process.output());
        });
    });
}

#[test]
fn a_successor_that_is_killed_halfway_changes_nothing() {
    on_a_node(|| {
        goes_on("successor is killed", |home, _, events| {
            let mut next = home.keep();
            next.must_say("taking over", seconds(10));
            events.happens("kill of the successor");
            next.signal(Signal::KILL);
            assert!(next.process.wait(seconds(5)).is_some());
        });
    });
}

#[test]
fn a_successor_that_hangs_halfway_changes_nothing() {
    on_a_node(|| {
        goes_on("successor hangs", |home, _, events| {
            let mut next = home.keep();
            next.must_say("taking over", seconds(10));
            events.happens("stop of the successor");
            next.signal(Signal::STOP);
            thread::sleep(seconds(4));
            events.happens("kill of the successor");
            next.signal(Signal::KILL);
            assert!(next.process.wait(seconds(5)).is_some());
        });
    });
}

#[test]
fn a_successor_whose_agent_hangs_changes_nothing() {
    on_a_node(|| {
        goes_on("successor's agent hangs", |home, _, events| {
            let mut next = home.keep();
            let agent = next.agent_after(0);
            events.happens("stop of the successor's agent");
            send(agent, Signal::STOP);
            let ended = next.process.wait(seconds(40));
            assert!(ended.is_some_and(|status| !status.success()), "{ended:?} {}", next.process.output());
        });
    });
}

/// Whoever has come to the door.
fn visit(home: &Home) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    socket.connect(&SockAddr::unix(home.handover()).expect("a path")).expect("somebody is there");
    socket.set_read_timeout(Some(Duration::from_millis(1_500))).expect("a timeout");
    socket
}

#[test]
fn nonsense_at_the_door_changes_nothing() {
    on_a_node(|| {
        goes_on("nonsense at the door", |home, _, events| {
            events.happens("nonsense");
            let long = vec![b'x'; 60_000];
            let words: [&[u8]; 7] = [
                b"",
                b"\0",
                b"NODENS_HANDOVER=2",
                b"GET / HTTP/1.1\r\n\r\n",
                b"NODENS_HANDOVER=1\nMORE=1",
                &[0xff; 300],
                &long,
            ];
            for words in words {
                let mut socket = visit(home);
                let _ = socket.send(words);
                let mut reply = [0; 512];
                match std::io::Read::read(&mut socket, &mut reply) {
                    Ok(length) => assert_eq!(length, 0, "{words:?} is answered"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{words:?} is heard"),
                }
            }
            // Those who say nothing, more of them than are let in.
            events.happens("a crowd");
            let crowd: Vec<Socket> = (0..8).map(|_| visit(home)).collect();
            thread::sleep(seconds(1));
            drop(crowd);
        });
    });
}

/// Asks at the door as another user, and prints what it got. The exit code is 3 when it is not let in.
const STRANGER: &str = "
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(3)
try:
    s.connect(sys.argv[1])
    s.send(b'NODENS_HANDOVER=1')
    words, descriptors, _, _ = socket.recv_fds(s, 4096, 253)
    print(words, descriptors)
    sys.exit(0 if words or descriptors else 3)
except (PermissionError, BrokenPipeError, ConnectionResetError) as error:
    print(error)
    sys.exit(3)
";

#[track_caller]
fn stranger_gets_nothing(home: &Home, why: &str) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", STRANGER]);
    let output = run(command.arg(home.handover())).expect("setpriv (Debian package util-linux)");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert_eq!(output.status.code(), Some(3), "{text:?}");
    assert!(text[0].contains(why), "{text:?}");
}

#[test]
fn another_user_gets_nothing() {
    on_a_node(|| {
        goes_on("another user", |home, _, events| {
            use std::os::unix::fs::{MetadataExt, PermissionsExt};
            events.happens("another user");
            let mode = |path: &std::path::Path, mode| {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
            };
            let folder = home.path("");
            mode(&folder, 0o755);
            assert_eq!(std::fs::metadata(home.handover()).expect("the door").mode() & 0o777, 0o600);
            stranger_gets_nothing(home, "Permission denied");
            // Even where the file system lets it in.
            mode(&home.handover(), 0o666);
            stranger_gets_nothing(home, "");
            mode(&home.handover(), 0o600);
        });
    });
}
