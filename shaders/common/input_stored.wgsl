// The input of a matrix product is stored activations: nothing to prepare.

fn prepare_input(column: u32, lid: u32) {}

fn input_block(column: u32, block: u32) -> ActBlock {
    return load_act(column, block, BLOCKS);
}
