// Quantises a block of 32 activations by eight consecutive threads, as common/act_out_int8.wgsl does by one.

// A thread's four values, and the block's scale and sum.
struct EightQuants {
    word: u32,
    scale: f32,
    sum: f32,
}

// `y` is values 4 (lid % 8) and on of the block. Called by all threads of the workgroup together.
fn eight_quants(y: vec4<f32>, lid: u32) -> EightQuants {
    let size = abs(y);
    let largest = eight_max(max(max(size.x, size.y), max(size.z, size.w)), lid);
    let q = vec4<i32>(round(y * select(0.0, 127.0 / largest, largest > 0.0)));
    let total = eight_sum(f32(q.x + q.y + q.z + q.w), lid);
    let d = largest / 127.0;
    return EightQuants(pack4xI8(q), d, d * total);
}
