// Picks the next token of a sequence from its logits: penalties, temperature, top-k, top-p, min-p,
// then one draw. The draw is a race: each allowed token has an exponential waiting time with rate
// p_i, from a random number keyed by (seed, position, token), and the earliest wins. The winner has
// probability p_i / sum(p), whatever the order of evaluation.
//
// Cuts are thresholds on the logit, found by bisection over its bit pattern, so that nothing is
// sorted; tokens that tie with the last one kept are kept too. One workgroup an output column.
// Reference: reference::sample.

struct SampleParams {
    vocab: u32,
    ring_len: u32,
    pad0: u32,
    pad1: u32,
}

struct Sampling {
    temperature: f32, // 0: the most likely token
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    top_k: u32, // 0: all
    penalties: u32, // 1 where any penalty is in force
    seed_low: u32,
    seed_high: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: SampleParams;
@group(0) @binding(5) var<storage, read_write> logits: array<f32>; // [output, vocab]; penalised in place
@group(0) @binding(6) var<storage, read_write> history: array<u32>; // [slot, vocab]: bit 31 = in the prompt, rest = times generated
@group(0) @binding(7) var<storage, read> samplings: array<Sampling>; // [slot]
@group(0) @binding(8) var<storage, read_write> ring: array<u32>; // [ring_len]: tokens by step
@group(0) @binding(9) var<storage, read_write> last_tokens: array<u32>; // [slot]

override WG: u32 = 256u;
override TPR: u32 = 8u;

var<workgroup> best_value: array<f32, WG>;
var<workgroup> best_index: array<u32, WG>;

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

fn penalise(base: u32, slot: u32, s: Sampling, lid: u32) {
    for (var i = lid; i < params.vocab; i += WG) {
        let seen = history[slot * params.vocab + i];
        if (seen != 0u) {
            var v = logits[base + i];
            v = select(v * s.repeat_penalty, v / s.repeat_penalty, v > 0.0);
            let times = seen & 0x7fffffffu;
            if (times > 0u) {
                v -= f32(times) * s.frequency_penalty + s.presence_penalty;
            }
            logits[base + i] = v;
        }
    }
}

// Index of the largest value each thread brings, the lowest index among equals; known to all.
fn best_of(value: f32, index: u32, lid: u32) -> u32 {
    best_value[lid] = value;
    best_index[lid] = index;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        if (lid < step) {
            let v = best_value[lid + step];
            let i = best_index[lid + step];
            if (v > best_value[lid] || (v == best_value[lid] && i < best_index[lid])) {
                best_value[lid] = v;
                best_index[lid] = i;
            }
        }
        workgroupBarrier();
    }
    let index_best = best_index[0];
    workgroupBarrier();
    return index_best;
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
    if (s.penalties == 1u) {
        penalise(base, slot, s, lid);
    }
    var best = -3.0e38;
    var index = params.vocab - 1u;
    // A thread reads back only what it wrote in `penalise`: the same stride.
    for (var i = lid; i < params.vocab; i += WG) {
        let v = logits[base + i];
        if (v > best) {
            best = v;
            index = i;
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
