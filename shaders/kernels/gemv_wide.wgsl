// As kernels/gemv.wgsl, for four columns and more: a thread does EACH row pairs together, and the threads
// that share a pair deal its columns' sums out among themselves. With each exchange a thread keeps half of
// the sums it holds and adds its neighbour's part of them; a whole tree for each sum takes four times as
// many. The sums are those of kernels/gemv.wgsl to the bit.

override WG: u32 = 64u; // threads
override TPR: u32 = 8u; // threads that share a pair
override PASSES: u32 = 1u;
override BLOCKS: u32 = 8u; // blocks of 32 columns in a row: a constant, so that the loops unroll
override PAIRS: u32 = 8u; // row pairs of the part: a constant, so that no load waits for it
const TILE_COLUMNS: u32 = COLUMNS;
const ITEMS: u32 = EACH * COLUMNS; // [pair of the thread, column]
const TOGETHER: u32 = min(COLUMNS, 8u); // columns of a loop: compilers do not unroll one of 16

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let first = group.y * COLUMNS;
    let runs = WG / TPR;
    let first_pair = group.x * runs * EACH * PASSES;
    let lane = lid % TPR;
    let columns_all = select(params.columns_max, step_columns(), params.columns_max == 0u);
    for (var turn = 0u; turn < PASSES; turn++) {
        let local_pair = (turn * runs + lid / TPR) * EACH;
        let pair = first_pair + local_pair;
        var sums: array<vec2<f32>, ITEMS>;
        lane_sums(&sums, pair, lane, first);
        // By text: compilers keep an array in memory that is indexed in a loop they do not unroll.
        var held = ITEMS;
        var item = 0u;
        var step = part_threads();
        if (step > 1u && held > 1u) {
            step /= 2u;
            held = ITEMS / 2u;
            item += deal(&sums, ITEMS / 2u, step, lid);
        }
        if (step > 1u && held > 1u) {
            step /= 2u;
            held = ITEMS / 4u;
            item += deal(&sums, ITEMS / 4u, step, lid);
        }
        if (step > 1u && held > 1u) {
            step /= 2u;
            held = ITEMS / 8u;
            item += deal(&sums, ITEMS / 8u, step, lid);
        }
        if (step > 1u && held > 1u) {
            step /= 2u;
            held = ITEMS / 16u;
            item += deal(&sums, ITEMS / 16u, step, lid);
        }
        if (step > 1u && held > 1u) {
            step /= 2u;
            held = ITEMS / 32u;
            item += deal(&sums, ITEMS / 32u, step, lid);
        }
        // Threads that differ in bits below `step` hold the same items, and add them to the end.
        let same = step;
        while (step > 1u) {
            step /= 2u;
            sums[0] += part_swap(sums[0], step, lid);
        }
        let sends = lane < part_threads() && lane % same == 0u;
        send(run_join(sums[0], lid), item, sends, pair, local_pair, first, columns_all);
        for (var i = 1u; i < held; i++) {
            send(run_join(sums[i], lid), item + i, sends, pair, local_pair, first, columns_all);
        }
    }
    finish(first, min(COLUMNS, columns_all - first), first_pair, lid);
}

// The sums of EACH pairs and COLUMNS columns over the blocks of thread `lane`.
fn lane_sums(sums: ptr<function, array<vec2<f32>, ITEMS>>, pair: u32, lane: u32, first: u32) {
    for (var i = 0u; i < ITEMS; i++) {
        (*sums)[i] = vec2<f32>(0.0);
    }
    for (var round = 0u; round < (BLOCKS + TPR - 1u) / TPR; round++) {
        let block = round * TPR + lane;
        if (block < BLOCKS) {
            var even: array<WeightBlock, EACH>;
            var odd: array<WeightBlock, EACH>;
            for (var e = 0u; e < EACH; e++) {
                // Threads past the end read the last pair again: the exchanges need all of them.
                let row = 2u * min(pair + e, PAIRS - 1u);
                even[e] = load_block(row, block, BLOCKS);
                odd[e] = load_block(row + 1u, block, BLOCKS);
            }
            for (var c = 0u; c < TOGETHER; c++) {
                let a = input_block(first + c, block);
                for (var e = 0u; e < EACH; e++) {
                    let sum = (*sums)[e * COLUMNS + c];
                    (*sums)[e * COLUMNS + c] = vec2<f32>(block_add(even[e], a, sum.x), block_add(odd[e], a, sum.y));
                }
            }
            // The rest of 16, and nothing of fewer. As a function, both together cost a tenth of the speed.
            for (var c = TOGETHER; c < COLUMNS; c++) {
                let a = input_block(first + c, block);
                for (var e = 0u; e < EACH; e++) {
                    let sum = (*sums)[e * COLUMNS + c];
                    (*sums)[e * COLUMNS + c] = vec2<f32>(block_add(even[e], a, sum.x), block_add(odd[e], a, sum.y));
                }
            }
        }
    }
}

// Of twice `keep` items a thread keeps one half and its neighbour at `step` the other, each with the
// other's part added. Returns how many items lie before those kept.
fn deal(sums: ptr<function, array<vec2<f32>, ITEMS>>, keep: u32, step: u32, lid: u32) -> u32 {
    let upper = (lid & step) != 0u;
    for (var i = 0u; i < keep; i++) {
        let low = (*sums)[i];
        let high = (*sums)[i + keep];
        (*sums)[i] = select(low, high, upper) + part_swap(select(high, low, upper), step, lid);
    }
    return select(0u, keep, upper);
}

fn send(v: vec2<f32>, item: u32, sends: bool, pair: u32, local_pair: u32, first: u32, columns_all: u32) {
    let column = item % COLUMNS;
    let e = item / COLUMNS;
    if (sends && pair + e < PAIRS && first + column < columns_all) {
        emit(first + column, column, params.first_row + 2u * (pair + e), local_pair + e, v);
    }
}
