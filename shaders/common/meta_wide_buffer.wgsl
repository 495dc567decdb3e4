// The metadata plane of a weight matrix in a storage buffer, four words a unit.

@group(0) @binding(2) var<storage, read> weight_meta: array<vec4<u32>>;

fn wide_meta_at(index: u32) -> vec4<u32> {
    return weight_meta[index];
}
