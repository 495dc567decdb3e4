// x[column, i] += bias[i]: the bias of attention's output projection, which few models have.
//
// One thread four values; workgroup (i, c) does groups of four WG i .. of column c.
// Reference: reference::add_bias.

struct BiasParams {
    groups: u32, // groups of four values in a column
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: BiasParams;
@group(0) @binding(6) var<storage, read_write> x: array<vec4<f32>>; // [column, group]
@group(0) @binding(7) var<storage, read> bias: array<vec4<f32>>; // [group]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = group.x * WG + lid;
    if (i < params.groups) {
        x[group.y * params.groups + i] += bias[i];
    }
}
