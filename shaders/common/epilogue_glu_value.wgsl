// As common/epilogue_glu.wgsl, for activations that are stored value by value, not in blocks.

fn emit(column: u32, local_column: u32, row: u32, local_pair: u32, v: vec2<f32>) {
    store_value(column * params.out_stride + row / 2u, v.x / (1.0 + exp(-v.x)) * v.y);
}
