// Reductions by subgroup operations. TPR is at most the smallest subgroup size, so a run of TPR
// threads never spans two subgroups. Every function must be called by all threads together.

var<workgroup> reduce_scratch: array<f32, WG / TPR>; // one entry a run

// Sum over each run of `TPR` consecutive threads (a power of two), known to all of the run.
fn cluster_sum(v: vec2<f32>, lid: u32) -> vec2<f32> {
    var sum = v;
    for (var step = TPR / 2u; step > 0u; step /= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    return sum;
}

// Sum over the workgroup, known to all threads.
fn workgroup_sum(v: f32, lid: u32) -> f32 {
    var part = v;
    for (var step = TPR / 2u; step > 0u; step /= 2u) {
        part += subgroupShuffleXor(part, step);
    }
    if (lid % TPR == 0u) {
        reduce_scratch[lid / TPR] = part;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < WG / TPR; i++) {
        sum += reduce_scratch[i];
    }
    workgroupBarrier();
    return sum;
}

// Largest value over the workgroup, known to all threads.
fn workgroup_max(v: f32, lid: u32) -> f32 {
    var part = v;
    for (var step = TPR / 2u; step > 0u; step /= 2u) {
        part = max(part, subgroupShuffleXor(part, step));
    }
    if (lid % TPR == 0u) {
        reduce_scratch[lid / TPR] = part;
    }
    workgroupBarrier();
    var largest = reduce_scratch[0];
    for (var i = 1u; i < WG / TPR; i++) {
        largest = max(largest, reduce_scratch[i]);
    }
    workgroupBarrier();
    return largest;
}
