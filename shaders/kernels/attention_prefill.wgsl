// o = softmax(q K^T / sqrt(head_dim)) V for many columns, without splits.
//
// The queries of one KV head are rows: (column, query head), G rows a column. Workgroup (kv_head, n)
// does ROWS consecutive rows, the last rows first, since they have most to do. It walks the history in
// tiles of TILE positions, staged in workgroup memory a slab of head_dim at a time, and keeps for
// each row a running maximum, sum and output. ACROSS threads share a row, and a thread has FOUR rows:
// of the scores it has every ACROSSth position, of the output every ACROSSth chunk of eight values.
// Rows of several sequences may meet in a workgroup; each run of one block table is walked by itself.
// Reference: reference::attention.

struct AttentionParams {
    head_dim: u32,
    kv_heads: u32,
    block_len: u32, // positions of a KV block
    splits_max: u32, // unused
    window: u32, // sliding window in positions, 0 for none
    scale: f32, // 1 / sqrt(head_dim)
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [column, head, head_dim / 4]
@group(0) @binding(2) var<storage, read> k_cache: array<vec4<u32>>; // [block, kv_head, slot, head_dim / 8]: eight f16
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<u32>>; // [block, kv_head, slot, head_dim / 8]: eight f16

override WG: u32 = 64u; // a multiple of ACROSS
override G: u32 = 1u; // query heads of a KV head
override HEAD_DIM: u32 = 64u;
override SLAB: u32 = 8u; // chunks of eight values staged together, at most 16; divides HEAD_DIM / 8
const ACROSS: u32 = 8u;
const FOUR: u32 = 4u;
const TILE: u32 = 32u; // FOUR * ACROSS
// Least score: a finite number, so that differences with it are numbers.
const LEAST: f32 = -3.0e38;

var<workgroup> staged: array<vec4<u32>, TILE * (SLAB + 1u)>; // [position, chunk]; the odd stride spreads the banks
var<workgroup> shared_rows: array<vec4<f32>, FOUR * WG>; // weights: [row, across], of positions across + ACROSS * j
var<workgroup> shared_four: array<vec4<f32>, WG>; // a number for each of a thread's rows

fn half_lo(w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}

fn half_hi(w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w));
}

// Chunk of the caches at which position `p` of the sequence starts.
fn kv_line(table: u32, kv_head: u32, p: u32) -> u32 {
    let block = step_words[table + p / params.block_len];
    return ((block * params.kv_heads + kv_head) * params.block_len + p % params.block_len) * (HEAD_DIM / 8u);
}

// First position that a column at `position` sees.
fn oldest(position: u32) -> u32 {
    let windowed = params.window > 0u && position >= params.window;
    return select(0u, position + 1u - params.window, windowed);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let kv_head = group.x;
    let heads = params.kv_heads * G;
    let rows_end = step_columns() * G;
    let rows_of_group = FOUR * (WG / ACROSS);
    let row_first = (groups.y - 1u - group.y) * rows_of_group;
    if (row_first >= rows_end) {
        return;
    }
    let across = lid % ACROSS;
    let my_first = lid / ACROSS * FOUR;
    var tables: vec4<u32>;
    var newest: vec4<u32>;
    var first_seen: vec4<u32>;
    var q_at: vec4<u32>;
    for (var i = 0u; i < FOUR; i++) {
        let row = min(row_first + my_first + i, rows_end - 1u);
        let column = row / G;
        tables[i] = kv_table(column);
        newest[i] = column_position(column);
        first_seen[i] = oldest(newest[i]);
        q_at[i] = (column * heads + kv_head * G + row % G) * (HEAD_DIM / 4u);
    }
    var o_lo: array<vec4<f32>, 16>; // [slab, 2 chunks, row]
    var o_hi: array<vec4<f32>, 16>;
    for (var i = 0u; i < 16u; i++) {
        o_lo[i] = vec4<f32>(0.0);
        o_hi[i] = vec4<f32>(0.0);
    }
    var top = vec4<f32>(LEAST);
    var total = vec4<f32>(0.0);
    let slabs = HEAD_DIM / 8u / SLAB;
    let chunks = (SLAB + ACROSS - 1u) / ACROSS;

    var column = row_first / G;
    let column_end = (min(row_first + rows_of_group, rows_end) - 1u) / G + 1u;
    while (column < column_end) {
        // A run of columns of one sequence.
        let table = kv_table(column);
        var begin = 0xffffffffu;
        var end = 0u;
        while (column < column_end && kv_table(column) == table) {
            let position = column_position(column);
            begin = min(begin, oldest(position));
            end = max(end, position + 1u);
            column++;
        }
        let mine = tables == vec4<u32>(table);
        for (var tile = begin - begin % TILE; tile < end; tile += TILE) {
            var s: array<vec4<f32>, 4>; // [row]: positions across + ACROSS * j
            for (var i = 0u; i < FOUR; i++) {
                s[i] = vec4<f32>(0.0);
            }
            for (var slab = 0u; slab < slabs; slab++) {
                workgroupBarrier();
                for (var i = lid; i < TILE * SLAB; i += WG) {
                    let line = kv_line(table, kv_head, min(tile + i / SLAB, end - 1u));
                    staged[i / SLAB * (SLAB + 1u) + i % SLAB] = k_cache[line + slab * SLAB + i % SLAB];
                }
                workgroupBarrier();
                for (var chunk = 0u; chunk < SLAB; chunk++) {
                    let k0 = staged[across * (SLAB + 1u) + chunk];
                    let k1 = staged[(across + ACROSS) * (SLAB + 1u) + chunk];
                    let k2 = staged[(across + 2u * ACROSS) * (SLAB + 1u) + chunk];
                    let k3 = staged[(across + 3u * ACROSS) * (SLAB + 1u) + chunk];
                    let lo0 = half_lo(k0);
                    let lo1 = half_lo(k1);
                    let lo2 = half_lo(k2);
                    let lo3 = half_lo(k3);
                    let hi0 = half_hi(k0);
                    let hi1 = half_hi(k1);
                    let hi2 = half_hi(k2);
                    let hi3 = half_hi(k3);
                    for (var i = 0u; i < FOUR; i++) {
                        let at = q_at[i] + 2u * (slab * SLAB + chunk);
                        let lo = q[at];
                        let hi = q[at + 1u];
                        s[i] += vec4<f32>(
                            dot(lo, lo0) + dot(hi, hi0),
                            dot(lo, lo1) + dot(hi, hi1),
                            dot(lo, lo2) + dot(hi, hi2),
                            dot(lo, lo3) + dot(hi, hi3),
                        );
                    }
                }
            }
            // Softmax: the ACROSS threads of a row agree on its maximum; each keeps its own sum.
            let positions = vec4<u32>(tile + across) + ACROSS * vec4<u32>(0u, 1u, 2u, 3u);
            var highest = vec4<f32>(0.0);
            for (var i = 0u; i < FOUR; i++) {
                let seen = (positions <= vec4<u32>(newest[i])) & (positions >= vec4<u32>(first_seen[i]));
                s[i] = select(vec4<f32>(LEAST), s[i] * params.scale, seen & vec4<bool>(mine[i]));
                let pair = max(s[i].xy, s[i].zw);
                highest[i] = max(pair.x, pair.y);
            }
            shared_four[lid] = highest;
            workgroupBarrier();
            var now = top;
            for (var j = 0u; j < ACROSS; j++) {
                now = max(now, shared_four[lid - across + j]);
            }
            let shrink = exp(top - now);
            top = now;
            for (var i = 0u; i < FOUR; i++) {
                // Where a row has seen nothing yet, LEAST - LEAST is no weight of 1.
                let weights = select(exp(s[i] - now[i]), vec4<f32>(0.0), s[i] == vec4<f32>(LEAST));
                total[i] = total[i] * shrink[i] + dot(weights, vec4<f32>(1.0));
                shared_rows[(my_first + i) * ACROSS + across] = weights;
            }
            for (var b = 0u; b < slabs * chunks; b++) {
                for (var i = 0u; i < FOUR; i++) {
                    o_lo[b * FOUR + i] *= shrink[i];
                    o_hi[b * FOUR + i] *= shrink[i];
                }
            }
            for (var slab = 0u; slab < slabs; slab++) {
                if (slab > 0u) {
                    workgroupBarrier();
                }
                for (var i = lid; i < TILE * SLAB; i += WG) {
                    let line = kv_line(table, kv_head, min(tile + i / SLAB, end - 1u));
                    staged[i / SLAB * (SLAB + 1u) + i % SLAB] = v_cache[line + slab * SLAB + i % SLAB];
                }
                workgroupBarrier();
                for (var c = 0u; c < chunks; c++) {
                    let chunk = min(c * ACROSS + across, SLAB - 1u);
                    let b = (slab * chunks + c) * FOUR;
                    for (var n = 0u; n < ACROSS; n++) {
                        for (var j = 0u; j < FOUR; j++) {
                            let v = staged[(n + ACROSS * j) * (SLAB + 1u) + chunk];
                            let lo = half_lo(v);
                            let hi = half_hi(v);
                            for (var i = 0u; i < FOUR; i++) {
                                let weight = shared_rows[(my_first + i) * ACROSS + n][j];
                                o_lo[b + i] += weight * lo;
                                o_hi[b + i] += weight * hi;
                            }
                        }
                    }
                }
            }
        }
    }
    workgroupBarrier();
    shared_four[lid] = total;
    workgroupBarrier();
    var sum = vec4<f32>(0.0);
    for (var j = 0u; j < ACROSS; j++) {
        sum += shared_four[lid - across + j];
    }
    let inverse = 1.0 / sum;
    for (var slab = 0u; slab < slabs; slab++) {
        for (var c = 0u; c < chunks; c++) {
            for (var i = 0u; i < FOUR; i += 2u) {
                let b = (slab * chunks + c) * FOUR + i;
                let values = array<vec4<f32>, 4>(
                    o_lo[b] * inverse[i],
                    o_hi[b] * inverse[i],
                    o_lo[b + 1u] * inverse[i + 1u],
                    o_hi[b + 1u] * inverse[i + 1u],
                );
                store_chunks(row_first + my_first + i, rows_end, kv_head, slab * SLAB, c * ACROSS + across, values, lid);
            }
        }
    }
}
