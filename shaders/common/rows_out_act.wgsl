// Stores attention's output rows as activations, in blocks of 32 values: common/act_out_*.wgsl says how.
// A block's values come from four threads, so they meet in workgroup memory first (`shared_rows`,
// which is free by then): [pair of rows, row of the pair, thread of the row, 2].

// Stores a chunk of two rows. All threads come here together, the ACROSS threads of a row with
// consecutive chunks.
fn store_chunks(at: Chunk, v: array<vec4<f32>, 4>, lid: u32) {
    let n = lid % ACROSS;
    let pair = 4u * (lid - n);
    workgroupBarrier();
    shared_rows[pair + 2u * n] = v[0];
    shared_rows[pair + 2u * n + 1u] = v[1];
    shared_rows[pair + 2u * (n + ACROSS)] = v[2];
    shared_rows[pair + 2u * (n + ACROSS) + 1u] = v[3];
    workgroupBarrier();
    // The first four threads of a row store the four blocks of both.
    let row = at.row + n / 2u;
    let chunk = at.chunk - n + 4u * (n % 2u);
    if (n < 4u && row < at.rows_end && chunk < LINE) {
        var y: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            y[i] = shared_rows[pair + 8u * n + i];
        }
        let block = (at.kv_head * G + row % G) * (HEAD_DIM / 32u) + chunk / 4u;
        store_act(row / G, block, params.kv_heads * G * (HEAD_DIM / 32u), &y);
    }
}
