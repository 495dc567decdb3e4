// Metadata of the flavours with a scale for each 16 columns: w = d * s * n.

// Metadata plane: [row]: [ceil(blocks / 8)]: sixteen signed bytes s, in four units; then
// [ceil(blocks / 16)]: f16 d of two runs of eight blocks.

// The scales of the block's first and second half.
fn half_scales(row: u32, block: u32, blocks: u32) -> vec2<f32> {
    let runs = (blocks + 7u) / 8u;
    let units = 4u * runs + (runs + 1u) / 2u;
    let run = block / 8u;
    let word = meta_at(plane_index(row, 4u * run + (block & 7u) / 2u, units));
    let pairs = vec4<f32>(unpack4xI8(word));
    let s = select(pairs.xy, pairs.zw, (block & 1u) == 1u);
    let two = unpack2x16float(meta_at(plane_index(row, 4u * runs + run / 2u, units)));
    return select(two.x, two.y, (run & 1u) == 1u) * s;
}
