//! Finds the heads of HTTP/2 frames in a run of bytes that comes in pieces of any size.

/// Kinds of frames (RFC 9113, section 6).
pub(super) const DATA: u8 = 0x0;
pub(super) const HEADERS: u8 = 0x1;
pub(super) const RST_STREAM: u8 = 0x3;
pub(super) const SETTINGS: u8 = 0x4;
pub(super) const PING: u8 = 0x6;
pub(super) const CONTINUATION: u8 = 0x9;
/// Flag of DATA and HEADERS: nothing follows from this side.
pub(super) const END_STREAM: u8 = 0x1;

/// Bytes of a frame's head.
const HEAD_BYTES: usize = 9;
/// Bytes that a client sends before its first frame.
const PREFACE_BYTES: usize = 24;

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes that follow it.
    pub(super) len: usize,
    pub(super) kind: u8,
    flags: u8,
    pub(super) stream: u32,
}

impl Head {
    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes to pass over: the preface's, or a payload's.
    skip: usize,
    head: [u8; HEAD_BYTES],
    /// Bytes of `head` that are there.
    have: usize,
}

impl Frames {
    /// Frames of a client, which begins with the preface.
    pub(super) fn after_preface() -> Self {
        Self {
            skip: PREFACE_BYTES,
            ..Self::default()
        }
    }

    /// The next head in `bytes`, which moves on to what follows it; `None` when all is read.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let rest = &bytes[skipped..];
        let taken = (HEAD_BYTES - self.have).min(rest.len());
        self.head[self.have..self.have + taken].copy_from_slice(&rest[..taken]);
        self.have += taken;
        *bytes = &rest[taken..];
        if self.have < HEAD_BYTES {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, s, t, u, v] = self.head;
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.skip = len;
        Some(Head {
            len,
            kind,
            flags,
            stream: u32::from_be_bytes([s & 0x7f, t, u, v]),
        })
    }

    /// Tells whether the bytes so far end where a frame ends.
    pub(super) fn at_boundary(&self) -> bool {
        self.skip == 0 && self.have == 0
    }
}
