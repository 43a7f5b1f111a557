//! The system calls of this bench that std and socket2 lack. `compare/sys.rs` has those that both benches need.

#![expect(unsafe_code, reason = "batches of datagrams and their times of arrival exist only in libc")]

use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Datagrams by one call.
pub(crate) const BATCH: usize = 64;
/// Room for a reply: above the EDNS size of 1,232.
const ROOM: usize = 1536;
/// Room for one control message with a timespec in it.
const CONTROL: usize = 64;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set(socket: &UdpSocket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: pointer and size describe an int that lives until the call returns.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Lets a socket hold so many bytes, or as many as the system allows to others than root, and note when each
/// datagram came.
pub(crate) fn prepare(socket: &UdpSocket, buffer: i32) -> io::Result<()> {
    set(socket, libc::SO_RCVBUFFORCE, buffer).or_else(|_| set(socket, libc::SO_RCVBUF, buffer))?;
    set(socket, libc::SO_SNDBUFFORCE, buffer).or_else(|_| set(socket, libc::SO_SNDBUF, buffer))?;
    set(socket, libc::SO_TIMESTAMPNS, 1)
}

/// Time as the kernel notes it for datagrams, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
    nanoseconds(&time)
}

fn nanoseconds(time: &libc::timespec) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Lets the calling thread wake within a microsecond of its time instead of fifty.
pub(crate) fn wake_precisely() {
    // SAFETY: the call takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000 as libc::c_ulong) };
}

/// Puts the calling thread behind others on its core.
pub(crate) fn step_back() {
    // SAFETY: the call takes numbers only; on Linux 0 means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Sends datagrams without waiting, and returns how many the socket took.
pub(crate) fn send(socket: &UdpSocket, packets: &[Vec<u8>]) -> usize {
    let mut sent = 0;
    for batch in packets.chunks(BATCH) {
        // SAFETY: plain data, for which all zeroes is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        for ((packet, slice), header) in batch.iter().zip(&mut slices).zip(&mut headers) {
            *slice = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: as many headers as the batch is long point at slices and packets that live until the call
        // returns; the kernel only reads what is sent.
        let taken = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                batch.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        sent += usize::try_from(taken).unwrap_or(0);
    }
    sent
}

/// Buffers for a batch of replies.
pub(crate) struct Inbox {
    rooms: Vec<[u8; ROOM]>,
    controls: Vec<[u64; CONTROL / 8]>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { rooms: vec![[0; ROOM]; BATCH], controls: vec![[0; CONTROL / 8]; BATCH] }
    }

    /// Gives each datagram that has come to `take`, with the time of its arrival. False if there was none.
    pub(crate) fn receive(&mut self, socket: &UdpSocket, mut take: impl FnMut(&[u8], u64)) -> bool {
        // SAFETY: plain data, for which all zeroes is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: ROOM }; BATCH];
        for index in 0..BATCH {
            slices[index].iov_base = self.rooms[index].as_mut_ptr().cast();
            let header = &mut headers[index].msg_hdr;
            header.msg_iov = &mut slices[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
        }
        // SAFETY: each header points at a slice, a room and a control buffer that live until the call returns and
        // that nobody else uses.
        let taken = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let taken = usize::try_from(taken).unwrap_or(0);
        for (header, room) in headers[..taken].iter().zip(&self.rooms) {
            take(&room[..(header.msg_len as usize).min(ROOM)], arrival(&header.msg_hdr));
        }
        taken > 0
    }
}

/// The time in a message's first control message.
fn arrival(header: &libc::msghdr) -> u64 {
    // SAFETY: the kernel has written the control buffer, which is aligned and alive, and its length.
    unsafe {
        let control = libc::CMSG_FIRSTHDR(header);
        if control.is_null()
            || (*control).cmsg_level != libc::SOL_SOCKET
            || (*control).cmsg_type != libc::SCM_TIMESTAMPNS
        {
            return now_ns();
        }
        nanoseconds(&libc::CMSG_DATA(control).cast::<libc::timespec>().read_unaligned())
    }
}

/// Sleeps until a moment of [`now_ns`].
pub(crate) fn sleep_until(at_ns: u64) {
    let left = at_ns.saturating_sub(now_ns());
    if left > 0 {
        std::thread::sleep(Duration::from_nanos(left));
    }
}
