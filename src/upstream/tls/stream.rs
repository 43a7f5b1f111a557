//! A stream under TLS as a [`Link`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::upstream::transport::{Link, Reader};

/// Both directions of a link in one, as rustls wants them.
pub(super) struct Joined(pub(super) Link);

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.reader).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.writer).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.writer).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.writer.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.writer).poll_shutdown(cx)
    }
}

/// The two directions of a stream after its handshake. One task should use both: what could not be written
/// at once is written by whichever is polled next.
pub(super) fn split(stream: TlsStream<Joined>) -> Link {
    let both = Arc::new(Mutex::new(stream));
    Link { reader: Box::new(ReadHalf(Arc::clone(&both))), writer: Box::new(WriteHalf(both)) }
}

type Both = Mutex<TlsStream<Joined>>;

/// Never waits: both halves belong to one task.
fn lock(both: &Both) -> MutexGuard<'_, TlsStream<Joined>> {
    both.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends the records that rustls holds back because the stream took no more. Whoever wrote them believes them gone.
fn send_rest(stream: &mut TlsStream<Joined>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    if stream.get_ref().1.wants_write() { Pin::new(stream).poll_flush(cx) } else { Poll::Ready(Ok(())) }
}

struct ReadHalf(Arc<Both>);

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut stream = lock(&self.0);
        if let Poll::Ready(Err(error)) = send_rest(&mut stream, cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut *stream).poll_read(cx, buffer)
    }
}

impl Reader for ReadHalf {
    fn acknowledge(&self) {
        lock(&self.0).get_ref().0.0.reader.acknowledge();
    }
}

struct WriteHalf(Arc<Both>);

impl AsyncWrite for WriteHalf {
    /// The bytes of one call are one record, or as many as they need. As long as records wait no more are made, so
    /// memory is bounded by one call.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut stream = lock(&self.0);
        ready!(send_rest(&mut stream, cx))?;
        Pin::new(&mut *stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_shutdown(cx)
    }
}

impl Drop for WriteHalf {
    /// Says that nothing more will come (RFC 8446 §6.1), as far as the stream takes it at once. A server that
    /// misses it loses nothing.
    fn drop(&mut self) {
        let _ = Pin::new(&mut *lock(&self.0)).poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }
}
