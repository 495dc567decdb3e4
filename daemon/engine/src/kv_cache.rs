//! Which KV blocks are whose: pure bookkeeping, no GPU.

/// Positions of a KV block.
pub(crate) const BLOCK_LEN: u32 = 16;

/// A pool of KV blocks. Each block is free or has exactly one owner.
#[derive(Debug)]
pub(crate) struct KvCache {
    free: Vec<u32>,
    owned: Vec<bool>,
}

impl KvCache {
    /// A pool of `blocks` free blocks.
    pub(crate) fn new(blocks: u32) -> Self {
        // Lowest last, so that it is taken first and neighbours go together.
        Self {
            free: (0..blocks).rev().collect(),
            owned: vec![false; blocks as usize],
        }
    }

    /// Blocks that `positions` positions fill.
    pub(crate) fn blocks_for(positions: u32) -> u32 {
        positions.div_ceil(BLOCK_LEN)
    }

    /// Takes `count` blocks, or none if there are not so many.
    pub(crate) fn allocate(&mut self, count: u32) -> Option<Vec<u32>> {
        let keep = self.free.len().checked_sub(count as usize)?;
        let mut taken = self.free.split_off(keep);
        taken.reverse();
        for &block in &taken {
            let owned = &mut self.owned[block as usize];
            assert!(!*owned, "block {block} is handed out once");
            *owned = true;
        }
        Some(taken)
    }

    /// Gives blocks back.
    pub(crate) fn release(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            let owned = &mut self.owned[block as usize];
            assert!(*owned, "block {block} is given back by its owner");
            *owned = false;
            self.free.push(block);
        }
    }

    /// Blocks with an owner.
    pub(crate) fn used(&self) -> u32 {
        self.total() - u32::try_from(self.free.len()).unwrap_or(u32::MAX)
    }

    /// Blocks in all.
    pub(crate) fn total(&self) -> u32 {
        u32::try_from(self.owned.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_all_or_nothing() {
        let mut kv = KvCache::new(4);
        assert_eq!(kv.allocate(3), Some(vec![0, 1, 2]));
        assert_eq!(kv.allocate(2), None);
        assert_eq!(kv.used(), 3);
        kv.release(&[0, 1, 2]);
        assert_eq!(kv.allocate(4), Some(vec![0, 1, 2, 3]));
    }

    #[test]
    #[should_panic(expected = "given back by its owner")]
    fn refuses_a_double_release() {
        let mut kv = KvCache::new(2);
        let blocks = kv.allocate(1).unwrap();
        kv.release(&blocks);
        kv.release(&blocks);
    }

    proptest! {
        #[test]
        fn no_block_is_lost_or_shared(total in 0u32..40, sizes in prop::collection::vec(0u32..12, 0..60)) {
            let mut kv = KvCache::new(total);
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (i, size) in sizes.into_iter().enumerate() {
                match kv.allocate(size) {
                    Some(blocks) => held.push(blocks),
                    None => prop_assert!(size > total - kv.used()),
                }
                if i % 3 == 2 && !held.is_empty() {
                    let blocks = held.swap_remove(i % held.len());
                    kv.release(&blocks);
                }
                let mut all: Vec<u32> = held.concat();
                all.sort_unstable();
                let count = all.len();
                all.dedup();
                prop_assert_eq!(all.len(), count);
                prop_assert_eq!(kv.used() as usize, count);
            }
        }
    }
}
