//! Counts the frames of one HTTP/2 connection and says when the peer sends more than its share.
//!
//! Pure: bytes and a clock's readings in, a verdict out. It reads the nine-byte heads of frames and
//! skips what they announce; what a frame means is the HTTP/2 library's affair.

mod frames;
#[cfg(test)]
mod tests;

use std::time::Instant;

use frames::{DATA, END_STREAM, Frames, HEADERS, Head, PING, RST_STREAM, SETTINGS};

use crate::limits;

/// What a peer did too much of. The words reach the peer, as the reason of its GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flood {
    /// Frames for which the daemon had nothing to answer.
    #[error("too many frames")]
    Frames,
    /// As `Frames`, and the last one was a PING: clients that ping know this word of gRPC's, and
    /// ping less after it.
    #[error("too_many_pings")]
    Pings,
    /// Pieces of one header block.
    #[error("too many continuations")]
    Continuations,
    /// Streams open at once that the daemon has not refused yet.
    #[error("too many streams")]
    Streams,
    /// Bytes of requests that are not complete.
    #[error("too many bytes of unfinished requests")]
    Bodies,
}

/// A stream that neither side has ended.
struct Open {
    id: u32,
    /// Bytes of its body so far; `None` once the body is complete.
    body: Option<usize>,
    /// Its answer has begun, and has earned the peer frames.
    answered: bool,
}

/// See the module.
pub(crate) struct Meter {
    inbound: Frames,
    outbound: Frames,
    /// Frames that the peer may send now.
    credit: f64,
    refilled: Instant,
    open: Vec<Open>,
    last_id: u32,
    /// Bytes of all bodies that are not complete.
    body_bytes: usize,
    continuations: u32,
    begun: bool,
}

impl Meter {
    /// For a connection that begins now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            inbound: Frames::after_preface(),
            outbound: Frames::default(),
            credit: f64::from(limits::FRAMES_BURST),
            refilled: now,
            open: Vec::new(),
            last_id: 0,
            body_bytes: 0,
            continuations: 0,
            begun: false,
        }
    }

    /// Tells whether the peer has sent a first frame.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Streams that neither side has ended.
    pub(crate) fn streams(&self) -> usize {
        self.open.len()
    }

    /// Tells whether a frame of ours may follow what we have sent.
    pub(crate) fn may_interject(&self) -> bool {
        self.outbound.at_boundary()
    }

    /// Counts bytes from the peer.
    ///
    /// # Errors
    /// It is a flood: the connection is to be closed.
    pub(crate) fn received(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        let elapsed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        self.earn(elapsed * f64::from(limits::FRAMES_PER_SECOND));
        while let Some(head) = self.inbound.next(&mut bytes) {
            self.begun = true;
            self.count(head)?;
        }
        Ok(())
    }

    /// Counts bytes to the peer: whatever answers a stream earns the peer more frames.
    pub(crate) fn sent(&mut self, mut bytes: &[u8]) {
        while let Some(head) = self.outbound.next(&mut bytes) {
            match head.kind {
                HEADERS => {
                    self.earn(f64::from(limits::FRAMES_PER_ANSWER));
                    if let Some(open) = self.find(head.stream) {
                        open.answered = true;
                    }
                }
                DATA if head.len >= limits::DATA_BYTES_EARNING => {
                    self.earn(f64::from(limits::FRAMES_PER_DATA));
                }
                _ => {}
            }
            let ends = matches!(head.kind, HEADERS | DATA) && head.has(END_STREAM);
            if ends || head.kind == RST_STREAM {
                self.close(head.stream);
            }
        }
    }

    fn earn(&mut self, frames: f64) {
        self.credit = (self.credit + frames).min(f64::from(limits::FRAMES_BURST));
    }

    fn count(&mut self, head: Head) -> Result<(), Flood> {
        let cost = match head.kind {
            // What a request has earned by being answered is lost when it is cancelled: else a peer
            // could have requests begun, and cancel them, for ever.
            RST_STREAM if self.find(head.stream).is_some_and(|open| open.answered) => {
                1 + limits::FRAMES_PER_ANSWER
            }
            // Its bytes are bounded by what follows and by flow control.
            DATA if head.len >= limits::DATA_BYTES_SMALL => 0,
            // Each one touches every open stream.
            SETTINGS => limits::SETTINGS_COST,
            _ => 1,
        };
        self.credit -= f64::from(cost);
        if self.credit < 0.0 {
            return Err(if head.kind == PING {
                Flood::Pings
            } else {
                Flood::Frames
            });
        }
        match head.kind {
            HEADERS => self.open(head)?,
            DATA => self.grow(head)?,
            RST_STREAM => self.close(head.stream),
            frames::CONTINUATION => {
                self.continuations += 1;
                if self.continuations > limits::CONTINUATIONS_MAX {
                    return Err(Flood::Continuations);
                }
                return Ok(());
            }
            _ => {}
        }
        self.continuations = 0;
        Ok(())
    }

    /// HEADERS of the peer: they open a stream, or end its body as trailers.
    fn open(&mut self, head: Head) -> Result<(), Flood> {
        if head.stream <= self.last_id {
            if head.has(END_STREAM) {
                self.complete(head.stream);
            }
            return Ok(());
        }
        self.last_id = head.stream;
        if self.open.len() >= limits::STREAMS_TRACKED_MAX {
            return Err(Flood::Streams);
        }
        self.open.push(Open {
            id: head.stream,
            body: (!head.has(END_STREAM)).then_some(0),
            answered: false,
        });
        Ok(())
    }

    fn grow(&mut self, head: Head) -> Result<(), Flood> {
        let open = self.find(head.stream);
        let Some(bytes) = open.and_then(|open| open.body.as_mut()) else {
            return Ok(());
        };
        *bytes += head.len;
        self.body_bytes += head.len;
        if self.body_bytes > limits::REQUEST_BYTES_MAX {
            return Err(Flood::Bodies);
        }
        if head.has(END_STREAM) {
            self.complete(head.stream);
        }
        Ok(())
    }

    fn find(&mut self, stream: u32) -> Option<&mut Open> {
        self.open.iter_mut().find(|open| open.id == stream)
    }

    /// The peer has sent all of its request.
    fn complete(&mut self, stream: u32) {
        let body = self.find(stream).and_then(|open| open.body.take());
        self.body_bytes -= body.unwrap_or_default();
    }

    fn close(&mut self, stream: u32) {
        self.complete(stream);
        self.open.retain(|open| open.id != stream);
    }
}
