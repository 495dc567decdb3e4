// The tile of kernels/gemm.wgsl for int8 activations: two blocks of 32 k at a time as bytes, an integer
// sum a block, scaled once a block.
//
// Even rows lie together and odd rows after them, with a gap: neighbours then read and write different
// banks of workgroup memory.

const STEP: u32 = 2u;
const ODD: u32 = TILE_PAIRS + 4u; // where the odd rows start
const W_LINE: u32 = ODD + TILE_PAIRS + 1u;
const A_LINE: u32 = TILE_COLUMNS + 1u;
const W_EACH: u32 = 2u * TILE_PAIRS * STEP / WG; // weight blocks a thread brings
const A_EACH: u32 = (TILE_COLUMNS * STEP + WG - 1u) / WG; // activation blocks a thread brings, at most

var<workgroup> w_quants: array<vec4<u32>, 2u * STEP * W_LINE>; // [block, half, row]
var<workgroup> w_scales: array<vec2<f32>, STEP * W_LINE>; // [block, row]: block_scales
var<workgroup> a_quants: array<vec4<u32>, 2u * STEP * A_LINE>; // [block, half, column]
var<workgroup> a_scales: array<vec2<f32>, STEP * A_LINE>; // [block, column]: scale, sum

// The blocks of the next step.
struct Ahead {
    w: array<WeightBlock, W_EACH>,
    a: array<ActBlock, A_EACH>,
}

// The `j`th column of thread `tc`.
fn tile_column(tc: u32, j: u32) -> u32 {
    return tc + TC * j;
}

// The `i`th pair of thread `tp`.
fn tile_pair(tp: u32, i: u32) -> u32 {
    return tp + TP * i;
}

fn fetch_weights(ahead: ptr<function, Ahead>, first_pair: u32, block: u32, lid: u32) {
    for (var i = 0u; i < W_EACH; i++) {
        let n = lid + i * WG;
        let row = min(2u * first_pair + n / STEP, 2u * params.pairs - 1u);
        (*ahead).w[i] = load_block(row, min(block + n % STEP, params.blocks - 1u), params.blocks);
    }
}

fn fetch_acts(ahead: ptr<function, Ahead>, first_column: u32, columns: u32, block: u32, lid: u32) {
    for (var i = 0u; i < A_EACH; i++) {
        let n = lid + i * WG;
        if (n < TILE_COLUMNS * STEP) {
            let column = min(first_column + n / STEP, columns - 1u);
            (*ahead).a[i] = load_act(column, min(block + n % STEP, params.blocks - 1u), params.blocks);
        }
    }
}

fn put_weights(ahead: ptr<function, Ahead>, lid: u32) {
    for (var i = 0u; i < W_EACH; i++) {
        let n = lid + i * WG;
        let b = n % STEP;
        let row = n / STEP;
        let at = row / 2u + row % 2u * ODD;
        let w = (*ahead).w[i];
        w_quants[2u * b * W_LINE + at] = w.lo;
        w_quants[(2u * b + 1u) * W_LINE + at] = w.hi;
        w_scales[b * W_LINE + at] = block_scales(w);
    }
}

fn put_acts(ahead: ptr<function, Ahead>, block: u32, lid: u32) {
    for (var i = 0u; i < A_EACH; i++) {
        let n = lid + i * WG;
        if (n < TILE_COLUMNS * STEP) {
            let b = n % STEP;
            let at = n / STEP;
            let a = (*ahead).a[i];
            a_quants[2u * b * A_LINE + at] = a.lo;
            a_quants[(2u * b + 1u) * A_LINE + at] = a.hi;
            // Past the row's end is the last block again, which must not count twice.
            let there = block + b < params.blocks;
            a_scales[b * A_LINE + at] = select(vec2<f32>(0.0), vec2<f32>(a.scale, a.sum), there);
        }
    }
}

fn multiply(sums: ptr<function, array<vec2<f32>, PAIRS * COLUMNS>>, tp: u32, tc: u32) {
    for (var b = 0u; b < STEP; b++) {
        var lo: array<vec4<u32>, COLUMNS>;
        var hi: array<vec4<u32>, COLUMNS>;
        var a: array<vec2<f32>, COLUMNS>;
        for (var j = 0u; j < COLUMNS; j++) {
            let at = 2u * b * A_LINE + tile_column(tc, j);
            lo[j] = a_quants[at];
            hi[j] = a_quants[at + A_LINE];
            a[j] = a_scales[b * A_LINE + tile_column(tc, j)];
        }
        for (var i = 0u; i < PAIRS; i++) {
            let at = 2u * b * W_LINE + tile_pair(tp, i);
            let even_lo = w_quants[at];
            let even_hi = w_quants[at + W_LINE];
            let even = w_scales[b * W_LINE + tile_pair(tp, i)];
            for (var j = 0u; j < COLUMNS; j++) {
                (*sums)[i * COLUMNS + j].x += scaled(even, dot16(even_lo, lo[j]), dot16(even_hi, hi[j]), a[j]);
            }
            let odd_lo = w_quants[at + ODD];
            let odd_hi = w_quants[at + ODD + W_LINE];
            let odd = w_scales[b * W_LINE + ODD + tile_pair(tp, i)];
            for (var j = 0u; j < COLUMNS; j++) {
                (*sums)[i * COLUMNS + j].y += scaled(odd, dot16(odd_lo, lo[j]), dot16(odd_hi, hi[j]), a[j]);
            }
        }
    }
}
