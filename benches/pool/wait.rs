//! Waiting for many sockets or a moment, whichever comes first: std has no call for it.

#![expect(unsafe_code, reason = "ppoll, which knows nanoseconds, exists only in libc")]

use std::os::fd::RawFd;
use std::time::Duration;

/// Waits until one of the sockets can be read (or is closed) or the time is over. For each, whether it can.
pub(crate) fn readable(sockets: &[RawFd], limit: Duration) -> Vec<bool> {
    let poll = |&fd: &RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut polled: Vec<_> = sockets.iter().map(poll).collect();
    let limit =
        libc::timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: i64::from(limit.subsec_nanos()) };
    // SAFETY: pointer and length describe `polled`, and `limit` is valid for reading, until the call returns.
    let ready =
        unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, &limit, std::ptr::null()) };
    polled.iter().map(|polled| ready > 0 && polled.revents != 0).collect()
}
