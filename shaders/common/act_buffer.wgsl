// Float activations in a storage buffer.

@group(0) @binding(3) var<storage, read> act: array<vec4<f32>>; // [column, block, 8]: 32 floats

fn act_at(index: u32) -> vec4<f32> {
    return act[index];
}
