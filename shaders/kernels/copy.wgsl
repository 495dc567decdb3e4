// to[i] = from[i]. The yardstick of the bench: what plain reading and writing reaches here.
//
// A thread has four vec4s on their way at a time, and neighbours copy neighbours. `count` is a
// multiple of four times the threads in all, so that no index needs a check of its own. Reference: the input itself.

struct CopyParams {
    count: u32, // vec4s: a multiple of four times the threads in all
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: CopyParams;
@group(0) @binding(1) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> target_words: array<vec4<u32>>;

override WG: u32 = 256u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let threads = groups.x * WG;
    for (var i = group.x * WG + lid; i < params.count; i += 4u * threads) {
        let a = source[i];
        let b = source[i + threads];
        let c = source[i + 2u * threads];
        let d = source[i + 3u * threads];
        target_words[i] = a;
        target_words[i + threads] = b;
        target_words[i + 2u * threads] = c;
        target_words[i + 3u * threads] = d;
    }
}
