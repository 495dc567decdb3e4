// The quant plane of a weight matrix in a storage buffer, row by row.

@group(0) @binding(1) var<storage, read> weight_quants: array<vec4<u32>>;

// Where unit `unit` of `units` of a row lies in its plane, in units.
fn plane_index(row: u32, unit: u32, units: u32) -> u32 {
    return row * units + unit;
}

fn quant_at(index: u32) -> vec4<u32> {
    return weight_quants[index];
}
