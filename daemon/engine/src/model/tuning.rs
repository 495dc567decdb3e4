//! A race of ways to cut one product: each must give what the first gives, and the fastest by a margin
//! is kept.
//!
//! Knows recordings and clocks; what they record is the caller's.

use std::time::{Duration, Instant};

use hearth_shaders::ActivationFormat;
use hearth_shaders::reference::int8_values;

use super::choices::Cut;
use crate::error::EngineError;
use crate::gpu::{Buffer, Extent, Gpu, Readback, Recording, Stopwatch};

/// A winner's time is at most this share of the first guess's.
const WINNING_SHARE: f64 = 0.97;
/// Slower than the fastest by this, a way is out after the first rounds.
const OUT_SHARE: f64 = 1.25;
/// Rounds before slow ways are out,
const ROUNDS_MIN: usize = 3;
/// and all rounds.
const ROUNDS_MAX: usize = 9;
/// Most that a result may differ, as a share of the largest: int8 activations may round the other way
/// where a sum has another order; a wrong kernel is further off.
const DIFFERENCE_MAX: f64 = 0.02;
/// The only extent that is timed: one column, one split.
const ONE: Extent = Extent {
    columns: 1,
    outputs: 1,
    splits: 1,
};

/// How a buffer's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    Floats,
    Halves,
    Int8,
}

impl Stored {
    /// Bytes of `n` values, a multiple of 32.
    pub(crate) fn bytes(self, n: u32) -> u64 {
        match self {
            Self::Floats => 4 * u64::from(n),
            Self::Halves => 2 * u64::from(n),
            Self::Int8 => u64::from(n) / 32 * ActivationFormat::Int8.block_bytes(),
        }
    }

    fn values(self, bytes: &[u8]) -> Vec<f64> {
        // A mapped range is aligned, but nothing says so here.
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        match self {
            Self::Floats => words.iter().map(|&w| f32::from_bits(w).into()).collect(),
            Self::Halves => words
                .iter()
                .flat_map(|&w| bytemuck::cast::<u32, [u16; 2]>(w))
                .map(|bits| half::f16::from_bits(bits).to_f64())
                .collect(),
            Self::Int8 => int8_values(&words),
        }
    }
}

/// What a product reads that it also changes, and what it leaves.
pub(crate) struct Bench {
    /// The residual stream, and what it holds before a check; `None`: zeros.
    pub(crate) x: Buffer,
    pub(crate) before: Option<Buffer>,
    /// Results: buffer, bytes, and how they are stored.
    pub(crate) results: Vec<(Buffer, u64, Stored)>,
}

impl Bench {
    /// The results of one run on the same input.
    fn run(&self, gpu: &Gpu, recording: &Recording) -> Result<Vec<Vec<f64>>, EngineError> {
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        for (buffer, bytes, _) in &self.results {
            encoder.clear_buffer(buffer, 0, Some(*bytes));
        }
        match &self.before {
            Some(before) => {
                encoder.copy_buffer_to_buffer(before, 0, &self.x, 0, before.size());
            }
            None => encoder.clear_buffer(&self.x, 0, None),
        }
        recording.encode(&mut encoder, ONE);
        let mut readbacks: Vec<Readback> = Vec::new();
        for (buffer, bytes, _) in &self.results {
            let readback = Readback::new(gpu, *bytes);
            readback.copy_from(&mut encoder, buffer, 0, 0, *bytes);
            readbacks.push(readback);
        }
        let submission = gpu.queue.submit([encoder.finish()]);
        for readback in &mut readbacks {
            readback.request();
        }
        let mut values = Vec::new();
        for (readback, (_, bytes, stored)) in readbacks.iter_mut().zip(&self.results) {
            let bytes = usize::try_from(*bytes).unwrap_or(usize::MAX);
            values.push(readback.read(gpu, submission.clone(), |raw| {
                stored.values(&raw[..bytes.min(raw.len())])
            })?);
        }
        Ok(values)
    }
}

/// The largest difference of two runs' results, each buffer's as a share of its largest value.
fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let of_buffer = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        let largest = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let pairs = a.iter().zip(b);
        let most = pairs.fold(0.0f64, |m, (x, y)| {
            let d = (x - y).abs();
            // A NaN is as far off as it gets.
            if d.is_nan() { f64::MAX } else { m.max(d) }
        });
        if most == 0.0 {
            0.0
        } else {
            most / largest.max(1e-30)
        }
    };
    a.iter().zip(b).map(of_buffer).fold(0.0, f64::max)
}

/// One way in the race.
pub(crate) struct Trial {
    pub(crate) cut: Cut,
    /// Once, for its results.
    pub(crate) once: Recording,
    /// Over one matrix after the other, for its time.
    pub(crate) many: Recording,
}

/// The winner.
pub(crate) struct Outcome {
    pub(crate) cut: Cut,
    /// Seconds of its run,
    pub(crate) seconds: f64,
    /// and of the first guess's.
    pub(crate) guess_seconds: f64,
}

/// Where races are run: a clock and the time they may take.
pub(crate) struct Track<'a> {
    gpu: &'a Gpu,
    stopwatch: Option<Stopwatch>,
    /// What a submission takes by itself where only the CPU's clock is there.
    empty_seconds: f64,
}

impl<'a> Track<'a> {
    /// A track with the best clock there is.
    pub(crate) fn new(gpu: &'a Gpu) -> Result<Self, EngineError> {
        let mut track = Self {
            gpu,
            stopwatch: Stopwatch::new(gpu, 2),
            empty_seconds: 0.0,
        };
        if track.stopwatch.is_none() {
            let empty = Recording::default();
            let times = (0..ROUNDS_MAX).map(|_| track.time(&empty));
            track.empty_seconds = median(times.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(track)
    }

    fn time(&mut self, recording: &Recording) -> Result<f64, EngineError> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        if let Some(stopwatch) = &mut self.stopwatch {
            recording.encode_between(&mut encoder, ONE, stopwatch, (Some(0), Some(1)));
            self.gpu.queue.submit([encoder.finish()]);
            let marks = stopwatch.read(self.gpu, 2)?;
            return Ok(marks[1]);
        }
        recording.encode(&mut encoder, ONE);
        let started = Instant::now();
        let submission = self.gpu.queue.submit([encoder.finish()]);
        self.gpu.wait(Some(submission))?;
        Ok(started.elapsed().as_secs_f64() - self.empty_seconds)
    }

    /// Races `cuts`, the first guess first, for about `budget`. `trial` records a way; `None`: the
    /// driver refuses it. `None` if it refuses all.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn race(
        &mut self,
        name: &str,
        bench: &Bench,
        cuts: &[Cut],
        budget: Duration,
        mut trial: impl FnMut(Cut) -> Result<Option<Trial>, EngineError>,
    ) -> Result<Option<Outcome>, EngineError> {
        let started = Instant::now();
        let mut runners: Vec<(Trial, Vec<f64>)> = Vec::new();
        let mut wanted = None;
        for &cut in cuts {
            // Compiling takes most of the time; a way that comes late has no time left to show itself.
            if runners.len() > 1 && started.elapsed() > budget * 6 / 10 {
                tracing::debug!(product = name, tried = runners.len(), "no time for more");
                break;
            }
            let Some(trial) = trial(cut)? else { continue };
            let found = bench.run(self.gpu, &trial.once)?;
            let wanted = wanted.get_or_insert_with(|| found.clone());
            let difference = difference(wanted, &found);
            if difference > DIFFERENCE_MAX {
                tracing::warn!(
                    product = name,
                    ?cut,
                    difference,
                    "a kernel gives wrong results; not used"
                );
                continue;
            }
            // The first run of a kernel may be slow.
            self.time(&trial.many)?;
            runners.push((trial, Vec::new()));
        }
        if runners.is_empty() {
            return Ok(None);
        }
        for round in 0..ROUNDS_MAX {
            if round >= ROUNDS_MIN && started.elapsed() > budget {
                break;
            }
            for (trial, times) in &mut runners {
                times.push(self.time(&trial.many)?);
            }
            if round + 1 == ROUNDS_MIN {
                drop_slow(&mut runners);
            }
        }
        Ok(Some(outcome(runners)))
    }
}

/// Leaves the first guess and those near the fastest.
fn drop_slow(runners: &mut Vec<(Trial, Vec<f64>)>) {
    let times: Vec<f64> = runners.iter().map(|(_, t)| median(t.clone())).collect();
    let most = OUT_SHARE * times.iter().copied().fold(f64::INFINITY, f64::min);
    let mut index = 0;
    runners.retain(|_| {
        index += 1;
        index == 1 || times[index - 1] <= most
    });
}

fn outcome(runners: Vec<(Trial, Vec<f64>)>) -> Outcome {
    let mut results = runners.into_iter().map(|(t, times)| (t.cut, median(times)));
    let Some((guess, guess_seconds)) = results.next() else {
        unreachable!("somebody runs in the race");
    };
    let guess = Outcome {
        cut: guess,
        seconds: guess_seconds,
        guess_seconds,
    };
    results.fold(guess, |best, (cut, seconds)| {
        let wins = seconds < best.seconds && seconds <= WINNING_SHARE * guess_seconds;
        if wins {
            Outcome {
                cut,
                seconds,
                guess_seconds,
            }
        } else {
            best
        }
    })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}
