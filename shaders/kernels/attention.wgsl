// o = softmax(q K^T / sqrt(head_dim)) V over the column's own history, cut in splits.
//
// Workgroup (kv_head, column, split) does all G query heads of one KV head, so each K and V block is
// read once for them. LANES threads share a position: each has CHUNKS chunks of eight values of q, k,
// v and o. A run of LANES threads takes every (WG / LANES)th position and keeps its own running
// maximum, sum and output; the runs are joined at the end. The result of a split stays unnormalised:
// kernels/combine.wgsl joins the splits. Reference: reference::attention.

struct AttentionParams {
    head_dim: u32,
    kv_heads: u32,
    block_len: u32, // positions of a KV block
    splits_max: u32, // splits that `partial` and `sums` have room for
    window: u32, // sliding window in positions, 0 for none
    scale: f32, // 1 / sqrt(head_dim)
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [column, head, head_dim / 4]
@group(0) @binding(2) var<storage, read> k_cache: array<vec4<u32>>; // [block, kv_head, slot, head_dim / 8]: eight f16
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<u32>>; // [block, kv_head, slot, head_dim / 8]: eight f16
@group(0) @binding(6) var<storage, read_write> partial: array<vec4<f32>>; // [column, split, head, head_dim / 4]
@group(0) @binding(7) var<storage, read_write> sums: array<vec2<f32>>; // [column, split, head]: maximum, sum

override WG: u32 = 64u;
override TPR: u32 = 8u; // = LANES: the threads that `cluster_sum` adds over
override G: u32 = 1u; // query heads of a KV head, at most 8
override CHUNKS: u32 = 1u; // ceil(head_dim / 8 / TPR), at most 4
override HEAD_DIM: u32 = 64u;
// Least score: a finite number, so that differences with it are numbers.
const LEAST: f32 = -3.0e38;

var<workgroup> run_top: array<f32, WG / TPR>;
var<workgroup> run_total: array<f32, WG / TPR>;
var<workgroup> run_out: array<vec4<f32>, 2u * WG>; // [run, lane, 2]

fn half_lo(w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}

fn half_hi(w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let kv_head = group.x;
    let column = group.y;
    let split = group.z;
    let heads = params.kv_heads * G;
    let position = column_position(column);
    var first = split * step_split_len();
    if (first > position) {
        return;
    }
    let end = min(position + 1u, first + step_split_len());
    if (params.window > 0u && position >= params.window) {
        first = max(first, position + 1u - params.window);
    }
    let table = kv_table(column);
    let lane = lid % TPR;
    let run = lid / TPR;
    let chunks = HEAD_DIM / 8u;
    var q_lo: array<vec4<f32>, 32>; // [head, chunk]
    var q_hi: array<vec4<f32>, 32>;
    var o_lo: array<vec4<f32>, 32>;
    var o_hi: array<vec4<f32>, 32>;
    var top: array<f32, 8>;
    var total: array<f32, 8>;
    for (var h = 0u; h < G; h++) {
        top[h] = LEAST;
        total[h] = 0.0;
        for (var c = 0u; c < CHUNKS; c++) {
            let chunk = c * TPR + lane;
            let i = h * CHUNKS + c;
            o_lo[i] = vec4<f32>(0.0);
            o_hi[i] = vec4<f32>(0.0);
            q_lo[i] = vec4<f32>(0.0);
            q_hi[i] = vec4<f32>(0.0);
            if (chunk < chunks) {
                let at = 2u * ((column * heads + kv_head * G + h) * chunks + chunk);
                q_lo[i] = q[at] * params.scale;
                q_hi[i] = q[at + 1u] * params.scale;
            }
        }
    }
    let runs = WG / TPR;
    // Every thread goes round as often as the others: the sums below need all of them.
    let rounds = select(0u, (end - first + runs - 1u) / runs, end > first);
    for (var round = 0u; round < rounds; round++) {
        let t = first + round * runs + run;
        let here = t < end;
        let p = min(t, end - 1u);
        let block = step_words[table + p / params.block_len];
        let line = ((block * params.kv_heads + kv_head) * params.block_len + p % params.block_len) * chunks;
        var dots: array<f32, 8>;
        for (var h = 0u; h < 8u; h++) {
            dots[h] = 0.0;
        }
        for (var c = 0u; c < CHUNKS; c++) {
            let chunk = min(c * TPR + lane, chunks - 1u);
            let k = k_cache[line + chunk];
            let lo = half_lo(k);
            let hi = half_hi(k);
            for (var h = 0u; h < G; h++) {
                dots[h] += dot(q_lo[h * CHUNKS + c], lo) + dot(q_hi[h * CHUNKS + c], hi);
            }
        }
        var weights: array<f32, 8>;
        for (var h = 0u; h < G; h += 2u) {
            let pair = cluster_sum(vec2<f32>(dots[h], dots[h + 1u]), lid);
            dots[h] = pair.x;
            dots[h + 1u] = pair.y;
        }
        for (var h = 0u; h < G; h++) {
            let score = select(LEAST, dots[h], here);
            let now = max(top[h], score);
            let shrink = exp(top[h] - now);
            weights[h] = select(0.0, exp(score - now), here);
            total[h] = total[h] * shrink + weights[h];
            top[h] = now;
            for (var c = 0u; c < CHUNKS; c++) {
                o_lo[h * CHUNKS + c] *= shrink;
                o_hi[h * CHUNKS + c] *= shrink;
            }
        }
        for (var c = 0u; c < CHUNKS; c++) {
            let chunk = min(c * TPR + lane, chunks - 1u);
            let v = v_cache[line + chunk];
            let lo = half_lo(v);
            let hi = half_hi(v);
            for (var h = 0u; h < G; h++) {
                o_lo[h * CHUNKS + c] += weights[h] * lo;
                o_hi[h * CHUNKS + c] += weights[h] * hi;
            }
        }
    }
    let out = (column * params.splits_max + split) * heads + kv_head * G;
    for (var h = 0u; h < G; h++) {
        workgroupBarrier();
        if (lane == 0u) {
            run_top[run] = top[h];
            run_total[run] = total[h];
        }
        workgroupBarrier();
        var highest = run_top[0];
        for (var r = 1u; r < runs; r++) {
            highest = max(highest, run_top[r]);
        }
        let shrink = exp(top[h] - highest);
        for (var c = 0u; c < CHUNKS; c++) {
            workgroupBarrier();
            run_out[2u * lid] = o_lo[h * CHUNKS + c] * shrink;
            run_out[2u * lid + 1u] = o_hi[h * CHUNKS + c] * shrink;
            workgroupBarrier();
            let chunk = c * TPR + lid;
            if (lid < TPR && chunk < chunks) {
                var lo = vec4<f32>(0.0);
                var hi = vec4<f32>(0.0);
                for (var r = 0u; r < runs; r++) {
                    lo += run_out[2u * (r * TPR + lid)];
                    hi += run_out[2u * (r * TPR + lid) + 1u];
                }
                let at = 2u * ((out + h) * chunks + chunk);
                partial[at] = lo;
                partial[at + 1u] = hi;
            }
        }
        if (lid == 0u) {
            var sum = 0.0;
            for (var r = 0u; r < runs; r++) {
                sum += run_total[r] * exp(run_top[r] - highest);
            }
            sums[out + h] = vec2<f32>(highest, sum);
        }
    }
}
