// As common/epilogue_glu.wgsl, for several columns left as int8 activations by kernels whose threads exchange
// values: eight of them store a block.

var<workgroup> tile: array<f32, 32u * TILE_COLUMNS>; // [local column, local pair]

fn emit(column: u32, local_column: u32, row: u32, local_pair: u32, v: vec2<f32>) {
    tile[local_column * 32u + local_pair] = v.x / (1.0 + exp(-v.x)) * v.y;
}

fn finish(first_column: u32, columns: u32, first_pair: u32, lid: u32) {
    workgroupBarrier();
    let block = (params.first_row / 2u + first_pair) / 32u;
    for (var start = 0u; start < 8u * TILE_COLUMNS; start += WG) {
        let n = start + lid;
        let column = n / 8u;
        let word = n % 8u;
        let at = 32u * min(column, TILE_COLUMNS - 1u) + 4u * word;
        let q = eight_quants(vec4<f32>(tile[at], tile[at + 1u], tile[at + 2u], tile[at + 3u]), lid);
        if (column < columns && first_pair < params.pairs) {
            store_eighth((first_column + column) * (params.out_stride / 32u) + block, word, q);
        }
    }
}
