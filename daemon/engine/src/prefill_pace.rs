//! How many prompt tokens a step may take, so that no submission holds the GPU for long: the desktop
//! stays smooth, other sequences get their turn, and no driver's watchdog fires.
//!
//! Measured once a load; while several sequences are at work, also from the steps that run: who waits
//! for a long step then is a neighbour. What is computed does not depend on how a prompt is cut.

use std::time::{Duration, Instant};

use crate::AdapterKind;
use crate::error::EngineError;
use crate::gpu::Gpu;
use crate::model::{Column, Forward, ModelConfig, StepInput};

/// Longest that a prefill step should take.
const STEP_TIME_MAX: Duration = Duration::from_millis(100);
/// Longest that a sequence alone may take in one, when its context has grown: somebody may come.
const STEP_TIME_ALONE_MAX: Duration = Duration::from_millis(250);
/// Tokens of the step that is timed, and the chunk of adapters that are not worth timing.
const PROBE_TOKENS: u32 = 128;
/// A GPU's clock rises within this time of work,
const WARM_UP: Duration = Duration::from_millis(300);
/// or this, while steps get faster by more than
const WARM_UP_MAX: Duration = Duration::from_secs(2);
/// this share,
const GAIN: f64 = 0.97;
/// or so many steps.
const RUNS_MAX: u32 = 64;
/// Smallest chunk: below it, reading the weights again costs more than the wait saves.
const CHUNK_MIN: u32 = 32;
/// Weight of a new measurement.
const FRESH: f64 = 0.3;

/// How long prompt tokens take, learnt from the steps that run.
#[derive(Debug)]
pub(crate) struct PrefillPace {
    /// The chunk of a sequence alone.
    chunk: u32,
    /// Seconds a prompt token.
    token_s: Option<f64>,
}

impl PrefillPace {
    /// Nothing is learnt yet; a sequence alone takes `chunk` tokens a step.
    pub(crate) fn new(chunk: u32) -> Self {
        Self {
            chunk,
            token_s: None,
        }
    }

    /// Notes that a step of so many prompt tokens took so long.
    pub(crate) fn took(&mut self, tokens: u32, time: Duration) {
        if tokens < CHUNK_MIN.min(self.chunk) {
            // A short rest costs as much as a whole tile.
            return;
        }
        let seconds = time.as_secs_f64() / f64::from(tokens);
        let old = self.token_s.unwrap_or(seconds);
        self.token_s = Some(old + (seconds - old) * FRESH);
    }

    /// Prompt tokens of the next step; `company`: other sequences wait for it.
    pub(crate) fn chunk(&self, company: bool) -> u32 {
        match self.token_s {
            Some(seconds) => {
                let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                let most = if company {
                    STEP_TIME_MAX
                } else {
                    STEP_TIME_ALONE_MAX
                };
                chunk_of(time, 1, most, self.chunk)
            }
            None => self.chunk,
        }
    }
}

/// Prompt tokens of a step on this adapter, at most `most`.
///
/// Leaves the KV cache zeroed, as it found it.
pub(crate) fn prefill_chunk(
    gpu: &Gpu,
    forward: &Forward,
    config: &ModelConfig,
    most: u32,
) -> Result<u32, EngineError> {
    let limits = forward.limits();
    let room = limits.context_len.min(limits.columns_max);
    if gpu.info.kind == AdapterKind::Software || most <= CHUNK_MIN || room < PROBE_TOKENS {
        return Ok(most.min(PROBE_TOKENS));
    }
    let blocks = PROBE_TOKENS.div_ceil(limits.block_len);
    let tables: Vec<u32> = (0..blocks).collect();
    // A few tokens first: on a slow GPU the larger probe would be the long step that it is to prevent.
    let mut tokens = CHUNK_MIN;
    let mut time = probe(gpu, forward, config, &tables, tokens)?;
    if time * 4 < STEP_TIME_MAX {
        tokens = PROBE_TOKENS;
        time = probe(gpu, forward, config, &tables, tokens)?;
    }
    forward.clear_blocks(gpu, config, &tables);
    gpu.wait(None)?;
    let chunk = chunk_of(time, tokens, STEP_TIME_MAX, most);
    tracing::info!(
        chunk,
        probe_us = time.as_micros(),
        tokens,
        "prefill chunk chosen"
    );
    Ok(chunk)
}

/// The least time of a step of `tokens` tokens of a prompt. The first finds caches cold and drivers at
/// their compiler, and an idle GPU's clock takes a while to rise.
fn probe(
    gpu: &Gpu,
    forward: &Forward,
    config: &ModelConfig,
    tables: &[u32],
    tokens: u32,
) -> Result<Duration, EngineError> {
    let step = StepInput {
        columns: (0..tokens)
            .map(|position| Column {
                token: position % config.vocab_size,
                position,
                table: 0,
                slot: 0,
            })
            .collect(),
        prefill: true,
        tables: tables.to_vec(),
        ..StepInput::default()
    };
    let mut time = Duration::MAX;
    let begun = Instant::now();
    let mut runs = 0;
    let mut gained = begun;
    // As long as it gets faster: after a long load the clock may be slow to rise.
    while runs < 2
        || runs < RUNS_MAX && begun.elapsed() < WARM_UP
        || gained.elapsed() < WARM_UP && begun.elapsed() < WARM_UP_MAX
    {
        runs += 1;
        let started = Instant::now();
        forward.write_step(gpu, &step);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        forward.encode_body(&mut encoder, &step);
        gpu.queue.submit([encoder.finish()]);
        gpu.wait(None)?;
        let now = started.elapsed();
        if now < time {
            if now.as_secs_f64() < GAIN * time.as_secs_f64() {
                gained = Instant::now();
            }
            time = now;
        }
    }
    Ok(time)
}

/// The chunk for a GPU that takes `time` for `tokens` tokens, in steps of `step_max`: a multiple of the
/// smallest, at most `most`.
fn chunk_of(time: Duration, tokens: u32, step_max: Duration, most: u32) -> u32 {
    let per_step = step_max.as_micros() * u128::from(tokens) / time.as_micros().max(1);
    let fit = u32::try_from(per_step).unwrap_or(u32::MAX) / CHUNK_MIN * CHUNK_MIN;
    fit.max(CHUNK_MIN).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_company_chunks_follow_the_pace() {
        let mut pace = PrefillPace::new(512);
        assert_eq!(pace.chunk(true), 512, "nothing is known");
        for _ in 0..40 {
            pace.took(512, Duration::from_millis(400));
            pace.took(3, Duration::from_secs(1));
        }
        assert_eq!((pace.chunk(true), pace.chunk(false)), (128, 320));
        for _ in 0..40 {
            pace.took(128, Duration::from_secs(1));
        }
        assert_eq!(pace.chunk(true), 32);
        assert_eq!(PrefillPace::new(8).chunk(true), 8);
    }

    #[test]
    fn a_chunk_fits_its_time() {
        let chunk = |ms| chunk_of(Duration::from_millis(ms), 128, STEP_TIME_MAX, 512);
        assert_eq!(chunk(1), 512, "fast: as much as allowed");
        assert_eq!(chunk(50), 256);
        assert_eq!(chunk(100), 128);
        assert_eq!(chunk(110), 96, "rounded down");
        assert_eq!(chunk(5000), 32, "slow: never below the least");
        assert_eq!(chunk_of(Duration::ZERO, 32, STEP_TIME_MAX, 512), 512);
        assert_eq!(
            chunk_of(Duration::from_secs(9), 32, STEP_TIME_MAX, 8),
            8,
            "but never above the setting"
        );
    }
}
