// Quantises activations to int8 in blocks of 32, for common/act_int8.wgsl to read:
// d = max|x| / 127, q = round(x / d), s = d * sum(q).

@group(0) @binding(5) var<storage, read_write> act_out: array<vec4<u32>>; // [column, block, 3]: q 0..15, q 16..31, (d, s, 0, 0)

// Stores block `block` of the `blocks` blocks of a column.
fn store_act(column: u32, block: u32, blocks: u32, v: ptr<function, array<vec4<f32>, 8>>) {
    let index = column * blocks + block;
    var peak = vec4<f32>(0.0);
    for (var i = 0u; i < 8u; i++) {
        peak = max(peak, abs((*v)[i]));
    }
    let largest = max(max(peak.x, peak.y), max(peak.z, peak.w));
    let d = largest / 127.0;
    // A block of zeros has d = 0; its quotient must be 0, not NaN.
    let inverse = select(0.0, 127.0 / largest, largest > 0.0);
    var total = vec4<i32>(0);
    var words: array<u32, 8>;
    for (var i = 0u; i < 8u; i++) {
        let q = vec4<i32>(round((*v)[i] * inverse));
        total += q;
        words[i] = pack4xI8(q);
    }
    act_out[3u * index] = vec4<u32>(words[0], words[1], words[2], words[3]);
    act_out[3u * index + 1u] = vec4<u32>(words[4], words[5], words[6], words[7]);
    let s = d * f32(total.x + total.y + total.z + total.w);
    act_out[3u * index + 2u] = bitcast<vec4<u32>>(vec4<f32>(d, s, 0.0, 0.0));
}
