// The first half of picking a token: penalises the logits in place, and finds the largest logit of
// each part of the vocabulary. Workgroup (i, c) does part i of output column c.
// Reference: reference::penalised.

@group(0) @binding(5) var<storage, read_write> logits: array<f32>; // [output, vocab]
@group(0) @binding(6) var<storage, read> history: array<u32>; // [slot, vocab]: bit 31 = in the prompt, rest = times generated
@group(0) @binding(8) var<storage, read_write> peaks: array<vec2<u32>>; // [output, part]: f32 bits of the largest logit, its token

override WG: u32 = 256u;

fn penalised(v: f32, seen: u32, s: Sampling) -> f32 {
    var result = select(v * s.repeat_penalty, v / s.repeat_penalty, v > 0.0);
    let times = seen & 0x7fffffffu;
    if (times > 0u) {
        result -= f32(times) * s.frequency_penalty + s.presence_penalty;
    }
    return result;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let slot = column_slot(step_output_first() + group.y);
    let s = samplings[slot];
    let base = group.y * params.vocab;
    let len = (params.vocab + params.parts - 1u) / params.parts;
    let end = min(params.vocab, (group.x + 1u) * len);
    var best = -3.0e38;
    var index = params.vocab - 1u;
    for (var i = group.x * len + lid; i < end; i += WG) {
        var v = logits[base + i];
        if (s.penalties == 1u) {
            let seen = history[slot * params.vocab + i];
            if (seen != 0u) {
                v = penalised(v, seen, s);
                logits[base + i] = v;
            }
        }
        if (v > best) {
            best = v;
            index = i;
        }
    }
    let winner = best_of(best, index, lid);
    if (lid == 0u) {
        peaks[group.y * params.parts + group.x] = vec2<u32>(bitcast<u32>(best_value[0]), winner);
    }
}
