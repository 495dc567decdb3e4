// Stores attention's output rows as floats, for kernels/combine.wgsl to make activations of: where
// head_dim is no multiple of 32, a block of activations belongs to two heads.

@group(0) @binding(6) var<storage, read_write> partial: array<vec4<f32>>; // [column, head, head_dim / 4]
@group(0) @binding(7) var<storage, read_write> sums: array<vec2<f32>>; // [column, head]: maximum, sum

// Stores chunk `chunk` (of the SLAB chunks from `first_chunk` on) of rows `row` and `row + 1`.
fn store_chunks(row: u32, rows_end: u32, kv_head: u32, first_chunk: u32, chunk: u32, v: array<vec4<f32>, 4>, lid: u32) {
    for (var n = 0u; n < 2u; n++) {
        let mine = row + n;
        if (mine < rows_end && chunk < SLAB) {
            let head = mine / G * params.kv_heads * G + kv_head * G + mine % G;
            let at = 2u * (head * (HEAD_DIM / 8u) + first_chunk + chunk);
            partial[at] = v[2u * n];
            partial[at + 1u] = v[2u * n + 1u];
            // The sum has divided the values already.
            sums[head] = vec2<f32>(0.0, 1.0);
        }
    }
}
