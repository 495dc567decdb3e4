// Quants of five, six and three bits: a run of 4-bit or 2-bit numbers, and behind it, in the same row,
// the bits above them.

const LOW_FIELDS: vec4<u32> = vec4<u32>(0u, 1u, 2u, 3u);

// A bit a weight: bit 8 j + k of a block's word is that of weight 4 k + j. A unit serves four blocks.
fn one_bits(first: u32, row: u32, block: u32, units: u32) -> u32 {
    return quant_at(plane_index(row, first + block / 4u, units))[block & 3u];
}

// The bits of weights 0..15 and 16..31, a byte each.
fn ones_lo(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> LOW_FIELDS) & vec4<u32>(0x01010101u);
}

fn ones_hi(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> (LOW_FIELDS + vec4<u32>(4u))) & vec4<u32>(0x01010101u);
}

// Two bits a weight: bits 8 j + 2 k and on of a block's first word are those of weight 4 k + j, those of
// its second word of weight 16 + 4 k + j. A unit serves two blocks.
fn two_bits(first: u32, row: u32, block: u32, units: u32) -> vec2<u32> {
    let unit = quant_at(plane_index(row, first + block / 2u, units));
    return select(unit.xy, unit.zw, (block & 1u) == 1u);
}

// The bits of 16 weights, a byte each.
fn twos(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> (2u * LOW_FIELDS)) & vec4<u32>(0x03030303u);
}
