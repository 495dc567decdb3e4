// o = softmax(q K^T / sqrt(head_dim)) V over the column's own history, cut in splits: decode.
//
// Workgroup (heads, column, split) does up to HEADS query heads of one KV head, so each K and V block
// is read once for them. LANES threads share a position, with CHUNKS chunks of eight values each. A
// run of LANES threads takes every (WG / LANES)th stretch of STRETCH positions: either of one position,
// AHEAD of them at a time so that their loads overlap, or of a whole KV block, whose place is then read
// once. It keeps its own maximum, sum and output; the runs are joined at the end. A column of one split
// is stored as activations if DIRECT; otherwise the split's result stays unnormalised for
// kernels/combine.wgsl. HEADS, GROUP, LANES, CHUNKS, HEAD_DIM, BLOCK_LEN, AHEAD, STRETCH and DIRECT
// are constants put before this file. Reference: reference::attention.

struct AttentionParams {
    head_dim: u32, // = HEAD_DIM
    kv_heads: u32,
    block_len: u32, // = BLOCK_LEN: positions of a KV block
    splits_max: u32, // splits that `partial` and `sums` have room for
    window: u32, // sliding window in positions, 0 for none
    scale: f32, // 1 / sqrt(head_dim)
    group: u32, // = GROUP: query heads of a KV head
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [column, head, head_dim / 4]
@group(0) @binding(2) var<storage, read> k_cache: array<vec4<u32>>; // [block, kv_head, slot, head_dim / 8]: eight f16
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<u32>>; // [block, kv_head, slot, head_dim / 8]: eight f16
@group(0) @binding(6) var<storage, read_write> partial: array<vec4<f32>>; // [column, split, head, head_dim / 4]
@group(0) @binding(7) var<storage, read_write> sums: array<vec2<f32>>; // [column, split, head]: maximum, sum

override WG: u32 = 64u;
override TPR: u32 = 8u; // = LANES: the threads that `cluster_sum` adds over
const ITEMS: u32 = HEADS * CHUNKS; // at most 8
// Least score: a finite number, so that differences with it are numbers.
const LEAST: f32 = -3.0e38;

var<workgroup> run_top: array<f32, HEADS * WG / LANES>; // [head, run]
var<workgroup> run_total: array<f32, HEADS * WG / LANES>;
var<workgroup> run_out: array<vec4<f32>, 2u * WG>; // [half of a chunk, run, lane]
var<workgroup> head_whole: array<vec2<f32>, HEADS>; // maximum, sum over the runs
var<workgroup> joined: array<vec4<f32>, HEADS * HEAD_DIM / 4u>;

fn half_lo(w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}

fn half_hi(w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w));
}

// Tells whether a position is the split's. A whole stretch may begin before it.
fn is_here(position: u32, first: u32, end: u32) -> bool {
    return position < end && (STRETCH == 1u || position >= first);
}

// Maximum and sum of head h over all runs.
fn head_sums(h: u32) -> vec2<f32> {
    let runs = WG / LANES;
    var highest = run_top[h * runs];
    for (var r = 1u; r < runs; r++) {
        highest = max(highest, run_top[h * runs + r]);
    }
    var sum = 0.0;
    for (var r = 0u; r < runs; r++) {
        sum += run_total[h * runs + r] * exp(run_top[h * runs + r] - highest);
    }
    return vec2<f32>(highest, sum);
}

// Adds the runs' outputs of item i = (head, chunk of the lane) into `joined`.
fn join(i: u32, lo: vec4<f32>, hi: vec4<f32>, top: f32, direct: bool, lid: u32) {
    let h = i / CHUNKS;
    let whole = head_whole[h];
    let share = exp(top - whole.x);
    run_out[lid] = lo * share;
    run_out[WG + lid] = hi * share;
    workgroupBarrier();
    // A workgroup may be a single run.
    for (var at = lid; at < 2u * LANES; at += WG) {
        let chunk = (i % CHUNKS) * LANES + at % LANES;
        if (chunk < HEAD_DIM / 8u) {
            let half = at / LANES;
            var value = vec4<f32>(0.0);
            for (var r = 0u; r < WG / LANES; r++) {
                value += run_out[half * WG + r * LANES + at % LANES];
            }
            joined[(h * (HEAD_DIM / 8u) + chunk) * 2u + half] = value / select(1.0, whole.y, direct);
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let parts = (GROUP + HEADS - 1u) / HEADS;
    let kv_head = group.x / parts;
    let part = group.x % parts;
    let heads = params.kv_heads * GROUP;
    let first_head = kv_head * GROUP + part * HEADS;
    let heads_here = min(HEADS, GROUP - part * HEADS);
    let column = group.y;
    let split = group.z;
    let position = column_position(column);
    let splits = column_splits(column);
    var first = split * column_split_len(column);
    if (split >= splits) {
        return;
    }
    let end = min(position + 1u, first + column_split_len(column));
    if (params.window > 0u && position >= params.window) {
        first = max(first, position + 1u - params.window);
    }
    let table = kv_table(column);
    let lane = lid % LANES;
    let run = lid / LANES;
    let runs = WG / LANES;
    let chunks = HEAD_DIM / 8u;
    var q_lo: array<vec4<f32>, HEADS * CHUNKS>;
    var q_hi: array<vec4<f32>, HEADS * CHUNKS>;
    var o_lo: array<vec4<f32>, HEADS * CHUNKS>;
    var o_hi: array<vec4<f32>, HEADS * CHUNKS>;
    var top: array<f32, HEADS>;
    var total: array<f32, HEADS>;
    for (var h = 0u; h < HEADS; h++) {
        top[h] = LEAST;
        total[h] = 0.0;
        for (var c = 0u; c < CHUNKS; c++) {
            let chunk = c * LANES + lane;
            let i = h * CHUNKS + c;
            o_lo[i] = vec4<f32>(0.0);
            o_hi[i] = vec4<f32>(0.0);
            q_lo[i] = vec4<f32>(0.0);
            q_hi[i] = vec4<f32>(0.0);
            if (chunk < chunks) {
                let head = first_head + min(h, heads_here - 1u);
                let at = 2u * ((column * heads + head) * chunks + chunk);
                q_lo[i] = q[at] * params.scale;
                q_hi[i] = q[at + 1u] * params.scale;
            }
        }
    }
    // Every thread goes round as often as the others: the sums below need all of them.
    for (var start = first / STRETCH * STRETCH; start < end; start += runs * AHEAD * STRETCH) {
        let stretch = start + run * STRETCH;
        let stretch_block = step_words[table + min(stretch, end - 1u) / BLOCK_LEN];
        let turns = select(min(STRETCH, end - start), 1u, STRETCH == 1u);
        for (var turn = 0u; turn < turns; turn++) {
            var k: array<vec4<u32>, AHEAD * CHUNKS>;
            var v: array<vec4<u32>, AHEAD * CHUNKS>;
            for (var a = 0u; a < AHEAD; a++) {
                let p = min(stretch + turn + a * runs, end - 1u);
                var block = stretch_block;
                if (a > 0u) {
                    block = step_words[table + p / BLOCK_LEN];
                }
                let line = ((block * params.kv_heads + kv_head) * BLOCK_LEN + p % BLOCK_LEN) * chunks;
                for (var c = 0u; c < CHUNKS; c++) {
                    let at = line + min(c * LANES + lane, chunks - 1u);
                    k[a * CHUNKS + c] = k_cache[at];
                    v[a * CHUNKS + c] = v_cache[at];
                }
            }
            for (var h = 0u; h < HEADS; h++) {
                var scores: array<f32, AHEAD>;
                var now = top[h];
                for (var a = 0u; a < AHEAD; a++) {
                    var sum = 0.0;
                    for (var c = 0u; c < CHUNKS; c++) {
                        let w = k[a * CHUNKS + c];
                        sum += dot(q_lo[h * CHUNKS + c], half_lo(w)) + dot(q_hi[h * CHUNKS + c], half_hi(w));
                    }
                    scores[a] = select(LEAST, cluster_sum(sum, lid), is_here(stretch + turn + a * runs, first, end));
                    now = max(now, scores[a]);
                }
                let shrink = exp(top[h] - now);
                top[h] = now;
                total[h] *= shrink;
                for (var c = 0u; c < CHUNKS; c++) {
                    o_lo[h * CHUNKS + c] *= shrink;
                    o_hi[h * CHUNKS + c] *= shrink;
                }
                for (var a = 0u; a < AHEAD; a++) {
                    let here = is_here(stretch + turn + a * runs, first, end);
                    let weight = select(0.0, exp(scores[a] - now), here);
                    total[h] += weight;
                    for (var c = 0u; c < CHUNKS; c++) {
                        let w = v[a * CHUNKS + c];
                        o_lo[h * CHUNKS + c] += weight * half_lo(w);
                        o_hi[h * CHUNKS + c] += weight * half_hi(w);
                    }
                }
            }
        }
    }
    if (lane == 0u) {
        for (var h = 0u; h < HEADS; h++) {
            run_top[h * runs + run] = top[h];
            run_total[h * runs + run] = total[h];
        }
    }
    workgroupBarrier();
    if (lid < HEADS) {
        head_whole[lid] = head_sums(lid);
    }
    workgroupBarrier();
    let direct = DIRECT && splits == 1u;
    let out = (column * params.splits_max + split) * heads + first_head;
    // One by one, not in a loop: compilers do not unroll a loop with barriers, and would keep what it
    // indexes in memory instead of registers, everywhere.
    join(0u, o_lo[0u], o_hi[0u], top[0u], direct, lid);
    if (ITEMS > 1u) { join(1u, o_lo[min(1u, ITEMS - 1u)], o_hi[min(1u, ITEMS - 1u)], top[min(1u, ITEMS - 1u) / CHUNKS], direct, lid); }
    if (ITEMS > 2u) { join(2u, o_lo[min(2u, ITEMS - 1u)], o_hi[min(2u, ITEMS - 1u)], top[min(2u, ITEMS - 1u) / CHUNKS], direct, lid); }
    if (ITEMS > 3u) { join(3u, o_lo[min(3u, ITEMS - 1u)], o_hi[min(3u, ITEMS - 1u)], top[min(3u, ITEMS - 1u) / CHUNKS], direct, lid); }
    if (ITEMS > 4u) { join(4u, o_lo[min(4u, ITEMS - 1u)], o_hi[min(4u, ITEMS - 1u)], top[min(4u, ITEMS - 1u) / CHUNKS], direct, lid); }
    if (ITEMS > 5u) { join(5u, o_lo[min(5u, ITEMS - 1u)], o_hi[min(5u, ITEMS - 1u)], top[min(5u, ITEMS - 1u) / CHUNKS], direct, lid); }
    if (ITEMS > 6u) { join(6u, o_lo[min(6u, ITEMS - 1u)], o_hi[min(6u, ITEMS - 1u)], top[min(6u, ITEMS - 1u) / CHUNKS], direct, lid); }
    if (ITEMS > 7u) { join(7u, o_lo[min(7u, ITEMS - 1u)], o_hi[min(7u, ITEMS - 1u)], top[min(7u, ITEMS - 1u) / CHUNKS], direct, lid); }
    if (!direct && lid < heads_here) {
        sums[out + lid] = head_whole[lid];
    }
    if (direct) {
        for (var block = lid; block < heads_here * HEAD_DIM / 32u; block += WG) {
            var y: array<vec4<f32>, 8>;
            for (var i = 0u; i < 8u; i++) {
                y[i] = joined[8u * block + i];
            }
            store_act(column, first_head * HEAD_DIM / 32u + block, heads * HEAD_DIM / 32u, &y);
        }
        return;
    }
    for (var i = lid; i < heads_here * HEAD_DIM / 4u; i += WG) {
        partial[out * (HEAD_DIM / 4u) + i] = joined[i];
    }
}
