//! Where a sequence's KV lies, and which part of it a sliding window leaves behind.

use std::ops::Range;

use super::{ROOM_AHEAD, Sequence};
use crate::kv_cache::{BLOCK_LEN, Chain, KvCache};

/// Positions before a window that are kept with it: kernels go through positions in tiles.
const WINDOW_MARGIN: u32 = 64;

/// The blocks that hold a sequence's KV.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// In order of positions.
    pub(crate) blocks: Vec<u32>,
    /// Where they stand in the cache of prefixes; `None` until they were looked up, or if they are not
    /// to be kept.
    pub(crate) chain: Option<Chain>,
    /// Places in `blocks` of those that were given back: they lie behind the model's window, where no
    /// step reads any more.
    pub(crate) shed: Range<usize>,
}

impl Table {
    /// Blocks that it holds.
    pub(crate) fn held(&self) -> u32 {
        u32::try_from(self.blocks.len() - self.shed.len()).unwrap_or(u32::MAX)
    }
}

impl Sequence {
    /// Most blocks that its steps read and write at once; `None`: all of them.
    pub(super) fn blocks_at_once(&self) -> Option<u32> {
        let window = self.model.config.sliding_window?;
        let step = self.model.prefill_chunk.max(ROOM_AHEAD);
        let positions = window.saturating_add(WINDOW_MARGIN).saturating_add(step);
        Some(KvCache::blocks_for(positions))
    }

    /// Places in its table of the blocks that no step of it reads any more.
    pub(crate) fn behind_window(&self) -> usize {
        let Some(window) = self.model.config.sliding_window else {
            return 0;
        };
        let read = window.saturating_add(WINDOW_MARGIN);
        (self.computed.saturating_sub(read) / BLOCK_LEN) as usize
    }
}
