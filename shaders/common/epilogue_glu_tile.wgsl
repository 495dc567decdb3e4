// As common/epilogue_glu.wgsl, for kernels/gemm.wgsl: gathers one column of each thread at a time, over
// all pairs of the tile, which is whole blocks of 32 of them.

var<workgroup> tile: array<f32, TC * TILE_PAIRS>; // [thread along the columns, local pair]

fn emit(column: u32, local_column: u32, row: u32, local_pair: u32, v: vec2<f32>) {
    tile[local_column * TILE_PAIRS + local_pair] = v.x / (1.0 + exp(-v.x)) * v.y;
}

// `columns_all` is the number of columns there are, not those of this tile.
fn finish(first_column: u32, columns_all: u32, first_pair: u32, lid: u32) {
    workgroupBarrier();
    for (var n = lid; n < TC * TILE_PAIRS / 32u; n += WG) {
        let column = first_column + tile_column(n % TC, 0u);
        let pair = first_pair + n / TC * 32u;
        if (column < columns_all && pair < params.pairs) {
            var h: array<vec4<f32>, 8>;
            for (var i = 0u; i < 8u; i++) {
                let at = n % TC * TILE_PAIRS + n / TC * 32u + 4u * i;
                h[i] = vec4<f32>(tile[at], tile[at + 1u], tile[at + 2u], tile[at + 3u]);
            }
            store_act(column, (params.first_row / 2u + pair) / 32u, params.out_stride / 32u, &h);
        }
    }
    workgroupBarrier();
}
