// The tile of kernels/gemm.wgsl for float activations: one block of 32 k at a time, every value a float,
// rows and columns in fours so that a thread's are one load.

const STEP: u32 = 1u;
const W_LINE: u32 = TILE_PAIRS / 2u + 1u; // four rows each
const A_LINE: u32 = TILE_COLUMNS / 4u + 1u; // four columns each
const W_EACH: u32 = (2u * TILE_PAIRS + WG - 1u) / WG; // weight blocks a thread brings, at most
const A_EACH: u32 = (TILE_COLUMNS + WG - 1u) / WG; // activation blocks a thread brings, at most

var<workgroup> w_tile: array<vec4<f32>, 32u * W_LINE>; // [k, row / 4]
var<workgroup> a_tile: array<vec4<f32>, 32u * A_LINE>; // [k, column / 4]

// The blocks of the next step.
struct Ahead {
    w: array<WeightBlock, W_EACH>,
    a: array<ActBlock, A_EACH>,
}

// The `j`th column of thread `tc`: runs of four.
fn tile_column(tc: u32, j: u32) -> u32 {
    return 4u * (tc + j / 4u * TC) + j % 4u;
}

// The `i`th pair of thread `tp`: runs of two.
fn tile_pair(tp: u32, i: u32) -> u32 {
    return 2u * (tp + i / 2u * TP) + i % 2u;
}

// The column of a thread's `i`th activation block: the last threads, which have fewer weights, first.
fn act_column(lid: u32, i: u32) -> u32 {
    return WG - 1u - lid + i * WG;
}

fn fetch_weights(ahead: ptr<function, Ahead>, first_pair: u32, block: u32, lid: u32) {
    for (var i = 0u; i < W_EACH; i++) {
        let n = lid + i * WG;
        if (n < 2u * TILE_PAIRS) {
            let row = min(2u * first_pair + n, 2u * params.pairs - 1u);
            (*ahead).w[i] = load_block(row, min(block, params.blocks - 1u), params.blocks);
        }
    }
}

fn fetch_acts(ahead: ptr<function, Ahead>, first_column: u32, columns: u32, block: u32, lid: u32) {
    for (var i = 0u; i < A_EACH; i++) {
        let n = act_column(lid, i);
        if (n < TILE_COLUMNS) {
            let column = min(first_column + n, columns - 1u);
            (*ahead).a[i] = load_act(column, min(block, params.blocks - 1u), params.blocks);
        }
    }
}

fn put_w4(k: u32, n: u32, v: vec4<f32>) {
    let at = k * W_LINE + n / 4u;
    w_tile[at][n % 4u] = v.x;
    w_tile[at + W_LINE][n % 4u] = v.y;
    w_tile[at + 2u * W_LINE][n % 4u] = v.z;
    w_tile[at + 3u * W_LINE][n % 4u] = v.w;
}

fn put_a4(k: u32, n: u32, v: vec4<f32>) {
    let at = k * A_LINE + n / 4u;
    a_tile[at][n % 4u] = v.x;
    a_tile[at + A_LINE][n % 4u] = v.y;
    a_tile[at + 2u * A_LINE][n % 4u] = v.z;
    a_tile[at + 3u * A_LINE][n % 4u] = v.w;
}

fn put_weights(ahead: ptr<function, Ahead>, lid: u32) {
    for (var i = 0u; i < W_EACH; i++) {
        let n = lid + i * WG;
        if (n < 2u * TILE_PAIRS) {
            let w = (*ahead).w[i];
            put_w4(0u, n, values(w, 0u));
            put_w4(4u, n, values(w, 1u));
            put_w4(8u, n, values(w, 2u));
            put_w4(12u, n, values(w, 3u));
            put_w4(16u, n, values(w, 4u));
            put_w4(20u, n, values(w, 5u));
            put_w4(24u, n, values(w, 6u));
            put_w4(28u, n, values(w, 7u));
        }
    }
}

fn put_acts(ahead: ptr<function, Ahead>, block: u32, lid: u32) {
    for (var i = 0u; i < A_EACH; i++) {
        let n = act_column(lid, i);
        if (n < TILE_COLUMNS) {
            let a = (*ahead).a[i];
            put_a4(0u, n, a.a);
            put_a4(4u, n, a.b);
            put_a4(8u, n, a.c);
            put_a4(12u, n, a.d);
            put_a4(16u, n, a.e);
            put_a4(20u, n, a.f);
            put_a4(24u, n, a.g);
            put_a4(28u, n, a.h);
        }
    }
}

fn multiply(sums: ptr<function, array<vec2<f32>, PAIRS * COLUMNS>>, tp: u32, tc: u32) {
    for (var k = 0u; k < 32u; k++) {
        var a: array<vec4<f32>, COLUMNS / 4u>;
        for (var j = 0u; j < COLUMNS / 4u; j++) {
            a[j] = a_tile[k * A_LINE + tc + j * TC];
        }
        for (var i = 0u; i < PAIRS / 2u; i++) {
            let w = w_tile[k * W_LINE + tp + i * TP];
            for (var j = 0u; j < COLUMNS; j++) {
                (*sums)[2u * i * COLUMNS + j] += w.xy * a[j / 4u][j % 4u];
                (*sums)[(2u * i + 1u) * COLUMNS + j] += w.zw * a[j / 4u][j % 4u];
            }
        }
    }
}
