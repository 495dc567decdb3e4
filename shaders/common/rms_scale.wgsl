// The factor of RMSNorm, 1 / sqrt(mean(x^2) + eps), over one column of `blocks` blocks of 32.
// The norm kernel and the products that norm their own input both add in this order, so that with
// the same WG they agree to the bit.

fn rms_scale(first: u32, blocks: u32, eps: f32, lid: u32) -> f32 {
    var square = 0.0;
    for (var i = lid; i < 8u * blocks; i += WG) {
        let v = x[first + i];
        square += dot(v, v);
    }
    return 1.0 / sqrt(workgroup_sum(square, lid) / f32(32u * blocks) + eps);
}
