// to[i] = from[i]. The yardstick of the bench: what plain reading and writing reaches here.
//
// A thread copies every (threads in all)th vec4, so that neighbours copy neighbours.
// Reference: the input itself.

struct CopyParams {
    count: u32, // vec4s
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
    for (var i = group.x * WG + lid; i < params.count; i += groups.x * WG) {
        target_words[i] = source[i];
    }
}
