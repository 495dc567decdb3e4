// The largest value of a workgroup and where it is. Needs WG.

var<workgroup> best_value: array<f32, WG>;
var<workgroup> best_index: array<u32, WG>;

// Index of the largest value each thread brings, the lowest index among equals; known to all.
fn best_of(value: f32, index: u32, lid: u32) -> u32 {
    best_value[lid] = value;
    best_index[lid] = index;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        if (lid < step) {
            let v = best_value[lid + step];
            let i = best_index[lid + step];
            if (v > best_value[lid] || (v == best_value[lid] && i < best_index[lid])) {
                best_value[lid] = v;
                best_index[lid] = i;
            }
        }
        workgroupBarrier();
    }
    let index_best = best_index[0];
    workgroupBarrier();
    return index_best;
}
