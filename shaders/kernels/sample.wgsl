// Picks the next token of a sequence from its penalised logits: temperature, top-k, top-p, min-p, then
// one draw. The draw is a race: each allowed token has an exponential waiting time with rate
// p_i, from a random number keyed by (seed, position, token), and the earliest wins. The winner has
// probability p_i / sum(p), whatever the order of evaluation.
//
// Cuts are thresholds on the logit, found by bisection over its bit pattern, so that nothing is
// sorted; tokens that tie with the last one kept are kept too. One workgroup an output column.
// Reference: reference::sample.

@group(0) @binding(1) var<storage, read> peaks: array<vec2<u32>>; // [output, part]: f32 bits of the largest logit, its token
@group(0) @binding(5) var<storage, read> logits: array<f32>; // [output, vocab], penalised
@group(0) @binding(6) var<storage, read_write> history: array<u32>; // [slot, vocab]: bit 31 = in the prompt, rest = times generated
@group(0) @binding(8) var<storage, read_write> ring: array<u32>; // [ring_len]: tokens by step
@group(0) @binding(9) var<storage, read_write> last_tokens: array<u32>; // [slot]

override WG: u32 = 256u;
override TPR: u32 = 8u;

// Bits whose unsigned order is the order of the floats.
fn order_bits(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

// A number in (0, 1) for this seed, position and token (PCG-style mixing of four words).
fn uniform_at(s: Sampling, position: u32, token: u32) -> f32 {
    var v = vec4<u32>(s.seed_low, s.seed_high, position, token);
    v = v * 1664525u + vec4<u32>(1013904223u);
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v = v ^ (v >> vec4<u32>(16u));
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    // The largest sum rounds up to 1, whose waiting time would not be a number to compare.
    return min((f32(v.x >> 8u) + 0.5) / 16777216.0, 0.99999994);
}

// -ln(1 - v) for v in (0, 1), accurate near 0, where ln alone would round 1 - v away.
fn waiting_time(v: f32) -> f32 {
    if (v < 0.02) {
        return v * (1.0 + v * (0.5 + v * (0.33333334 + v * 0.25)));
    }
    return -log(1.0 - v);
}

// Largest threshold above which at least `wanted` is left: tokens (counting = 1) or probability
// mass relative to the most likely token.
fn threshold(base: u32, lid: u32, low: u32, high: u32, wanted: f32, counting: bool, top: f32, rate: f32) -> u32 {
    var lo = low;
    var hi = high;
    while (lo < hi) {
        let middle = lo + (hi - lo + 1u) / 2u;
        var part = 0.0;
        for (var i = lid; i < params.vocab; i += WG) {
            let v = logits[base + i];
            if (order_bits(v) >= middle) {
                part += select(exp((v - top) * rate), 1.0, counting);
            }
        }
        if (workgroup_sum(part, lid) >= wanted) {
            lo = middle;
        } else {
            hi = middle - 1u;
        }
    }
    return lo;
}

fn draw(base: u32, lid: u32, s: Sampling, position: u32, top: f32) -> u32 {
    // Bounded, so that the top token's 0 * rate is 0 at the smallest temperatures too.
    let rate = min(1.0 / s.temperature, 1.0e30);
    let highest = order_bits(top);
    var cut = 0u;
    if (s.top_k > 0u && s.top_k < params.vocab) {
        cut = threshold(base, lid, 0u, highest, f32(s.top_k), true, top, rate);
    }
    if (s.top_p < 1.0) {
        var part = 0.0;
        for (var i = lid; i < params.vocab; i += WG) {
            let v = logits[base + i];
            if (order_bits(v) >= cut) {
                part += exp((v - top) * rate);
            }
        }
        let mass = workgroup_sum(part, lid);
        cut = threshold(base, lid, cut, highest, mass * s.top_p, false, top, rate);
    }
    if (s.min_p > 0.0) {
        cut = max(cut, order_bits(top + log(s.min_p) * s.temperature));
    }
    cut = min(cut, highest);
    var best = -3.0e38;
    var winner = params.vocab - 1u;
    for (var i = lid; i < params.vocab; i += WG) {
        let v = logits[base + i];
        if (order_bits(v) >= cut) {
            let score = (v - top) * rate - log(waiting_time(uniform_at(s, position, i)));
            if (score > best) {
                best = score;
                winner = i;
            }
        }
    }
    return best_of(best, winner, lid);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let column = step_output_first() + group.x;
    let slot = column_slot(column);
    let s = samplings[slot];
    let base = group.x * params.vocab;
    var best = -3.0e38;
    var index = params.vocab - 1u;
    for (var part = lid; part < params.parts; part += WG) {
        let peak = peaks[group.x * params.parts + part];
        let v = bitcast<f32>(peak.x);
        // Parts are in order of tokens: the lowest token wins among equals.
        if (v > best) {
            best = v;
            index = peak.y;
        }
    }
    let first = best_of(best, index, lid);
    let top = workgroup_max(best, lid);
    var token = first;
    if (s.temperature > 0.0) {
        token = draw(base, lid, s, column_position(column), top);
    }
    if (lid == 0u) {
        ring[(step_ring() + group.x) % params.ring_len] = token;
        last_tokens[slot] = token;
        history[slot * params.vocab + token] += 1u;
    }
}
