// o = softmax(q K^T / sqrt(head_dim)) V for many columns, without splits.
//
// Workgroup (kv_head, n) does WG / 2 consecutive rows (common/attention_rows.wgsl), the last rows first,
// since they have most to do. It walks the history in tiles of TILE positions, staged in workgroup memory, and keeps for each row a running maximum,
// sum and output. ACROSS threads share a row, and a thread has four rows, by name, because an array
// that a loop indexes may end up in memory: of the scores it has every ACROSSth position, of the output
// every ACROSSth chunk of eight values.
// Reference: reference::attention.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [column, head, head_dim / 4]
@group(0) @binding(2) var<storage, read> k_cache: array<vec4<u32>>; // [block, kv_head, slot, head_dim / 8]: eight f16
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<u32>>; // [block, kv_head, slot, head_dim / 8]: eight f16

override WG: u32 = 64u; // divides TILE * LINE
override G: u32 = 1u; // query heads of a KV head
override HEAD_DIM: u32 = 64u; // at most 256
override LINE: u32 = 8u; // HEAD_DIM / 8
const ACROSS: u32 = 8u;
const TILE: u32 = 32u; // 4 * ACROSS
// Least score: a finite number, so that differences with it are numbers.
const LEAST: f32 = -3.0e38;

var<workgroup> staged: array<vec4<u32>, TILE * (LINE + 1u)>; // [position, chunk]; the odd stride spreads the banks
var<workgroup> shared_rows: array<vec4<f32>, 4u * WG>; // weights: [row, across], of positions across + ACROSS * j
var<workgroup> shared_four: array<vec4<f32>, WG>; // a number for each of a thread's rows

fn half_lo(w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}

fn half_hi(w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w));
}

fn lo_of(a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(half_lo(a), half_lo(b), half_lo(c), half_lo(d));
}

fn hi_of(a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(half_hi(a), half_hi(b), half_hi(c), half_hi(d));
}

// Chunk `chunk` of the rows `row` and `row + 1`; there are `rows_end` rows.
struct Chunk {
    row: u32,
    chunk: u32,
    kv_head: u32,
    rows_end: u32,
}

// A row's own facts: (first word of its queries, first position it sees, the last one, block table).
fn row_facts(row: u32, kv_head: u32) -> vec4<u32> {
    let column = row / G;
    let position = column_position(column);
    let head = (column * params.kv_heads + kv_head) * G + row % G;
    return vec4<u32>(head * (HEAD_DIM / 4u), oldest(position), position, kv_table(column));
}

// A row's scores, LEAST where it does not see the position.
fn masked(s: vec4<f32>, positions: vec4<u32>, row: vec4<u32>, table: u32) -> vec4<f32> {
    let seen = (positions >= vec4<u32>(row.y)) & (positions <= vec4<u32>(row.z));
    return select(vec4<f32>(LEAST), s * params.scale, seen & vec4<bool>(row.w == table));
}

fn highest_of(s: vec4<f32>) -> f32 {
    let pair = max(s.xy, s.zw);
    return max(pair.x, pair.y);
}

// exp(s - top), 0 where not seen: where a row has seen nothing yet, LEAST - LEAST is no weight of 1.
fn weights_of(s: vec4<f32>, top: f32) -> vec4<f32> {
    return select(exp(s - top), vec4<f32>(0.0), s == vec4<f32>(LEAST));
}

// Stages the `i`th chunk of a tile's lines.
fn stage(i: u32, chunk: vec4<u32>) {
    staged[i / LINE * (LINE + 1u) + i % LINE] = chunk;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let kv_head = group.x;
    let rows_end = step_columns() * G;
    let row_first = (groups.y - 1u - group.y) * (WG / 2u);
    let across = lid % ACROSS;
    let mine = lid / ACROSS * 4u; // of the workgroup's rows, the first of this thread's
    let row0 = row_facts(min(row_first + mine, rows_end - 1u), kv_head);
    let row1 = row_facts(min(row_first + mine + 1u, rows_end - 1u), kv_head);
    let row2 = row_facts(min(row_first + mine + 2u, rows_end - 1u), kv_head);
    let row3 = row_facts(min(row_first + mine + 3u, rows_end - 1u), kv_head);
    var o0: array<vec4<f32>, 8>; // [chunk of this thread, 2]
    var o1: array<vec4<f32>, 8>;
    var o2: array<vec4<f32>, 8>;
    var o3: array<vec4<f32>, 8>;
    let chunks = (LINE + ACROSS - 1u) / ACROSS;
    for (var b = 0u; b < 2u * chunks; b++) {
        o0[b] = vec4<f32>(0.0);
        o1[b] = vec4<f32>(0.0);
        o2[b] = vec4<f32>(0.0);
        o3[b] = vec4<f32>(0.0);
    }
    var top = vec4<f32>(LEAST); // of the four rows
    var total = vec4<f32>(0.0); // of this thread's weights

    // Loads run ahead of their use: K by most of a tile, V by the scores.
    let loads = TILE * LINE / WG; // at most 16
    var k_ahead: array<vec4<u32>, 16>;
    var v_ahead: array<vec4<u32>, 16>;
    var done = false;
    while (true) {
        let run = next_run(row_first, &done, lid);
        if (run.x == NO_ROW) {
            break;
        }
        let table = kv_table(run.x / G);
        let begin = run.y - run.y % TILE;
        find_lines(table, kv_head, begin, run.z, lid);
        workgroupBarrier();
        for (var i = 0u; i < loads; i++) {
            let at = lid + i * WG;
            k_ahead[i] = k_cache[lines[at / LINE] + at % LINE];
        }
        for (var tile = begin; tile <= run.z; tile += TILE) {
            for (var i = 0u; i < loads; i++) {
                stage(lid + i * WG, k_ahead[i]);
            }
            for (var i = 0u; i < loads; i++) {
                let at = lid + i * WG;
                v_ahead[i] = v_cache[lines[at / LINE] + at % LINE];
            }
            workgroupBarrier();
            var s0 = vec4<f32>(0.0); // of positions across + ACROSS * j
            var s1 = vec4<f32>(0.0);
            var s2 = vec4<f32>(0.0);
            var s3 = vec4<f32>(0.0);
            for (var chunk = 0u; chunk < LINE; chunk++) {
                let k0 = staged[across * (LINE + 1u) + chunk];
                let k1 = staged[(across + ACROSS) * (LINE + 1u) + chunk];
                let k2 = staged[(across + 2u * ACROSS) * (LINE + 1u) + chunk];
                let k3 = staged[(across + 3u * ACROSS) * (LINE + 1u) + chunk];
                let lo = lo_of(k0, k1, k2, k3);
                let hi = hi_of(k0, k1, k2, k3);
                s0 += q[row0.x + 2u * chunk] * lo + q[row0.x + 2u * chunk + 1u] * hi;
                s1 += q[row1.x + 2u * chunk] * lo + q[row1.x + 2u * chunk + 1u] * hi;
                s2 += q[row2.x + 2u * chunk] * lo + q[row2.x + 2u * chunk + 1u] * hi;
                s3 += q[row3.x + 2u * chunk] * lo + q[row3.x + 2u * chunk + 1u] * hi;
            }
            // Softmax: the ACROSS threads of a row agree on its maximum; each keeps its own sum.
            let positions = vec4<u32>(tile + across) + ACROSS * vec4<u32>(0u, 1u, 2u, 3u);
            s0 = masked(s0, positions, row0, table);
            s1 = masked(s1, positions, row1, table);
            s2 = masked(s2, positions, row2, table);
            s3 = masked(s3, positions, row3, table);
            shared_four[lid] = vec4<f32>(highest_of(s0), highest_of(s1), highest_of(s2), highest_of(s3));
            workgroupBarrier();
            for (var i = 0u; i < loads; i++) {
                stage(lid + i * WG, v_ahead[i]);
            }
            find_lines(table, kv_head, tile + TILE, run.z, lid);
            var now = top;
            for (var j = 0u; j < ACROSS; j++) {
                now = max(now, shared_four[lid - across + j]);
            }
            let shrink = exp(top - now);
            top = now;
            s0 = weights_of(s0, now.x);
            s1 = weights_of(s1, now.y);
            s2 = weights_of(s2, now.z);
            s3 = weights_of(s3, now.w);
            let one = vec4<f32>(1.0);
            total = total * shrink + vec4<f32>(dot(s0, one), dot(s1, one), dot(s2, one), dot(s3, one));
            shared_rows[mine * ACROSS + across] = s0;
            shared_rows[(mine + 1u) * ACROSS + across] = s1;
            shared_rows[(mine + 2u) * ACROSS + across] = s2;
            shared_rows[(mine + 3u) * ACROSS + across] = s3;
            for (var b = 0u; b < 2u * chunks; b++) {
                o0[b] *= shrink.x;
                o1[b] *= shrink.y;
                o2[b] *= shrink.z;
                o3[b] *= shrink.w;
            }
            workgroupBarrier();
            for (var i = 0u; i < loads; i++) {
                let at = lid + i * WG;
                k_ahead[i] = k_cache[lines[at / LINE] + at % LINE];
            }
            for (var n = 0u; n < ACROSS; n++) {
                let w0 = shared_rows[mine * ACROSS + n];
                let w1 = shared_rows[(mine + 1u) * ACROSS + n];
                let w2 = shared_rows[(mine + 2u) * ACROSS + n];
                let w3 = shared_rows[(mine + 3u) * ACROSS + n];
                for (var c = 0u; c < chunks; c++) {
                    let at = n * (LINE + 1u) + min(c * ACROSS + across, LINE - 1u);
                    let v0 = staged[at];
                    let v1 = staged[at + ACROSS * (LINE + 1u)];
                    let v2 = staged[at + 2u * ACROSS * (LINE + 1u)];
                    let v3 = staged[at + 3u * ACROSS * (LINE + 1u)];
                    let lo = lo_of(v0, v1, v2, v3);
                    let hi = hi_of(v0, v1, v2, v3);
                    o0[2u * c] += lo * w0;
                    o0[2u * c + 1u] += hi * w0;
                    o1[2u * c] += lo * w1;
                    o1[2u * c + 1u] += hi * w1;
                    o2[2u * c] += lo * w2;
                    o2[2u * c + 1u] += hi * w2;
                    o3[2u * c] += lo * w3;
                    o3[2u * c + 1u] += hi * w3;
                }
            }
            workgroupBarrier();
        }
    }
    shared_four[lid] = total;
    workgroupBarrier();
    var sum = vec4<f32>(0.0);
    for (var j = 0u; j < ACROSS; j++) {
        sum += shared_four[lid - across + j];
    }
    let inverse = 1.0 / sum;
    for (var c = 0u; c < chunks; c++) {
        let first = Chunk(row_first + mine, c * ACROSS + across, kv_head, rows_end);
        let b = 2u * c;
        let next = b + 1u;
        let upper = array<vec4<f32>, 4>(o0[b] * inverse.x, o0[next] * inverse.x, o1[b] * inverse.y, o1[next] * inverse.y);
        store_chunks(first, upper, lid);
        let second = Chunk(first.row + 2u, first.chunk, kv_head, rows_end);
        let lower = array<vec4<f32>, 4>(o2[b] * inverse.z, o2[next] * inverse.z, o3[b] * inverse.w, o3[next] * inverse.w);
        store_chunks(second, lower, lid);
    }
}
