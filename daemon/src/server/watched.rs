//! A connection's byte stream with a meter on it: a peer that floods is told so and cut off, and
//! the seat learns whether streams are open.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::flood::{Flood, Meter};
use super::seats::Seat;

/// GOAWAY's code for a peer that asks too much (RFC 9113, section 7).
const ENHANCE_YOUR_CALM: u8 = 0xb;
/// A stream id that says: any stream of yours may have been looked at.
const LAST_STREAM_ANY: u32 = 0x7fff_ffff;

/// See the module.
pub(super) struct Watched<S> {
    stream: S,
    meter: Meter,
    seat: Arc<Seat>,
    flood: Option<Flood>,
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    pub(super) fn new(stream: S, seat: Arc<Seat>) -> Self {
        Self {
            stream,
            meter: Meter::new(Instant::now()),
            seat,
            flood: None,
        }
    }

    /// Ends the connection; says why if the peer takes it at once.
    fn cut(&mut self, cx: &mut Context<'_>, flood: Flood) -> io::Error {
        tracing::warn!(
            app = self.seat.app(),
            reason = %flood,
            "a connection floods: it is closed"
        );
        self.flood = Some(flood);
        if self.meter.may_interject() {
            let frame = goaway(LAST_STREAM_ANY, &flood.to_string());
            // Nobody waits for a peer that floods: what does not fit is lost.
            let _ = Pin::new(&mut self.stream).poll_write(cx, &frame);
        }
        io::Error::other(flood)
    }

    fn note(&self) {
        self.seat.note(self.meter.has_begun(), self.meter.streams());
    }
}

/// A GOAWAY frame with ENHANCE_YOUR_CALM.
pub(super) fn goaway(last_stream: u32, why: &str) -> Vec<u8> {
    // `why` is a few words of ours.
    let len = u8::try_from(8 + why.len()).unwrap_or(u8::MAX);
    let why = &why.as_bytes()[..usize::from(len) - 8];
    let mut frame = vec![0, 0, len, 0x7, 0, 0, 0, 0, 0];
    frame.extend(last_stream.to_be_bytes());
    frame.extend([0, 0, 0, ENHANCE_YOUR_CALM]);
    frame.extend(why);
    frame
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if let Some(flood) = me.flood {
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut me.stream).poll_read(cx, buf))?;
        let counted = me.meter.received(&buf.filled()[before..], Instant::now());
        me.note();
        Poll::Ready(counted.map_err(|flood| {
            buf.set_filled(before);
            me.cut(cx, flood)
        }))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.meter.sent(&bytes[..written]);
        self.note();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let of_it = left.min(slice.len());
            self.meter.sent(&slice[..of_it]);
            left -= of_it;
        }
        self.note();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::seats::Seats;
    use super::*;
    use crate::limits;

    #[tokio::test]
    async fn a_flood_ends_in_a_goaway_and_an_error() {
        let (mut peer, ours) = tokio::io::duplex(64 << 10);
        let seats = Seats::default();
        let taken = seats.take("app");
        let mut watched = Watched::new(ours, taken.seat());
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let pings = usize::try_from(limits::FRAMES_BURST).unwrap() + 1;
        bytes.extend([0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(pings));
        peer.write_all(&bytes).await.unwrap();
        let mut heard = Vec::new();
        let error = watched.read_to_end(&mut heard).await.unwrap_err();
        assert_eq!(error.to_string(), "too_many_pings");
        assert!(watched.read(&mut [0; 8]).await.is_err(), "it stays closed");
        drop(watched);
        let mut told = Vec::new();
        peer.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, goaway(LAST_STREAM_ANY, "too_many_pings"));
        assert_eq!((told.len(), told[2], told[3]), (31, 22, 7));
    }

    #[tokio::test]
    async fn the_seat_learns_of_streams() {
        let (mut peer, ours) = tokio::io::duplex(4096);
        let seats = Seats::default();
        let taken = seats.take("app");
        let seat = taken.seat();
        let mut watched = Watched::new(ours, taken.seat());
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend([0, 0, 0, 1, 5, 0, 0, 0, 1]);
        peer.write_all(&bytes).await.unwrap();
        let mut heard = vec![0; bytes.len()];
        watched.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, bytes);
        assert!(!seat.is_idle());
        let (head, trailers) = ([0, 0, 0, 1, 4, 0, 0, 0, 1], [0, 0, 0, 1, 5, 0, 0, 0, 1]);
        let slices = [io::IoSlice::new(&head), io::IoSlice::new(&trailers)];
        assert_eq!(watched.write_vectored(&slices).await.unwrap(), 18);
        assert!(seat.is_idle());
    }
}
