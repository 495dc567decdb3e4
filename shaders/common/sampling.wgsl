// One slot's sampling settings, and the parameters of the kernels that use them.

struct SampleParams {
    vocab: u32,
    ring_len: u32,
    parts: u32, // parts of the vocabulary that kernels/peaks.wgsl looks at
    pad: u32,
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
@group(0) @binding(7) var<storage, read> samplings: array<Sampling>; // [slot]
