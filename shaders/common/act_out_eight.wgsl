// Stores int8 activations as common/act_out_int8.wgsl does, a block by eight threads.

@group(0) @binding(5) var<storage, read_write> act_out: array<vec4<u32>>; // [column, block, 3]: q 0..15, q 16..31, (d, s, 0, 0)

// Stores word `word` of block `index` of all; the first word's thread the block's scale and sum too.
fn store_eighth(index: u32, word: u32, q: EightQuants) {
    act_out[3u * index + word / 4u][word % 4u] = q.word;
    if (word == 0u) {
        act_out[3u * index + 2u] = bitcast<vec4<u32>>(vec4<f32>(q.scale, q.sum, 0.0, 0.0));
    }
}
