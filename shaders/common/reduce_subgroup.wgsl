// Reductions by subgroup operations. SG is at most the smallest subgroup size, so SG consecutive
// threads never span two subgroups. Every function must be called by all threads together.

override SG: u32 = 8u; // threads that shuffles may reach: a power of two, at least 8

var<workgroup> reduce_scratch: array<vec2<f32>, WG / SG>; // one entry each SG threads
var<workgroup> run_scratch: array<vec2<f32>, WG>; // of runs longer than SG

// Sum over each run of `TPR` consecutive threads (a power of two, at most SG and 32), known to all of
// the run. Not in a loop: a step that is no constant costs software adapters ten times as much.
fn cluster_sum(v: f32, lid: u32) -> f32 {
    var sum = v;
    if (TPR > 16u) { sum += subgroupShuffleXor(sum, 16u); }
    if (TPR > 8u) { sum += subgroupShuffleXor(sum, 8u); }
    if (TPR > 4u) { sum += subgroupShuffleXor(sum, 4u); }
    if (TPR > 2u) { sum += subgroupShuffleXor(sum, 2u); }
    if (TPR > 1u) { sum += subgroupShuffleXor(sum, 1u); }
    return sum;
}

// Sums over a run of `TPR` consecutive threads (any power of two up to WG) come in two halves: first
// over each part of a run that shuffles reach, without barriers; then over the run's parts, for each
// position in a part by itself.

fn part_threads() -> u32 {
    return min(TPR, SG);
}

// Sums over the thread's part, known to all of it.
fn part_sum(v: vec2<f32>, lid: u32) -> vec2<f32> {
    var sum = v;
    for (var step = min(TPR, SG) / 2u; step > 0u; step /= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    return sum;
}

// The value of thread `lid ^ step` of the part.
fn part_swap(v: vec2<f32>, step: u32, lid: u32) -> vec2<f32> {
    return subgroupShuffleXor(v, step);
}

// Sums over the threads at the same position of each part of the run, known to all of them.
fn run_join(v: vec2<f32>, lid: u32) -> vec2<f32> {
    if (TPR <= SG) {
        return v;
    }
    run_scratch[lid] = v;
    workgroupBarrier();
    let first = lid / TPR * TPR + lid % SG;
    var sum = run_scratch[first];
    for (var i = 1u; i < TPR / SG; i++) {
        sum += run_scratch[first + i * SG];
    }
    workgroupBarrier();
    return sum;
}

// Sum over eight consecutive threads, known to all of them.
fn eight_sum(v: f32, lid: u32) -> f32 {
    let pairs = v + subgroupShuffleXor(v, 1u);
    let fours = pairs + subgroupShuffleXor(pairs, 2u);
    return fours + subgroupShuffleXor(fours, 4u);
}

// Largest value of eight consecutive threads, known to all of them.
fn eight_max(v: f32, lid: u32) -> f32 {
    let pairs = max(v, subgroupShuffleXor(v, 1u));
    let fours = max(pairs, subgroupShuffleXor(pairs, 2u));
    return max(fours, subgroupShuffleXor(fours, 4u));
}

// Sum over the workgroup, known to all threads.
fn workgroup_sum(v: f32, lid: u32) -> f32 {
    var part = v;
    for (var step = SG / 2u; step > 0u; step /= 2u) {
        part += subgroupShuffleXor(part, step);
    }
    if (lid % SG == 0u) {
        reduce_scratch[lid / SG] = vec2<f32>(part, 0.0);
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < WG / SG; i++) {
        sum += reduce_scratch[i].x;
    }
    workgroupBarrier();
    return sum;
}

// Largest value over the workgroup, known to all threads.
fn workgroup_max(v: f32, lid: u32) -> f32 {
    var part = v;
    for (var step = SG / 2u; step > 0u; step /= 2u) {
        part = max(part, subgroupShuffleXor(part, step));
    }
    if (lid % SG == 0u) {
        reduce_scratch[lid / SG] = vec2<f32>(part, 0.0);
    }
    workgroupBarrier();
    var largest = reduce_scratch[0].x;
    for (var i = 1u; i < WG / SG; i++) {
        largest = max(largest, reduce_scratch[i].x);
    }
    workgroupBarrier();
    return largest;
}
