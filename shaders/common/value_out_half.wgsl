// Writes single activations as f16, for kernels/gemm_coop.wgsl to read.

@group(0) @binding(5) var<storage, read_write> act_out: array<f16>; // [column, k]

fn store_value(index: u32, v: f32) {
    // Beyond f16's range a value counts as its largest, not as infinity.
    act_out[index] = f16(clamp(v, -65504.0, 65504.0));
}
