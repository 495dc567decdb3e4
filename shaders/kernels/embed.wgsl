// x[column, :] = E[token of column, :], and marks the token as present in its slot's history.
//
// One thread a block of 32 values; workgroup (i, c) does blocks WG i .. of column c. Tokens outside
// this part of E are another dispatch's. Reference: reference::embed.

struct EmbedParams {
    blocks: u32, // blocks of 32 values in a row
    first_row: u32, // first token of this part
    rows: u32, // tokens of this part
    vocab: u32,
}

@group(0) @binding(0) var<uniform> params: EmbedParams;
@group(0) @binding(5) var<storage, read> last_tokens: array<u32>; // [slot]
@group(0) @binding(6) var<storage, read_write> x: array<vec4<f32>>; // [column, block, 8]
@group(0) @binding(7) var<storage, read_write> history: array<u32>; // [slot, vocab]: bit 31 = in the prompt, rest = times generated

override WG: u32 = 32u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let block = group.x * WG + lid;
    if (block >= params.blocks) {
        return;
    }
    let column = group.y;
    let given = column_token(column);
    var token = given;
    if (given == TOKEN_FROM_SLOT) {
        token = last_tokens[column_slot(column)];
    }
    if (token < params.first_row || token - params.first_row >= params.rows) {
        return;
    }
    let w = load_block(token - params.first_row, block, params.blocks);
    let at = 8u * (column * params.blocks + block);
    x[at] = values(w, 0u);
    x[at + 1u] = values(w, 1u);
    x[at + 2u] = values(w, 2u);
    x[at + 3u] = values(w, 3u);
    x[at + 4u] = values(w, 4u);
    x[at + 5u] = values(w, 5u);
    x[at + 6u] = values(w, 6u);
    x[at + 7u] = values(w, 7u);
    if (block == 0u && given != TOKEN_FROM_SLOT) {
        // Two columns may hold the same token: both then write the same value.
        let entry = column_slot(column) * params.vocab + token;
        history[entry] = history[entry] | 0x80000000u;
    }
}
