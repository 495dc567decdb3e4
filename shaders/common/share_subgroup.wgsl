// Activations that all threads of a workgroup need: each of eight lanes loads one block, and the
// subgroup hands them round. A subgroup has at least eight threads.

// `v` of lane `lane`, below 8 and the same for all threads.
fn from_lane(v: vec4<f32>, lane: u32) -> vec4<f32> {
    return subgroupShuffle(v, lane);
}

// What a thread loads ahead of `pick_act`: block `block` of the lane's column of the tile from `column`
// on, or block `block + lane` of column `column`.
fn ahead_act(column: u32, block: u32, blocks: u32, lid: u32, by_column: bool) -> ActBlock {
    let lane = lid % 8u;
    if (by_column) {
        return load_act(column + lane % TILE_COLUMNS, block, blocks);
    }
    return load_act(column, min(block + lane, blocks - 1u), blocks);
}

// Activations of `column`, `block`, the `i`th of those loaded ahead.
fn pick_act(ahead: ActBlock, column: u32, block: u32, blocks: u32, i: u32) -> ActBlock {
    return shared_act(ahead, i);
}
