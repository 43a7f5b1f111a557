//! `nodens keep` as process 1 of a container: of a PID namespace of its own.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Load;
use crate::home::{AHEAD, Home, Keep, children};
use crate::seen::{Events, Kind};
use crate::support::{on_a_node, program, rate, run, seconds, wait_until};

/// Starts one in a container that shares the node's network and the directory.
#[track_caller]
fn contain(home: &Home) -> Keep {
    let mut command = Command::new(AHEAD[0]);
    command.args(&AHEAD[1..]).args(["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    let mut keep = home.start(command, |command| {
        command.arg(program()).arg("keep").arg("--config").arg(home.config());
    });
    let outside = keep.pid;
    wait_until("unshare (Debian package util-linux) has started it", seconds(5), || {
        let inside = children(outside).into_iter().find(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.windows(4).any(|word| word == b"keep"))
        });
        keep.pid = inside.unwrap_or(outside);
        inside.is_some()
    });
    keep
}

/// Runs a shell in the container, and leaves it two orphans.
#[track_caller]
fn leave_orphans(keep: &Keep) {
    let mut shell = Command::new("nsenter");
    shell.args(["--target", &keep.pid.to_string(), "--pid", "--mount"]);
    shell.args(["sh", "-c", "sh -c 'sleep 1 & sleep 1 &' >/dev/null 2>&1"]);
    let done = run(&mut shell).expect("nsenter (Debian package util-linux)");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn orphans_are_reaped_and_sigterm_ends_it() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = contain(&home);
        home.wait_until_ready(&mut keep);
        let alone = children(keep.pid);
        assert_eq!(alone.len(), 1, "its agent");
        leave_orphans(&keep);
        wait_until("the orphans are its own", seconds(2), || children(keep.pid).len() == 3);
        wait_until("they have ended and are reaped", seconds(10), || children(keep.pid) == alone);
        keep.signal(Signal::TERM);
        keep.must_end(seconds(7));
    });
}

/// Ends everything in it, as the end of its process 1 does.
fn destroy(mut keep: Keep) {
    keep.signal(Signal::KILL);
    assert!(keep.process.wait(seconds(5)).is_some());
}

#[test]
fn whoever_is_replaced_waits_and_works_again_when_its_successor_is_gone() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut first = contain(&home);
        home.wait_until_ready(&mut first);
        let load = Load::start(home.listen(), rate());
        let mut events = Events::default();
        let take_over = |before: &Keep| {
            let mut next = contain(&home);
            next.must_say("the previous one may go", seconds(15));
            wait_until("the one before has no agent", seconds(10), || children(before.pid).is_empty());
            home.wait_until_ready(&mut next);
            next
        };
        events.happens("the second takes over");
        let mut second = take_over(&first);
        events.happens("the third takes over");
        let third = take_over(&second);
        thread::sleep(seconds(1));
        assert!(first.process.ended().is_none() && second.process.ended().is_none(), "they stand by");
        let asked = Instant::now();
        second.signal(Signal::TERM);
        second.must_end(seconds(2));
        eprintln!("a standby ends within {:?} of SIGTERM", asked.elapsed());
        thread::sleep(seconds(1));
        assert!(children(first.pid).is_empty(), "the third works:\n{}", first.process.output());
        assert!(first.descriptors() <= 12, "a standby holds nothing: {} descriptors", first.descriptors());
        events.happens("the third is gone");
        destroy(third);
        let begun = Instant::now();
        home.wait_for_the_next(&mut first, 0);
        eprintln!("a standby works {:?} after the end of its successor", begun.elapsed());
        events.happens("the first works again");
        thread::sleep(seconds(1));
        let seen = load.finish();
        eprint!("{}", seen.report("containers", &events));
        // With the container everything ends that was in it, its sockets too.
        seen.must_lose_about_alone(&events, "the third is gone", Duration::from_secs(2));
        let lost = seen.lost(Kind::Hit) + seen.lost(Kind::Miss);
        assert!(lost as u64 <= rate() / 2, "{lost} lost");
        first.signal(Signal::TERM);
        first.must_end(seconds(7));
    });
}
