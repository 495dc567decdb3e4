// Writes single activations as 32-bit floats, for common/input_float.wgsl to read.

@group(0) @binding(5) var<storage, read_write> act_out: array<f32>; // [column, k]

fn store_value(index: u32, v: f32) {
    act_out[index] = v;
}
