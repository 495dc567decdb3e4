//! Where the stacked q, k, v projection puts its rows, and the rotation on the way.

/// Rows of the stacked projection.
#[derive(Debug, Clone, Copy)]
pub struct QkvShape {
    /// Rows of q.
    pub q_rows: usize,
    /// Rows of k, and of v.
    pub kv_rows: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Rotated pairs of a head; the pairs after them stay as they are.
    pub rope_pairs: usize,
}

/// Shape of a KV cache `[block, kv_head, slot, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct KvShape {
    /// KV heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Positions of a KV block.
    pub block_len: usize,
}

impl KvShape {
    /// Where value 0 of `position` of a sequence with this block table lies in the cache.
    pub fn index(self, table: &[u32], kv_head: usize, position: usize) -> usize {
        let block = table[position / self.block_len] as usize;
        let line = (block * self.kv_heads + kv_head) * self.block_len + position % self.block_len;
        line * self.head_dim
    }
}

/// What a row of the stacked projection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvTarget {
    /// Row of q.
    Q(usize),
    /// KV head and value of k.
    K(usize, usize),
    /// KV head and value of v.
    V(usize, usize),
}

/// What `row` is: q's rows come first, then k's, then v's.
pub fn qkv_target(shape: QkvShape, row: usize) -> QkvTarget {
    let split = |r: usize| (r / shape.head_dim, r % shape.head_dim);
    if row < shape.q_rows {
        QkvTarget::Q(row)
    } else if row < shape.q_rows + shape.kv_rows {
        let (head, value) = split(row - shape.q_rows);
        QkvTarget::K(head, value)
    } else {
        let (head, value) = split(row - shape.q_rows - shape.kv_rows);
        QkvTarget::V(head, value)
    }
}

/// The rotation that `row` takes part in: the number of its pair, or `None` if it stays.
pub fn rope_turn(shape: QkvShape, row: usize) -> Option<usize> {
    let pair = row % shape.head_dim / 2;
    (row < shape.q_rows + shape.kv_rows && pair < shape.rope_pairs).then_some(pair)
}

/// (a, b) -> (a cos - b sin, a sin + b cos).
pub fn rope(a: f64, b: f64, cos: f64, sin: f64) -> (f64, f64) {
    (a * cos - b * sin, a * sin + b * cos)
}
