// Stores attention's output rows as activations, in blocks of 32 values: common/act_out_*.wgsl says how.
// A block's values come from four threads, so they meet in workgroup memory first (`shared_rows`, which is free by
// then): [pair of rows, row of the pair, thread of the row, 2].

// Stores chunk `chunk` (of the SLAB chunks from `first_chunk` on) of rows `row` and `row + 1`. All
// threads come here together, the ACROSS threads of a row with consecutive chunks.
fn store_chunks(row: u32, rows_end: u32, kv_head: u32, first_chunk: u32, chunk: u32, v: array<vec4<f32>, 4>, lid: u32) {
    workgroupBarrier();
    let at = 4u * (lid - lid % ACROSS) + 2u * (lid % ACROSS);
    shared_rows[at] = v[0];
    shared_rows[at + 1u] = v[1];
    shared_rows[at + 2u * ACROSS] = v[2];
    shared_rows[at + 2u * ACROSS + 1u] = v[3];
    workgroupBarrier();
    // The ACROSS threads of two rows store their four blocks.
    let n = lid % ACROSS;
    let mine = row + n / 2u;
    let own_chunk = chunk - n + 4u * (n % 2u);
    if (n < 4u && mine < rows_end && own_chunk < SLAB) {
        var y: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            y[i] = shared_rows[4u * (lid - n) + 8u * n + i];
        }
        let block = (kv_head * G + mine % G) * (HEAD_DIM / 32u) + (first_chunk + own_chunk) / 4u;
        store_act(mine / G, block, params.kv_heads * G * (HEAD_DIM / 32u), &y);
    }
}
