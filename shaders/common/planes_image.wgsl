// The planes of a weight matrix in images, in tiles of 32 rows: a tile holds its rows' first units,
// then their second, and so on. For software adapters, which read a texel in far fewer instructions
// than a word of a buffer, and whose threads walk a row each: a tile is read from front to back.

@group(0) @binding(1) var weight_quants: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(2) var weight_meta: texture_storage_2d<r32uint, read>;

// Where unit `unit` of `units` of a row lies in its plane, in units.
fn plane_index(row: u32, unit: u32, units: u32) -> u32 {
    return (row / 32u * units + unit) * 32u + row % 32u;
}

fn quant_at(index: u32) -> vec4<u32> {
    return textureLoad(weight_quants, texel(index));
}

fn meta_at(index: u32) -> u32 {
    return textureLoad(weight_meta, texel(index)).x;
}

// A unit of four words.
fn wide_meta_at(index: u32) -> vec4<u32> {
    let i = 4u * index;
    return vec4<u32>(meta_at(i), meta_at(i + 1u), meta_at(i + 2u), meta_at(i + 3u));
}
