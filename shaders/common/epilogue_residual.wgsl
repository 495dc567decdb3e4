// Epilogue: x[column, row] += product. For the output and down projections.

@group(0) @binding(6) var<storage, read_write> x: array<f32>; // [column, out_stride]: the residual stream

fn emit(column: u32, local_column: u32, row: u32, local_pair: u32, v: vec2<f32>) {
    let index = column * params.out_stride + row;
    x[index] += v.x;
    if (row + 1u < params.rows) {
        x[index + 1u] += v.y;
    }
}

fn finish(first_column: u32, columns: u32, first_pair: u32, lid: u32) {}
