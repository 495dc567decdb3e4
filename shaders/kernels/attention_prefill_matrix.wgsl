// attention_prefill.wgsl on matrix units: products of 16 x 16 halves, summed in 32 bits.
//
// Workgroup (kv_head, n) does WG / 2 consecutive rows (common/attention_rows.wgsl), the last rows first,
// since they have most to do. A subgroup of 32 threads has 16 of them, and two threads share a row for
// all that is no matrix product. The history goes by in tiles of TILE positions, staged in workgroup
// memory. What a tile adds to the output leaves the matrix units through `scores` and is summed in the
// threads' own registers: a thread has blocks of 32 values of its row, every second one. Queries and
// weights are rounded to halves. Every thread walks the columns by itself to find the runs, so that
// the compiler sees that a subgroup stays together. Reference: reference::attention.

enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [column, head, head_dim / 4]
@group(0) @binding(2) var<storage, read> k_cache: array<vec4<f16>>; // [block, kv_head, slot, head_dim / 4]
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<f16>>; // [block, kv_head, slot, head_dim / 4]

override WG: u32 = 128u; // a multiple of 32
override G: u32 = 1u; // query heads of a KV head
override HEAD_DIM: u32 = 64u; // a multiple of 32, at most 256
override LINE: u32 = 16u; // HEAD_DIM / 4
override TILE: u32 = 64u; // 32 or 64, at least WG / 2
// Rows in workgroup memory are padded against bank conflicts; each starts at a multiple of 16 bytes.
const PAD: u32 = 8u;
const SCORES: u32 = 68u;
const WEIGHTS: u32 = 72u;
// Least score: a finite number, so that differences with it are numbers.
const LEAST: f32 = -3.0e38;

var<workgroup> staged: array<f16, TILE * (HEAD_DIM + PAD)>; // [row or position, value]
var<workgroup> scores: array<f32, WG / 2u * SCORES>; // [row, position], then [row, value of 64]
var<workgroup> weights: array<f16, WG / 2u * WEIGHTS>; // [row, position]
var<workgroup> tops: array<f32, WG>;

// Stages the `i`th four values of rows of HEAD_DIM values.
fn stage(i: u32, v: vec4<f16>) {
    let at = i / LINE * (HEAD_DIM + PAD) + 4u * (i % LINE);
    staged[at] = v.x;
    staged[at + 1u] = v.y;
    staged[at + 2u] = v.z;
    staged[at + 3u] = v.w;
}

// o = o * shrink + the tile's weighted sum of V, of values 64 * part.. .
fn add_weighted(part: u32, subgroup: u32, lane: u32, shrink: f32, o: ptr<function, array<vec4<f32>, 8>>) {
    let rows = subgroup * 16u;
    workgroupBarrier();
    for (var d = 0u; d < min(64u, HEAD_DIM - part * 64u); d += 16u) {
        var sum = coop_mat16x16<f32, C>();
        for (var p = 0u; p < TILE; p += 16u) {
            let weight = coopLoadT<coop_mat16x16<f16, A>>(&weights[rows * WEIGHTS + p], WEIGHTS);
            let v = coopLoadT<coop_mat16x16<f16, B>>(&staged[p * (HEAD_DIM + PAD) + part * 64u + d], HEAD_DIM + PAD);
            sum = coopMultiplyAdd(weight, v, sum);
        }
        coopStoreT(sum, &scores[rows * SCORES + d], SCORES);
    }
    workgroupBarrier();
    let first = (rows + lane / 2u) * SCORES + lane % 2u * 32u;
    for (var i = 0u; i < 8u; i++) {
        let at = first + 4u * i;
        let v = vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
        (*o)[i] = (*o)[i] * shrink + v;
    }
}

// Stores a block of a row's output as activations, if its head has that block.
fn store_block(row: u32, kv_head: u32, block: u32, inverse: f32, o: ptr<function, array<vec4<f32>, 8>>) {
    if (block < HEAD_DIM / 32u) {
        for (var i = 0u; i < 8u; i++) {
            (*o)[i] *= inverse;
        }
        let blocks = HEAD_DIM / 32u;
        store_act(row / G, (kv_head * G + row % G) * blocks + block, params.kv_heads * G * blocks, o);
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let kv_head = group.x;
    let line_len = HEAD_DIM + PAD;
    let rows_end = step_columns() * G;
    let row_first = (groups.y - 1u - group.y) * (WG / 2u);
    // The queries, rounded, through `staged` into the matrix units.
    for (var i = lid; i < WG / 2u * LINE; i += WG) {
        let row = min(row_first + i / LINE, rows_end - 1u);
        let at = ((row / G * params.kv_heads + kv_head) * G + row % G) * LINE + i % LINE;
        stage(i, vec4<f16>(q[at] * params.scale));
    }
    workgroupBarrier();
    var queries: array<coop_mat16x16<f16, A>, 16>;
    for (var d = 0u; d < HEAD_DIM / 16u; d++) {
        queries[d] = coopLoadT<coop_mat16x16<f16, A>>(&staged[subgroup * 16u * line_len + d * 16u], line_len);
    }
    let half_row = lane % 2u;
    let my_row = subgroup * 16u + lane / 2u;
    let row = row_first + my_row;
    let my_column = min(row, rows_end - 1u) / G;
    let my_table = kv_table(my_column);
    let newest = column_position(my_column);
    let first_seen = oldest(newest);
    // By name, because an array that a loop indexes may end up in memory.
    var o0: array<vec4<f32>, 8>; // a block of this thread: the first of each 64 values, or the second
    var o1: array<vec4<f32>, 8>;
    var o2: array<vec4<f32>, 8>;
    var o3: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        o0[i] = vec4<f32>(0.0);
        o1[i] = vec4<f32>(0.0);
        o2[i] = vec4<f32>(0.0);
        o3[i] = vec4<f32>(0.0);
    }
    var s: array<f32, 32>; // scores of this thread's positions
    var k_ahead: array<vec4<f16>, 32>;
    var v_ahead: array<vec4<f16>, 32>;
    let loads = TILE * LINE / WG; // at most 32
    var top = LEAST;
    var total = 0.0;

    var column = row_first / G;
    let column_end = (min(row_first + WG / 2u, rows_end) - 1u) / G + 1u;
    while (column < column_end) {
        // A run of columns of one sequence.
        let table = kv_table(column);
        var begin = 0xffffffffu;
        var last = 0u;
        while (column < column_end && kv_table(column) == table) {
            let position = column_position(column);
            begin = min(begin, oldest(position));
            last = max(last, position);
            column++;
        }
        begin -= begin % TILE;
        workgroupBarrier();
        find_lines(table, kv_head, begin, last, lid);
        workgroupBarrier();
        for (var i = 0u; i < loads; i++) {
            let at = lid + i * WG;
            k_ahead[i] = k_cache[lines[at / LINE] + at % LINE];
        }
        for (var tile = begin; tile <= last; tile += TILE) {
            // Loads run ahead of their use: K by most of a tile, V by the scores.
            for (var i = 0u; i < loads; i++) {
                stage(lid + i * WG, k_ahead[i]);
            }
            for (var i = 0u; i < loads; i++) {
                let at = lid + i * WG;
                v_ahead[i] = v_cache[lines[at / LINE] + at % LINE];
            }
            workgroupBarrier();
            for (var p = 0u; p < TILE; p += 16u) {
                var sum = coop_mat16x16<f32, C>();
                for (var d = 0u; d < HEAD_DIM / 16u; d++) {
                    let k = coopLoad<coop_mat16x16<f16, B>>(&staged[p * line_len + d * 16u], line_len);
                    sum = coopMultiplyAdd(queries[d], k, sum);
                }
                coopStoreT(sum, &scores[subgroup * 16u * SCORES + p], SCORES);
            }
            workgroupBarrier();
            for (var i = 0u; i < loads; i++) {
                stage(lid + i * WG, v_ahead[i]);
            }
            find_lines(table, kv_head, tile + TILE, last, lid);
            // Softmax. Each of a row's two threads has every second position, and its own sum. Of
            // another sequence's positions a row sees none.
            let seen_first = select(tile + TILE, first_seen, my_table == table);
            var highest = LEAST;
            for (var i = 0u; i < TILE / 2u; i++) {
                let position = tile + 2u * i + half_row;
                let seen = position <= newest && position >= seen_first;
                s[i] = select(LEAST, scores[my_row * SCORES + 2u * i + half_row], seen);
                highest = max(highest, s[i]);
            }
            tops[lid] = highest;
            workgroupBarrier();
            let now = max(top, max(highest, tops[lid ^ 1u]));
            let shrink = exp(top - now);
            top = now;
            total *= shrink;
            for (var i = 0u; i < TILE / 2u; i++) {
                // Where a row has seen nothing yet, LEAST - LEAST is no weight of 1.
                let weight = select(exp(s[i] - now), 0.0, s[i] == LEAST);
                total += weight;
                weights[my_row * WEIGHTS + 2u * i + half_row] = f16(weight);
            }
            for (var i = 0u; i < loads; i++) {
                let at = lid + i * WG;
                k_ahead[i] = k_cache[lines[at / LINE] + at % LINE];
            }
            add_weighted(0u, subgroup, lane, shrink, &o0);
            if (HEAD_DIM > 64u) {
                add_weighted(1u, subgroup, lane, shrink, &o1);
            }
            if (HEAD_DIM > 128u) {
                add_weighted(2u, subgroup, lane, shrink, &o2);
            }
            if (HEAD_DIM > 192u) {
                add_weighted(3u, subgroup, lane, shrink, &o3);
            }
            workgroupBarrier();
        }
    }
    tops[lid] = total;
    workgroupBarrier();
    let inverse = 1.0 / (total + tops[lid ^ 1u]);
    if (row < rows_end) {
        store_block(row, kv_head, half_row, inverse, &o0);
        store_block(row, kv_head, 2u + half_row, inverse, &o1);
        store_block(row, kv_head, 4u + half_row, inverse, &o2);
        store_block(row, kv_head, 6u + half_row, inverse, &o3);
    }
}
