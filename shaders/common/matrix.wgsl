// Parameters of one matrix product: a row range ("part") of a weight matrix times columns of activations.

struct MatrixParams {
    pairs: u32, // row pairs of this part; the last row may be padding
    blocks: u32, // blocks of 32 columns in a row
    first_row: u32, // first row of this part in the whole matrix
    rows: u32, // rows of the whole matrix without padding
    out_stride: u32, // floats from one column's result to the next
    q_rows: u32, // qkv only: rows of q
    kv_rows: u32, // qkv only: rows of k, and of v
    head_dim: u32, // qkv only
    rope_pairs: u32, // qkv only: rotated pairs of a head
    block_len: u32, // qkv only: positions of a KV block
    has_bias: u32, // qkv only: 1 where `bias` counts
    columns_max: u32, // 0: as many columns as the step has; else this many (logits)
    eps: f32, // normed input only: added to the mean square
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: MatrixParams;
