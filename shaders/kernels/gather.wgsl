// y[column, k] = x[column, order[k]], stored as activations for the next matrix product: where the columns
// of its weights were sorted by group.
//
// One thread a block of 32 values; workgroup (i, c) does blocks WG i .. of column c.
// Reference: reference::gather.

struct GatherParams {
    blocks: u32, // blocks of 32 values in a column
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: GatherParams;
@group(0) @binding(6) var<storage, read> x: array<f32>; // [column, 32 blocks]
@group(0) @binding(7) var<storage, read> order: array<vec4<u32>>; // [block, 8]: columns of x

override WG: u32 = 32u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let block = group.x * WG + lid;
    if (block >= params.blocks) {
        return;
    }
    let first = 32u * params.blocks * group.y;
    var y: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let at = vec4<u32>(first) + order[8u * block + i];
        y[i] = vec4<f32>(x[at.x], x[at.y], x[at.z], x[at.w]);
    }
    store_act(group.y, block, params.blocks, &y);
}
