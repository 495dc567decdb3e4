//! Runs one dispatch in both builds, with guards behind every buffer, and compares its results.

use std::collections::HashMap;

use hearth_shaders::reference::{BLOCK, INT8_BLOCK_WORDS, int8_values};
use hearth_shaders::{ActivationFormat, BindingKind, Kernel, Planes, Reduction};

use super::super::{
    Axis, Bound, Extent, Gpu, Image, Op, Pipelines, Plane, PlaneShape, Readback, Reads, Recording,
    storage,
};
use crate::AdapterKind;
use crate::request::EngineConfig;

/// What pads inputs: NaN as an f32 and as each of two f16, far outside any table as an index.
pub(super) const NAN_WORD: u32 = 0x7fc0_7fc0;
/// What outputs hold before the run: another NaN, since adapters hand a NaN's bits on to results.
pub(super) const UNTOUCHED: u32 = 0x7fe5_7fe5;
/// Words behind every buffer that a kernel must not touch.
const GUARD_WORDS: usize = 64;

/// Last places by which the builds may differ on a compiler that fuses operations.
const FUSED_PLACES_MAX: u32 = 64;

/// A buffer to bind.
pub(super) enum Buffer {
    /// A parameter block.
    Uniform(Vec<u8>),
    /// Words of a storage buffer, without the guard.
    Words(Vec<u32>),
    /// Rows of a weight plane, one after the other, for a buffer or an image.
    Plane {
        words: Vec<u32>,
        rows: usize,
        unit_words: u64,
    },
}

impl Buffer {
    pub(super) fn uniform<P: bytemuck::Pod>(params: &P) -> Self {
        Self::Uniform(bytemuck::bytes_of(params).to_vec())
    }

    pub(super) fn untouched(words: usize) -> Self {
        Self::Words(vec![UNTOUCHED; words])
    }
}

/// The adapter, with a trusted and a checked build of each kernel.
pub(super) struct Lab {
    builds: [(Gpu, Pipelines); 2],
}

impl Lab {
    pub(super) fn open() -> Self {
        let open = |checked_shaders| {
            let config = EngineConfig {
                checked_shaders,
                ..EngineConfig::default()
            };
            (
                Gpu::open(&config).expect("an adapter to test on"),
                Pipelines::default(),
            )
        };
        Self {
            builds: [open(false), open(true)],
        }
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.builds[0].0
    }

    /// Tells whether this adapter runs kernels of that reduction.
    pub(super) fn runs(&self, reduction: Reduction) -> bool {
        reduction == Reduction::Shared || self.gpu().reduction == reduction
    }

    /// Tells whether the two builds agree in a word: to the bit on a software adapter; elsewhere
    /// nearly, because a compiler may fuse other operations in the other build.
    fn same(&self, a: u32, b: u32) -> bool {
        let exact = self.gpu().info.kind == AdapterKind::Software;
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        let near = a.abs_diff(b) <= FUSED_PLACES_MAX || (x - y).abs() <= 1e-5 + 1e-4 * x.abs();
        a == b || !exact && near
    }

    /// Runs `kernel` and returns what its written buffers hold then, in the order of its bindings.
    pub(super) fn run(
        &mut self,
        kernel: Kernel,
        overrides: &[(&'static str, u32)],
        buffers: &[Buffer],
        grid: [u32; 3],
    ) -> Vec<Vec<u32>> {
        let mut overrides = overrides.to_vec();
        if kernel.reduction() == Some(Reduction::Subgroup) {
            overrides.push(("SG", self.gpu().threads_per_row));
        }
        let overrides = &overrides;
        let [trusted, checked] = self
            .builds
            .each_mut()
            .map(|(gpu, pipelines)| dispatch(gpu, pipelines, kernel, overrides, buffers, grid));
        assert_eq!(trusted.len(), checked.len());
        for (buffer, (a, b)) in trusted.iter().zip(&checked).enumerate() {
            let differs = |i: &usize| !self.same(a[*i], b[*i]);
            if let Some(at) = (0..a.len()).find(differs) {
                panic!(
                    "{}: written buffer {buffer}, word {at}: {:#x} trusted, {:#x} checked",
                    kernel.name(),
                    a[at],
                    b[at]
                );
            }
        }
        trusted
    }
}

fn dispatch(
    gpu: &Gpu,
    pipelines: &mut Pipelines,
    kernel: Kernel,
    overrides: &[(&'static str, u32)],
    buffers: &[Buffer],
    grid: [u32; 3],
) -> Vec<Vec<u32>> {
    let kinds = kernel.bindings();
    assert_eq!(kinds.len(), buffers.len(), "{}", kernel.name());
    let bound: Vec<Memory> = buffers
        .iter()
        .zip(&kinds)
        .map(|(buffer, (_, kind))| create(gpu, buffer, *kind))
        .collect();
    let pipeline = pipelines.get(gpu, kernel, overrides).unwrap();
    let bind_group = pipeline.bind(gpu, &bound.iter().map(Memory::bound).collect::<Vec<_>>());
    let op = Op {
        pipeline,
        bind_group,
        grid: grid.map(Axis::Fixed),
        only_split: false,
        reads: Reads::Little,
    };
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    Recording { ops: vec![op] }.encode(&mut encoder, Extent::default());
    let written: Vec<(usize, Readback)> = (0..buffers.len())
        .filter(|&i| matches!(kinds[i].1, BindingKind::Write | BindingKind::WriteImage))
        .map(|i| (i, bound[i].readback(gpu, &mut encoder)))
        .collect();
    let submission = gpu.queue.submit([encoder.finish()]);
    written
        .into_iter()
        .map(|(i, mut readback)| {
            readback.request();
            let mut words: Vec<u32> = readback
                .read(gpu, submission.clone(), |bytes| {
                    bytemuck::cast_slice(bytes).to_vec()
                })
                .unwrap();
            let Buffer::Words(before) = &buffers[i] else {
                panic!("only plain buffers are written")
            };
            let guard = words.split_off(before.len());
            let broken = guard.iter().position(|&w| w != UNTOUCHED);
            assert_eq!(
                broken,
                None,
                "{}: guard of binding {}",
                kernel.name(),
                kinds[i].0
            );
            words
        })
        .collect()
}

/// What a kernel binds.
enum Memory {
    Buffer(wgpu::Buffer),
    Image(Image),
    Plane(Plane),
}

impl Memory {
    /// Its contents after what `encoder` holds.
    fn readback(&self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> Readback {
        match self {
            Self::Buffer(buffer) => {
                let readback = Readback::new(gpu, buffer.size());
                readback.copy_from(encoder, buffer, 0, 0, buffer.size());
                readback
            }
            Self::Image(image) => {
                let readback = Readback::new(gpu, image.bytes());
                readback.copy_from_image(encoder, image);
                readback
            }
            Self::Plane(_) => panic!("a plane is not written"),
        }
    }

    fn bound(&self) -> Bound<'_> {
        match self {
            Self::Buffer(buffer) => buffer.into(),
            Self::Image(image) => image.into(),
            Self::Plane(plane) => plane.bound(),
        }
    }
}

/// What fills the room behind an input or an output.
fn guard(kind: BindingKind) -> u32 {
    match kind {
        BindingKind::Write | BindingKind::WriteImage => UNTOUCHED,
        BindingKind::Read | BindingKind::Uniform | BindingKind::Image { .. } => NAN_WORD,
    }
}

fn create(gpu: &Gpu, buffer: &Buffer, kind: BindingKind) -> Memory {
    match (buffer, kind) {
        (
            Buffer::Plane {
                words,
                rows,
                unit_words,
            },
            BindingKind::Image { words: texel_words },
        ) => {
            let rows = *rows as u64;
            let shape = PlaneShape {
                rows,
                units: words.len() as u64 / rows / unit_words,
                unit_bytes: 4 * unit_words,
                texel_words,
            };
            let plane = Plane::new(gpu, "test", Planes::Images, shape);
            plane.upload(gpu, 0, bytemuck::cast_slice(words)).unwrap();
            Memory::Plane(plane)
        }
        (Buffer::Words(words), BindingKind::Image { .. } | BindingKind::WriteImage) => {
            let image = Image::new(gpu, "test", 4, 4 * (words.len() + GUARD_WORDS) as u64);
            let mut guarded = words.clone();
            guarded.resize(usize::try_from(image.bytes() / 4).unwrap(), guard(kind));
            image.write(gpu, 0, bytemuck::cast_slice(&guarded));
            Memory::Image(image)
        }
        _ => Memory::Buffer(create_buffer(gpu, buffer, kind)),
    }
}

fn create_buffer(gpu: &Gpu, buffer: &Buffer, kind: BindingKind) -> wgpu::Buffer {
    match buffer {
        Buffer::Uniform(bytes) => {
            let uniform = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("params"),
                size: bytes.len() as u64,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            gpu.queue.write_buffer(&uniform, 0, bytes);
            uniform
        }
        Buffer::Words(words) | Buffer::Plane { words, .. } => {
            let mut guarded = words.clone();
            let length = (words.len() + GUARD_WORDS).next_multiple_of(4);
            guarded.resize(length, guard(kind));
            let buffer = storage(gpu, "test", 4 * guarded.len() as u64);
            gpu.queue
                .write_buffer(&buffer, 0, bytemuck::cast_slice(&guarded));
            buffer
        }
    }
}

/// Values that a kernel has to write, by index, each with its greatest error; it must leave the
/// other words as they were.
#[derive(Default)]
pub(super) struct Expected(HashMap<usize, (f64, f64)>);

impl Expected {
    pub(super) fn set(&mut self, index: usize, value: f64, error: f64) {
        self.0.insert(index, (value, error));
    }

    fn check(&self, what: &str, index: usize, found: f64) {
        let (value, error) = self.0[&index];
        assert!(
            (found - value).abs() <= error,
            "{what} {index}: {found}, not {value} ± {error:e}"
        );
    }

    /// Indices are of f32 words.
    pub(super) fn check_floats(&self, what: &str, before: &[u32], after: &[u32]) {
        for (i, (&old, &new)) in before.iter().zip(after).enumerate() {
            if self.0.contains_key(&i) {
                self.check(what, i, f64::from(f32::from_bits(new)));
            } else {
                assert_eq!(new, old, "{what} {i} is not to be written");
            }
        }
        assert!(self.0.keys().all(|&i| i < after.len()), "{what}");
    }

    /// Indices are of f16, two a word.
    pub(super) fn check_halves(&self, what: &str, before: &[u32], after: &[u32]) {
        let halves = |words: &[u32]| -> Vec<u16> { bytemuck::cast_slice(words).to_vec() };
        for (i, (&old, &new)) in halves(before).iter().zip(&halves(after)).enumerate() {
            if self.0.contains_key(&i) {
                self.check(what, i, half::f16::from_bits(new).to_f64());
            } else {
                assert_eq!(new, old, "{what} {i} is not to be written");
            }
        }
        assert!(self.0.keys().all(|&i| i < 2 * after.len()), "{what}");
    }

    /// Indices are of activations stored in `format`, whole blocks of them.
    pub(super) fn check_acts(
        &self,
        what: &str,
        format: ActivationFormat,
        before: &[u32],
        after: &[u32],
    ) {
        if matches!(
            format,
            ActivationFormat::Float | ActivationFormat::FloatImage
        ) {
            return self.check_floats(what, before, after);
        }
        if format == ActivationFormat::Half {
            // To f16, which WGSL lets an adapter round either way.
            let widened =
                |(&i, &(v, e)): (&usize, &(f64, f64))| (i, (v, e + v.abs() / 1024.0 + 6e-8));
            let rounded = Self(self.0.iter().map(widened).collect());
            return rounded.check_halves(what, before, after);
        }
        let blocks = before
            .chunks_exact(INT8_BLOCK_WORDS)
            .zip(after.chunks_exact(INT8_BLOCK_WORDS));
        for (n, (old, new)) in blocks.enumerate() {
            let indices = n * BLOCK..(n + 1) * BLOCK;
            if indices.clone().any(|i| self.0.contains_key(&i)) {
                self.check_int8_block(what, indices, new);
            } else {
                assert_eq!(new, old, "{what}: block {n} is not to be written");
            }
        }
    }

    fn check_int8_block(&self, what: &str, indices: std::ops::Range<usize>, words: &[u32]) {
        let facts: Vec<(f64, f64)> = indices.clone().map(|i| self.0[&i]).collect();
        let largest = facts.iter().fold(0.0f64, |m, (v, _)| m.max(v.abs()));
        let error = facts.iter().fold(0.0f64, |m, (_, e)| m.max(*e));
        let d = f64::from(f32::from_bits(words[8]));
        let slack = error / 127.0 + d * 1e-6;
        assert!(
            (d - largest / 127.0).abs() <= slack,
            "{what}: scale {d} of {largest}"
        );
        let values = int8_values(words);
        for ((i, found), (value, error)) in indices.clone().zip(&values).zip(&facts) {
            // Half a step, and a little where a value lies half-way.
            let most = d * 0.5001 + error;
            assert!(
                (found - value).abs() <= most,
                "{what} {i}: {found}, not {value} ± {most:e}"
            );
        }
        let sum: f64 = values.iter().sum();
        let s = f64::from(f32::from_bits(words[9]));
        assert!(
            (s - sum).abs() <= 1e-6 * sum.abs() + d * 1e-4,
            "{what} {indices:?}: s {s}, not {sum}"
        );
    }
}
