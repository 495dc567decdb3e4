// Stores attention's output rows as floats, for kernels/combine.wgsl to make activations of: where
// head_dim is no multiple of 32, a block of activations belongs to two heads.

@group(0) @binding(6) var<storage, read_write> partial: array<vec4<f32>>; // [column, head, head_dim / 4]
@group(0) @binding(7) var<storage, read_write> sums: array<vec2<f32>>; // [column, head]: maximum, sum

// Stores a chunk of two rows.
fn store_chunks(at: Chunk, v: array<vec4<f32>, 4>, lid: u32) {
    store_chunk(at, v[0], v[1]);
    store_chunk(Chunk(at.row + 1u, at.chunk, at.kv_head, at.rows_end), v[2], v[3]);
}

fn store_chunk(at: Chunk, lo: vec4<f32>, hi: vec4<f32>) {
    if (at.row < at.rows_end && at.chunk < LINE) {
        let head = (at.row / G * params.kv_heads + at.kv_head) * G + at.row % G;
        let chunk = 2u * (head * LINE + at.chunk);
        partial[chunk] = lo;
        partial[chunk + 1u] = hi;
        // The sum has divided the values already.
        sums[head] = vec2<f32>(0.0, 1.0);
    }
}
