//! The system calls that no safe crate offers: `recvmmsg`, `sendmmsg`, the program that spreads datagrams over the
//! sockets of a group, and a few options of sockets. All `unsafe` of this crate is in this file.
#![expect(unsafe_code, reason = "batched datagrams: socket2 and tokio have no safe recvmmsg and sendmmsg")]

use std::fs::File;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};

/// Datagrams taken or sent by one system call.
pub const BATCH: usize = 32;
/// Room for one received datagram. Queries have under 512 bytes; what is longer is cut, and then
/// malformed.
const PACKET: usize = 4096;

/// A peer as the kernel wrote it. A `sockaddr_in6` has room for a `sockaddr_in`, and family and port
/// at the same places; the address of a `sockaddr_in` lies where the other has its flow label.
type RawPeer = libc::sockaddr_in6;

fn decode(raw: &RawPeer) -> SocketAddr {
    let port = u16::from_be(raw.sin6_port);
    if i32::from(raw.sin6_family) == libc::AF_INET {
        SocketAddr::from((Ipv4Addr::from(raw.sin6_flowinfo.to_ne_bytes()), port))
    } else {
        let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
        SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into()
    }
}

/// Datagrams as they came. Stays on the thread that made it, since it holds pointers into itself.
pub struct Inbox {
    packets: Box<[[u8; PACKET]]>,
    peers: Box<[RawPeer]>,
    /// Point at `packets` and `peers`, which never move: they are on the heap and never replaced.
    headers: Box<[libc::mmsghdr]>,
    _slices: Box<[libc::iovec]>,
    received: usize,
}

impl Inbox {
    /// An empty one.
    pub fn new() -> Self {
        let mut packets = vec![[0; PACKET]; BATCH].into_boxed_slice();
        // SAFETY: sockaddr_in6 is plain data for which all zeros is a value.
        let mut peers: Box<[RawPeer]> = (0..BATCH).map(|_| unsafe { zeroed() }).collect();
        let mut slices: Box<[libc::iovec]> = packets
            .iter_mut()
            .map(|packet| libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: PACKET })
            .collect();
        let headers = peers
            .iter_mut()
            .zip(slices.iter_mut())
            .map(|(peer, slice)| {
                // SAFETY: mmsghdr is plain data; zero means no control message and no flags.
                let mut header: libc::mmsghdr = unsafe { zeroed() };
                header.msg_hdr.msg_name = std::ptr::from_mut(peer).cast();
                header.msg_hdr.msg_namelen = size_of::<RawPeer>() as u32;
                header.msg_hdr.msg_iov = slice;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self { packets, peers, headers, _slices: slices, received: 0 }
    }

    /// Takes what has arrived, and waits for the first datagram if nothing has, as long as the
    /// socket's receive timeout. With `wait` false it never waits.
    ///
    /// # Errors
    /// The system's own; `WouldBlock` when there was nothing.
    pub fn receive(&mut self, socket: &UdpSocket, wait: bool) -> io::Result<usize> {
        // The kernel overwrote these with the lengths of the last call's peers.
        for header in &mut self.headers[..self.received] {
            header.msg_hdr.msg_namelen = size_of::<RawPeer>() as u32;
        }
        let flags = if wait { libc::MSG_WAITFORONE } else { libc::MSG_DONTWAIT };
        // SAFETY: each header points at a peer and one slice of PACKET bytes, all owned by self,
        // alive and unshared for the time of the call; the count is that of the headers.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as u32,
                flags,
                std::ptr::null_mut(),
            )
        };
        self.received = 0;
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        self.received = received as usize;
        Ok(self.received)
    }

    /// The datagrams of the last call, each with its sender.
    pub fn packets(&self) -> impl Iterator<Item = (&[u8], Peer)> {
        let received = self.headers[..self.received].iter();
        received.zip(&self.packets).zip(&self.peers).map(|((header, packet), raw)| {
            let length = (header.msg_len as usize).min(PACKET);
            (&packet[..length], Peer(*raw))
        })
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Who sent a datagram.
#[derive(Clone, Copy)]
pub struct Peer(RawPeer);

impl Peer {
    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        decode(&self.0)
    }
}

impl From<SocketAddr> for Peer {
    fn from(addr: SocketAddr) -> Self {
        let sin6_port = addr.port().to_be();
        let s6_addr = |ip: Ipv6Addr| libc::in6_addr { s6_addr: ip.octets() };
        Self(match addr {
            SocketAddr::V4(addr) => RawPeer {
                sin6_family: libc::AF_INET as libc::sa_family_t,
                sin6_port,
                sin6_flowinfo: u32::from_ne_bytes(addr.ip().octets()),
                sin6_addr: s6_addr(Ipv6Addr::UNSPECIFIED),
                sin6_scope_id: 0,
            },
            SocketAddr::V6(addr) => RawPeer {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port,
                sin6_flowinfo: addr.flowinfo(),
                sin6_addr: s6_addr(*addr.ip()),
                sin6_scope_id: addr.scope_id(),
            },
        })
    }
}

/// Datagrams to be sent by one call.
pub struct Outbox {
    messages: Box<[Vec<u8>]>,
    peers: Box<[RawPeer]>,
    filled: usize,
}

impl Outbox {
    /// An empty one, with room for messages of `size` bytes each.
    pub fn new(size: usize) -> Self {
        Self {
            messages: (0..BATCH).map(|_| Vec::with_capacity(size)).collect(),
            // SAFETY: as in Inbox::new.
            peers: (0..BATCH).map(|_| unsafe { zeroed() }).collect(),
            filled: 0,
        }
    }

    /// The buffer for the next message. There is one for each datagram of an inbox.
    #[expect(clippy::should_implement_trait, reason = "it lends a place, again and again the same")]
    pub fn next(&mut self) -> &mut Vec<u8> {
        &mut self.messages[self.filled]
    }

    /// Addresses the message that [`Outbox::next`] gave.
    pub fn commit(&mut self, peer: &Peer) {
        self.peers[self.filled] = peer.0;
        self.filled += 1;
    }

    /// Gives back the memory of messages that were longer than usual.
    pub fn shrink(&mut self, usual: usize) {
        for message in self.messages.iter_mut().filter(|message| message.capacity() > usual) {
            *message = Vec::new();
        }
    }

    /// Sends all messages without waiting and returns how many could not be sent. A failing peer
    /// (a firewall, an unreachable address) costs nobody else.
    pub fn send(&mut self, socket: &UdpSocket) -> usize {
        let total = std::mem::take(&mut self.filled);
        let mut slices: [libc::iovec; BATCH] =
            [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: mmsghdr is plain data; zero means no control message and no flags.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        for index in 0..total {
            let message = &mut self.messages[index];
            slices[index] = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: message.len() };
            let header = &mut headers[index].msg_hdr;
            let raw = &mut self.peers[index];
            header.msg_namelen = match i32::from(raw.sin6_family) {
                libc::AF_INET => size_of::<libc::sockaddr_in>() as u32,
                _ => size_of::<libc::sockaddr_in6>() as u32,
            };
            header.msg_name = std::ptr::from_mut(raw).cast();
            header.msg_iov = &mut slices[index];
            header.msg_iovlen = 1;
        }
        let (mut sent, mut failed) = (0, 0);
        while sent < total {
            // SAFETY: the headers from `sent` to `total` point at peers, slices and messages that
            // live and stay in place until this function returns.
            let count = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    headers[sent..].as_mut_ptr(),
                    (total - sent) as u32,
                    libc::MSG_DONTWAIT,
                )
            };
            if count > 0 {
                sent += count as usize;
            } else {
                // The first one failed: pass it over. Ends, since `sent` grows each time.
                sent += 1;
                failed += 1;
            }
        }
        failed
    }
}

/// Raises the soft limit of open files to the hard one and returns it. systemd and containerd start
/// programs with a soft limit of 1024 (for `select`, which is not used here), fewer than the TCP clients
/// that the limits allow: beyond it no upstream could be asked any more.
///
/// # Errors
/// The system's own.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take a pointer to one rlimit, which is alive and ours.
    let done = unsafe {
        let got = libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        if got < 0 { got } else { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(limit.rlim_cur) }
}

/// Has all threads take memory from one place, so that what those of the relay have used is used again: glibc gives each a
/// place of its own otherwise, and keeps it (mallopt(3)). For a process that hardly takes any.
pub fn share_memory_among_threads() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's, before there is another thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Has a program that prints end quietly when nobody reads on (`nodens stats | head -1`): the standard library has it fail
/// instead. Not for one that serves others.
pub fn end_with_the_reader() {
    // SAFETY: the default action needs no handler, and nothing else runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Lets the kernel choose a socket of the group at random for each datagram, so that one busy client
/// uses all of them: its own choice, by a hash of the addresses, would give it a single one.
///
/// # Errors
/// The system's own.
pub fn spread(socket: &UdpSocket, sockets: u32) -> io::Result<()> {
    /// linux/filter.h: ancillary data begins here, and the random number stands at 56.
    const RANDOM: u32 = (-0x1000i32 + 56) as u32;
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the option takes a sock_fprog, whose filter points at three live instructions; the
    // kernel copies both before it returns.
    unsafe { set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &filter) }
}

/// Sets the size of the receive buffer in bytes, beyond `net.core.rmem_max` if need be, which needs CAP_NET_ADMIN
/// (socket(7), SO_RCVBUFFORCE).
///
/// # Errors
/// The system's own.
pub fn force_receive_buffer(socket: &impl AsRawFd, size: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option takes an int.
    unsafe { set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size) }
}

/// Lets the socket be bound to an IPv6 address that no link holds (linux/in6.h, IPV6_TRANSPARENT), which needs
/// CAP_NET_ADMIN.
///
/// # Errors
/// The system's own.
pub fn set_transparent_v6(socket: &impl AsRawFd) -> io::Result<()> {
    const ON: libc::c_int = 1;
    // SAFETY: the option takes an int.
    unsafe { set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, &ON) }
}

/// What waits in a socket to be read, in bytes as the kernel reckons them, and how many datagrams it has had no room
/// for (linux/sock_diag.h, SO_MEMINFO).
///
/// # Errors
/// The system's own.
pub fn queue_of(socket: &impl AsRawFd) -> io::Result<(u32, u32)> {
    // SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_DROPS and SK_MEMINFO_VARS.
    const WAITING: usize = 0;
    const DROPS: usize = 8;
    const ALL: usize = 9;
    let mut values = [0u32; ALL];
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, all of which belong to `values`.
    let done = unsafe {
        let values = values.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, values, &mut length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok((values[WAITING], values[DROPS])) }
}

/// The user of the process at the other end of a unix socket, as it was when it connected (unix(7), SO_PEERCRED). Its number
/// is not asked for: one in another PID namespace has none.
///
/// # Errors
/// The system's own.
pub fn peer_user(socket: &impl AsRawFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, all of which belong to `peer`, which is plain data.
    let done = unsafe {
        let peer = std::ptr::from_mut(&mut peer).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, peer, &mut length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(peer.uid) }
}

/// The descriptors from 3 on that this process was started with (sd_listen_fds(3)), kept from its own children; `None` for
/// one that is not open. All are given away by the first call, and none by another.
pub fn inherit(count: usize) -> Vec<Option<OwnedFd>> {
    static GIVEN: AtomicBool = AtomicBool::new(false);
    if GIVEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let take = |at: usize| {
        let number = FIRST_INHERITED + at as RawFd;
        // SAFETY: whether the number is a descriptor is what the call finds out; it changes but the descriptor's own flag.
        let is_open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        // SAFETY: it is open, whoever started this process meant it for this process, and it is given away once.
        is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
    };
    (0..count).map(take).collect()
}

/// Starts a program with these descriptors at the numbers from 3 on (sd_listen_fds(3)), and no signal blocked.
///
/// # Errors
/// The system's own.
pub fn spawn_with(command: &mut Command, descriptors: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let first_behind = FIRST_INHERITED + descriptors.len() as RawFd;
    // What the standard library opens for the time of the start must not stand where ours will.
    let mut placeholders = Vec::new();
    let nothing = File::open("/dev/null")?;
    loop {
        let place = rustix::io::fcntl_dupfd_cloexec(&nothing, FIRST_INHERITED)?;
        if place.as_raw_fd() >= first_behind {
            break;
        }
        placeholders.push(place);
    }
    // Copies beyond that range, so that none is overwritten before it is copied.
    let copies = descriptors
        .iter()
        .map(|descriptor| rustix::io::fcntl_dupfd_cloexec(descriptor, first_behind))
        .collect::<Result<Vec<_>, _>>()?;
    let numbers: Vec<RawFd> = copies.iter().map(AsRawFd::as_raw_fd).collect();
    let arrange = move || {
        for (at, number) in numbers.iter().enumerate() {
            // SAFETY: dup2 touches no memory; that it replaces a descriptor is wanted, and concerns the child alone.
            if unsafe { libc::dup2(*number, FIRST_INHERITED + at as RawFd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // What waits in a descriptor of ours must reach the program.
        // SAFETY: sigset_t is plain data, made by sigemptyset before it is used.
        unsafe {
            let mut none: libc::sigset_t = zeroed();
            libc::sigemptyset(&mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure calls nothing but dup2, sigemptyset and pthread_sigmask, which are
    // async-signal-safe (signal-safety(7)), and allocates nothing.
    unsafe { command.pre_exec(arrange) };
    command.spawn()
}

/// The first number of inherited descriptors (sd_listen_fds(3)).
pub const FIRST_INHERITED: RawFd = 3;

/// Has these signals wait in a descriptor, from where they are read one by one (signalfd(2)). A program that
/// [`spawn_with`] starts does not inherit that.
///
/// # Errors
/// The system's own.
pub fn signals(numbers: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data, made by sigemptyset before it is used; all calls take pointers to it while it is
    // alive. The descriptor is new and nobody else's.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&mut set);
        for &number in numbers {
            libc::sigaddset(&mut set, number);
        }
        let refused = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if refused != 0 {
            return Err(io::Error::from_raw_os_error(refused));
        }
        let descriptor = libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if descriptor < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(descriptor)) }
    }
}

/// The next signal that waits in [`signals`].
pub fn next_signal(signals: &impl AsFd) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    let length = rustix::io::read(signals, &mut info).ok()?;
    // The number comes first.
    (length == info.len()).then(|| i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// Sets a socket's option.
///
/// # Safety
/// `T` is what the option takes, plain data; what it points at is alive.
unsafe fn set_option<T>(socket: &impl AsRawFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as are given, which belong to `value`; the rest is the caller's promise.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as u32,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn exchange(bind: &str) {
        let server = UdpSocket::bind(bind).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let clients: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind(bind).unwrap()).collect();
        let (mut inbox, mut outbox) = (Inbox::new(), Outbox::new(512));
        for round in 0..3u8 {
            for (index, client) in clients.iter().enumerate() {
                client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                client.send_to(&vec![round; 1 + index], server.local_addr().unwrap()).unwrap();
            }
            let mut taken = 0;
            while taken < clients.len() {
                taken += inbox.receive(&server, true).unwrap();
                for (packet, peer) in inbox.packets() {
                    let client = &clients[packet.len() - 1];
                    assert_eq!(peer.addr(), client.local_addr().unwrap());
                    outbox.next().clear();
                    outbox.next().extend_from_slice(packet);
                    outbox.commit(&Peer::from(peer.addr()));
                }
                assert_eq!(outbox.send(&server), 0);
            }
            for (index, client) in clients.iter().enumerate() {
                let mut buffer = [9; 16];
                assert_eq!(client.recv(&mut buffer).unwrap(), 1 + index);
                assert_eq!(buffer[0], round);
            }
        }
        let nothing = inbox.receive(&server, false).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn datagrams_come_and_go_in_batches() {
        exchange("127.0.0.1:0");
        exchange("[::1]:0");
    }

    #[test]
    fn the_soft_limit_of_open_files_becomes_the_hard_one() {
        let raised = raise_open_files().unwrap().to_string();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), [&raised, &raised]);
    }
}
