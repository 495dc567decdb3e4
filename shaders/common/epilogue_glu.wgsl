// Epilogue of the gate and up projections, whose rows alternate (gate, up): h = silu(gate) * up,
// gathered in blocks of 32 and stored as the down projection's activations. A workgroup holds whole
// blocks: 32 row pairs for each of its columns.

var<workgroup> tile: array<f32, 32u * TILE_COLUMNS>; // [local column, local pair]

fn emit(column: u32, local_column: u32, row: u32, local_pair: u32, v: vec2<f32>) {
    tile[local_column * 32u + local_pair] = v.x / (1.0 + exp(-v.x)) * v.y;
}

fn finish(first_column: u32, columns: u32, first_pair: u32, lid: u32) {
    workgroupBarrier();
    if (lid < columns && first_pair < params.pairs) {
        var h: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            let at = lid * 32u + 4u * i;
            h[i] = vec4<f32>(tile[at], tile[at + 1u], tile[at + 2u], tile[at + 3u]);
        }
        let block = (params.first_row / 2u + first_pair) / 32u;
        store_act(first_column + lid, block, params.out_stride / 32u, &h);
    }
}
