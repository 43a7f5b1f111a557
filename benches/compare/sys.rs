//! The system calls that std and socket2 lack, each behind a safe function. The only file of this bench with
//! `unsafe` in it.

#![expect(unsafe_code, reason = "recvmmsg, sendmmsg, epoll, CPU sets and CPU clocks exist only in libc")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::time::Duration;

/// Datagrams taken or sent by one call, as the agent's workers do it.
const BATCH: usize = 32;
/// Room for one datagram: above the EDNS size of 1,232, and a whole number of cache lines.
const ROOM: usize = 2048;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn cpu_set(cpus: &[usize]) -> libc::cpu_set_t {
    // SAFETY: cpu_set_t is a plain array of bits, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the index is below CPU_SETSIZE, so it stays within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    set
}

/// Lets the calling thread run only on `cpus`.
pub(crate) fn pin(cpus: &[usize]) -> io::Result<()> {
    let set = cpu_set(cpus);
    // SAFETY: the pointer and the size describe a set that lives until the call returns.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) }).map(drop)
}

/// Makes the command start on `cpus`, as leader of a process group of its own, and die with the thread that
/// starts it.
pub(crate) fn confine(command: &mut Command, cpus: &[usize]) {
    let set = cpu_set(cpus);
    command.process_group(0);
    // SAFETY: between fork and exec only two system calls are made; nothing allocates or takes a lock.
    unsafe {
        command.pre_exec(move || {
            check(libc::sched_setaffinity(0, mem::size_of_val(&set), &set))?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop)
        });
    }
}

/// Sends a signal to a child process that has not been waited for.
pub(crate) fn signal(process: u32, number: libc::c_int) {
    if let Ok(process) = libc::pid_t::try_from(process)
        && process > 1
    {
        // SAFETY: kill takes numbers only.
        unsafe { libc::kill(process, number) };
    }
}

/// Sends SIGKILL to the process group that `leader` leads. The caller has not waited for the leader yet, so the
/// number cannot belong to anyone else.
pub(crate) fn kill_group(leader: u32) {
    if let Ok(group) = libc::pid_t::try_from(leader)
        && group > 1
    {
        // SAFETY: kill takes numbers only.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// CPU time of all threads of a process, ended ones included, in nanoseconds' precision.
pub(crate) fn process_cpu(pid: u32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is valid for writing.
    let error = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// CPU time of the calling thread, and of all children that have been waited for.
pub(crate) fn client_cpu() -> io::Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [libc::RUSAGE_THREAD, libc::RUSAGE_CHILDREN] {
        // SAFETY: a C structure of numbers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        // SAFETY: `usage` is valid for writing.
        check(unsafe { libc::getrusage(who, &mut usage) })?;
        for time in [usage.ru_utime, usage.ru_stime] {
            sum += Duration::from_secs(time.tv_sec.cast_unsigned());
            sum += Duration::from_micros(time.tv_usec.cast_unsigned());
        }
    }
    Ok(sum)
}

/// Puts the calling thread, and what it starts from now on, into a new network namespace.
pub(crate) fn new_network() -> io::Result<()> {
    // SAFETY: unshare takes a number only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Puts the calling thread, and what it starts from now on, into a network namespace.
pub(crate) fn enter_network(namespace: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: setns takes numbers only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Length of a clock tick as /proc counts them.
pub(crate) fn tick() -> Duration {
    // SAFETY: sysconf takes a number and returns one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_secs(1) / u32::try_from(per_second).unwrap_or(100).max(1)
}

/// Lets the kernel pick one of the `sockets` of this socket's SO_REUSEPORT group at random for each datagram.
/// Its default, a hash of addresses and ports, would give one busy client to one worker.
pub(crate) fn spread_at_random(socket: &impl AsRawFd, sockets: u32) -> io::Result<()> {
    const SKF_AD_OFF: i32 = -0x1000;
    const SKF_AD_RANDOM: i32 = 56;
    let op = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (SKF_AD_OFF + SKF_AD_RANDOM).cast_unsigned()),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets),
        op(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: pointer and size describe a program that lives until the call returns; the kernel copies it.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            mem::size_of_val(&program) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Buffers for a batch of datagrams, which are answered in place. They are never freed: a worker has one batch for
/// as long as its process lives.
pub(crate) struct Batch {
    headers: [libc::mmsghdr; BATCH],
}

impl Batch {
    pub(crate) fn new() -> Self {
        // SAFETY: a C structure of numbers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        for header in &mut headers {
            let room = Box::leak(Box::new([0_u8; ROOM]));
            // SAFETY: as above.
            let name: &mut libc::sockaddr_storage = Box::leak(Box::new(unsafe { mem::zeroed() }));
            let vector = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: ROOM };
            header.msg_hdr.msg_iov = Box::leak(Box::new(vector));
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        Self { headers }
    }

    /// Waits for datagrams, lets `answer` turn each into its reply in place (from the room and the query's
    /// length to the reply's length), and sends the replies. What the socket does not take at once is lost.
    pub(crate) fn serve(
        &mut self,
        socket: &impl AsRawFd,
        mut answer: impl FnMut(&mut [u8], usize) -> usize,
    ) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        // SAFETY: the headers point at rooms, vectors and names that are never freed.
        let taken = check(unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        })? as usize;
        for header in &mut self.headers[..taken] {
            // SAFETY: msg_iov points at this header's vector, that one at its room of ROOM bytes; no other
            // reference to either exists while this one does.
            let (vector, room) = unsafe {
                let vector = &mut *header.msg_hdr.msg_iov;
                (&mut vector.iov_len, std::slice::from_raw_parts_mut(vector.iov_base.cast::<u8>(), ROOM))
            };
            *vector = answer(room, header.msg_len as usize).min(ROOM);
        }
        // SAFETY: as for recvmmsg.
        unsafe {
            libc::sendmmsg(fd, self.headers.as_mut_ptr(), taken as libc::c_uint, libc::MSG_DONTWAIT);
        }
        for header in &mut self.headers[..taken] {
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            // SAFETY: msg_iov points at this header's vector.
            unsafe { (*header.msg_hdr.msg_iov).iov_len = ROOM };
        }
        Ok(())
    }
}

/// Tells which of many sockets can be read.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes a flag; the descriptor it returns is new and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) }))
    }

    /// Watches a socket until it is closed.
    pub(crate) fn add(&self, socket: &impl AsRawFd) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: `event` is valid for reading during the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
    }

    /// Waits until some sockets can be read, or for so long, and puts their descriptors into `ready`.
    pub(crate) fn wait(&self, ready: &mut Vec<RawFd>, limit: Duration) -> io::Result<()> {
        let milliseconds = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: pointer and count describe `events`.
        let count = check(unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), BATCH as libc::c_int, milliseconds)
        })?;
        ready.clear();
        ready.extend(events[..count as usize].iter().map(|event| event.u64 as RawFd));
        Ok(())
    }
}
