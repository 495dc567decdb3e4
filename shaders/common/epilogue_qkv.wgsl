// Epilogue of the stacked q, k, v projection: adds the bias, rotates q and k, keeps q as floats and
// writes k and v to their KV blocks as f16. A row pair is one rotation pair:
// (a, b) -> (a cos - b sin, a sin + b cos).

@group(0) @binding(5) var<storage, read_write> q_out: array<f32>; // [column, q_rows]
@group(0) @binding(6) var<storage, read_write> k_cache: array<u32>; // [block, kv_head, slot, head_dim / 2]: two f16
@group(0) @binding(7) var<storage, read_write> v_cache: array<u32>; // [block, kv_head, slot, head_dim / 2]: two f16
@group(0) @binding(8) var<storage, read> bias: array<f32>; // [q_rows + 2 kv_rows], or one word

fn emit(column: u32, local_column: u32, row: u32, local_pair: u32, product: vec2<f32>) {
    var v = product;
    if (params.has_bias == 1u) {
        v += vec2<f32>(bias[row], bias[row + 1u]);
    }
    let pair = (row % params.head_dim) / 2u;
    if (row < params.q_rows + params.kv_rows && pair < params.rope_pairs) {
        let turn = rope_at(column, pair, params.rope_pairs);
        v = vec2<f32>(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
    }
    if (row < params.q_rows) {
        q_out[column * params.q_rows + row] = v.x;
        q_out[column * params.q_rows + row + 1u] = v.y;
        return;
    }
    let kv_row = (row - params.q_rows) % params.kv_rows;
    let position = column_position(column);
    let block = step_words[kv_table(column) + position / params.block_len];
    let kv_heads = params.kv_rows / params.head_dim;
    let line = (block * kv_heads + kv_row / params.head_dim) * params.block_len + position % params.block_len;
    let index = line * (params.head_dim / 2u) + pair;
    if (row < params.q_rows + params.kv_rows) {
        k_cache[index] = pack2x16float(v);
    } else {
        v_cache[index] = pack2x16float(v);
    }
}

fn finish(first_column: u32, columns: u32, first_pair: u32, lid: u32) {}
