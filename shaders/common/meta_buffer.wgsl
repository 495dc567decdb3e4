// The metadata plane of a weight matrix in a storage buffer, a word a unit.

@group(0) @binding(2) var<storage, read> weight_meta: array<u32>;

fn meta_at(index: u32) -> u32 {
    return weight_meta[index];
}
