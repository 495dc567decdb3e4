//! Which KV blocks are whose: pure bookkeeping, no GPU.
//!
//! A block is free, or used by sequences, or kept for later prompts ([`PrefixCache`]), or both of the
//! last two. Kept blocks that nobody uses make room as soon as it is wanted, the longest idle first.

#[cfg(test)]
mod tests;

use crate::prefix_cache::{NodeId, PrefixCache, Scope};

/// Positions of a KV block.
pub(crate) const BLOCK_LEN: u32 = 16;

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// Sequences that use it.
    users: u32,
    /// The node that keeps it.
    kept: Option<NodeId>,
}

/// Where a sequence's blocks stand in the tree of its scope.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    root: NodeId,
    /// The last of its blocks that is kept.
    last: NodeId,
    /// How many of its blocks are kept.
    len: usize,
}

/// KV that was there for a prompt.
#[derive(Debug)]
pub(crate) struct Found {
    /// Whole blocks, in order; the caller is a user of each.
    pub(crate) blocks: Vec<u32>,
    /// A block whose first positions come next, and how many: to be copied before it is written to. The
    /// caller is a user of it too, and releases it when it is copied.
    pub(crate) tail: Option<(u32, u32)>,
    /// Where the whole blocks stand.
    pub(crate) chain: Chain,
}

impl Found {
    /// Positions that need not be computed.
    pub(crate) fn positions(&self) -> u32 {
        let blocks = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        blocks * BLOCK_LEN + self.tail.map_or(0, |(_, len)| len)
    }
}

/// A pool of KV blocks.
#[derive(Debug)]
pub(crate) struct KvCache {
    blocks: Vec<Block>,
    free: Vec<u32>,
    prefixes: PrefixCache,
    /// Most kept blocks that nobody uses.
    kept_max: u32,
    /// Free blocks that still hold their last owner's values.
    unclean: Vec<u32>,
}

impl KvCache {
    /// A pool of `blocks` free blocks.
    pub(crate) fn new(blocks: u32) -> Self {
        // Lowest last, so that it is taken first and neighbours go together.
        Self {
            blocks: vec![Block::default(); blocks as usize],
            free: (0..blocks).rev().collect(),
            prefixes: PrefixCache::default(),
            kept_max: blocks,
            unclean: Vec::new(),
        }
    }

    /// From now on keeps at most `blocks` blocks that nobody uses; the longest idle go first.
    pub(crate) fn keep_at_most(&mut self, blocks: u32) {
        self.kept_max = blocks;
        self.trim();
    }

    fn trim(&mut self) {
        while self.prefixes.idle_count() > self.kept_max
            && let Some(block) = self.prefixes.evict()
        {
            self.dropped(block);
        }
    }

    /// Blocks that `positions` positions fill.
    pub(crate) fn blocks_for(positions: u32) -> u32 {
        positions.div_ceil(BLOCK_LEN)
    }

    /// Takes `count` blocks, or none if there are not so many to be had.
    pub(crate) fn allocate(&mut self, count: u32) -> Option<Vec<u32>> {
        if count > self.available() {
            return None;
        }
        while self.free.len() < count as usize {
            let block = self.prefixes.evict()?;
            self.dropped(block);
        }
        let mut taken = self.free.split_off(self.free.len() - count as usize);
        taken.reverse();
        for &block in &taken {
            let state = &mut self.blocks[block as usize];
            assert!(
                state.users == 0 && state.kept.is_none(),
                "block {block} is handed out once"
            );
            state.users = 1;
        }
        Some(taken)
    }

    /// The node of a block that nobody uses is gone.
    fn dropped(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        assert_eq!(
            state.users, 0,
            "block {block} is kept until its users are gone"
        );
        state.kept = None;
        self.free.push(block);
        self.unclean.push(block);
    }

    /// Gives blocks of a sequence back, in the order of its table: those that are kept stay, the others
    /// are free.
    pub(crate) fn release(&mut self, table: &[u32]) {
        for &block in table.iter().rev() {
            let state = &mut self.blocks[block as usize];
            assert!(state.users > 0, "block {block} is given back by a user");
            state.users -= 1;
            if state.users > 0 {
                continue;
            }
            match state.kept {
                Some(node) => self.prefixes.fell_idle(node),
                None => {
                    self.free.push(block);
                    self.unclean.push(block);
                }
            }
        }
        self.trim();
    }

    /// Finds the KV of the longest known beginning of `tokens` in `scope`.
    pub(crate) fn find(&mut self, scope: &Scope, tokens: &[u32]) -> Found {
        let root = self.prefixes.root(scope);
        let mut chain = Chain {
            root,
            last: root,
            len: 0,
        };
        let mut blocks = Vec::new();
        let mut rest = tokens;
        while let Some((whole, after)) = rest.split_at_checked(BLOCK_LEN as usize)
            && let Some(node) = self.prefixes.child(chain.last, whole)
        {
            blocks.push(self.user_of(node));
            (chain.last, chain.len) = (node, chain.len + 1);
            rest = after;
        }
        let near = self.prefixes.nearest(chain.last, rest);
        let tail = near.map(|(node, len)| (self.user_of(node), len));
        Found {
            blocks,
            tail,
            chain,
        }
    }

    /// A sequence becomes a user of the block of `node`.
    fn user_of(&mut self, node: NodeId) -> u32 {
        let block = self.prefixes.block(node);
        self.blocks[block as usize].users += 1;
        self.prefixes.used(node);
        block
    }

    /// Keeps the blocks of a sequence whose KV is computed: `tokens` are those whose positions they
    /// hold, from the first on. A whole block that another sequence has kept meanwhile takes
    /// the place of the sequence's own in `table`. With `ended`, the last block is kept too if it is not
    /// full: nobody writes to it any more.
    pub(crate) fn keep(
        &mut self,
        chain: &mut Chain,
        tokens: &[u32],
        table: &mut [u32],
        ended: bool,
    ) {
        let lists = tokens.chunks(BLOCK_LEN as usize);
        for (list, own) in lists.zip(table.iter_mut()).skip(chain.len) {
            let whole = list.len() == BLOCK_LEN as usize;
            if !whole && !ended {
                return;
            }
            chain.last = match self.prefixes.child(chain.last, list) {
                Some(node) => {
                    let kept = self.user_of(node);
                    self.release(&[*own]);
                    *own = kept;
                    node
                }
                None => {
                    if let Some(part) = self.prefixes.supersede(chain.last, list) {
                        self.dropped(part);
                    }
                    let prefixes = &mut self.prefixes;
                    let node = prefixes.insert(chain.root, chain.last, list, *own);
                    self.blocks[*own as usize].kept = Some(node);
                    node
                }
            };
            chain.len += 1;
        }
    }

    /// A sequence keeps nothing any more: its blocks in `table` that are kept, and that nobody shares, are
    /// its own again. Returns how many of its first blocks are still kept. Kept blocks that nobody uses go
    /// meanwhile: this happens when room is wanted.
    pub(crate) fn leave(&mut self, chain: &Chain, table: &[u32]) -> usize {
        while let Some(block) = self.prefixes.evict() {
            self.dropped(block);
        }
        for (at, &block) in table.iter().enumerate().take(chain.len).rev() {
            let state = &mut self.blocks[block as usize];
            match state.kept {
                Some(node) if state.users == 1 && self.prefixes.is_last(node) => {
                    self.prefixes.forget(node);
                    state.kept = None;
                }
                _ => return at + 1,
            }
        }
        0
    }

    /// Takes the list of blocks that were freed since the last call: their values must be zeroed before
    /// anything is written to them.
    pub(crate) fn take_unclean(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.unclean)
    }

    /// Blocks to be had: free ones, and kept ones that nobody uses.
    pub(crate) fn available(&self) -> u32 {
        count(self.free.len()) + self.prefixes.idle_count()
    }

    /// Blocks that sequences use.
    pub(crate) fn used(&self) -> u32 {
        self.total() - self.available()
    }

    /// Blocks that are kept and that nobody uses.
    pub(crate) fn cached(&self) -> u32 {
        self.prefixes.idle_count()
    }

    /// Those of them that only requests of `scope` can find.
    pub(crate) fn cached_of(&self, scope: &Scope) -> u32 {
        self.prefixes.idle_count_of(scope)
    }

    /// Blocks in all.
    pub(crate) fn total(&self) -> u32 {
        count(self.blocks.len())
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
