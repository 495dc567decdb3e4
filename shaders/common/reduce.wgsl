// Reductions through workgroup memory, for adapters without subgroup operations.
// Every function must be called by all threads of the workgroup together.

var<workgroup> reduce_scratch: array<vec2<f32>, WG>;

// Sums over a run of `TPR` consecutive threads (a power of two): here a part is the whole run.

fn part_threads() -> u32 {
    return TPR;
}

fn run_join(v: vec2<f32>, lid: u32) -> vec2<f32> {
    return v;
}

// Sums over the thread's run, known to all of it.
fn part_sum(v: vec2<f32>, lid: u32) -> vec2<f32> {
    reduce_scratch[lid] = v;
    workgroupBarrier();
    for (var step = TPR / 2u; step > 0u; step /= 2u) {
        let other = reduce_scratch[lid ^ step];
        workgroupBarrier();
        reduce_scratch[lid] += other;
        workgroupBarrier();
    }
    let sum = reduce_scratch[lid];
    workgroupBarrier();
    return sum;
}

// The value of thread `lid ^ step` of the run.
fn part_swap(v: vec2<f32>, step: u32, lid: u32) -> vec2<f32> {
    reduce_scratch[lid] = v;
    workgroupBarrier();
    let other = reduce_scratch[lid ^ step];
    workgroupBarrier();
    return other;
}

// One sum of the same kind.
fn cluster_sum(v: f32, lid: u32) -> f32 {
    return part_sum(vec2<f32>(v, 0.0), lid).x;
}

// Sum over eight consecutive threads, known to all of them.
fn eight_sum(v: f32, lid: u32) -> f32 {
    var sum = v;
    for (var step = 1u; step < 8u; step *= 2u) {
        reduce_scratch[lid] = vec2<f32>(sum, 0.0);
        workgroupBarrier();
        sum += reduce_scratch[lid ^ step].x;
        workgroupBarrier();
    }
    return sum;
}

// Largest value of eight consecutive threads, known to all of them.
fn eight_max(v: f32, lid: u32) -> f32 {
    var largest = v;
    for (var step = 1u; step < 8u; step *= 2u) {
        reduce_scratch[lid] = vec2<f32>(largest, 0.0);
        workgroupBarrier();
        largest = max(largest, reduce_scratch[lid ^ step].x);
        workgroupBarrier();
    }
    return largest;
}

// Sum over the workgroup, known to all threads. WG is a power of two.
fn workgroup_sum(v: f32, lid: u32) -> f32 {
    reduce_scratch[lid] = vec2<f32>(v, 0.0);
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        if (lid < step) {
            reduce_scratch[lid].x += reduce_scratch[lid + step].x;
        }
        workgroupBarrier();
    }
    let sum = reduce_scratch[0].x;
    workgroupBarrier();
    return sum;
}

// Largest value over the workgroup, known to all threads. WG is a power of two.
fn workgroup_max(v: f32, lid: u32) -> f32 {
    reduce_scratch[lid] = vec2<f32>(v, 0.0);
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        if (lid < step) {
            reduce_scratch[lid].x = max(reduce_scratch[lid].x, reduce_scratch[lid + step].x);
        }
        workgroupBarrier();
    }
    let largest = reduce_scratch[0].x;
    workgroupBarrier();
    return largest;
}
