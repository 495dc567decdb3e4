// The step buffer: everything that changes from step to step, uploaded once a step.
// Words: header (8), then columns (4 each), then rope (cos, sin for each column and pair), then
// block tables. `step[4]` says how many columns there are.

@group(0) @binding(4) var<storage, read> step_words: array<u32>;

const STEP_HEADER: u32 = 8u;
// A column whose token is this takes the token its slot sampled last.
const TOKEN_FROM_SLOT: u32 = 0xffffffffu;

// Positions an attention split covers, or 0 for the rule of `column_split_len`.
fn step_split_len() -> u32 { return step_words[0]; }
// First column whose logits are wanted.
fn step_output_first() -> u32 { return step_words[2]; }
// Where in the token ring this step's sampled tokens go.
fn step_ring() -> u32 { return step_words[3]; }
// Columns of this step.
fn step_columns() -> u32 { return step_words[4]; }
// Word at which the block tables start.
fn step_tables() -> u32 { return step_words[5]; }

fn column_token(column: u32) -> u32 { return step_words[STEP_HEADER + 4u * column]; }
fn column_position(column: u32) -> u32 { return step_words[STEP_HEADER + 4u * column + 1u]; }
fn column_slot(column: u32) -> u32 { return step_words[STEP_HEADER + 4u * column + 3u]; }

// Word at which the block table of the column's sequence starts.
fn kv_table(column: u32) -> u32 {
    return step_tables() + step_words[STEP_HEADER + 4u * column + 2u];
}

// Positions of a split of the column's history: one split up to 256 positions, then splits of 64, and
// longer ones where there would be more than 64. It depends on the column alone, so that a result
// does not depend on who else is in the step.
fn column_split_len(column: u32) -> u32 {
    let forced = step_split_len();
    if (forced != 0u) {
        return forced;
    }
    let history = column_position(column) + 1u;
    if (history <= 256u) {
        return 256u;
    }
    var len = 64u;
    while (len * 64u < history) {
        len *= 2u;
    }
    return len;
}

// Splits of the column's history.
fn column_splits(column: u32) -> u32 {
    return column_position(column) / column_split_len(column) + 1u;
}

// (cos, sin) of the column's position for rotation pair `pair` of `pairs`.
fn rope_at(column: u32, pair: u32, pairs: u32) -> vec2<f32> {
    let word = STEP_HEADER + 4u * step_columns() + 2u * (column * pairs + pair);
    return vec2<f32>(bitcast<f32>(step_words[word]), bitcast<f32>(step_words[word + 1u]));
}
