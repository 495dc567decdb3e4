//! The bench measures what it says, on a model of a few thousand weights.

use super::*;
use crate::gpu::Timestamps;

fn options() -> BenchOptions {
    BenchOptions {
        prompts: vec![16, 40],
        depths: vec![0, 300],
        batches: vec![1, 3],
        generate: 3,
        runs: 1,
        kernels: true,
        retune: false,
    }
}

#[test]
fn every_row_is_there_and_the_bytes_add_up() {
    let config = EngineConfig {
        prefill_chunk: 32,
        ..EngineConfig::default()
    };
    let model = BenchModel::Shape(Shape::TINY, Format::ALL[0]);
    let report = run(&config, &model, &options()).unwrap();
    assert!(report.copy.bytes_per_second > 0.0);
    let prompts: Vec<u32> = report.prefill.iter().map(|row| row.tokens).collect();
    assert_eq!(prompts, [16, 40]);
    let cases: Vec<(u32, u32)> = report.decode.iter().map(|r| (r.batch, r.depth)).collect();
    assert_eq!(cases, [(1, 0), (3, 0), (1, 300), (3, 300)]);
    for row in &report.decode {
        assert!(row.tokens_per_second.median > 0.0);
        let in_layers = 2 * row.dispatches_per_layer;
        assert_eq!(row.dispatches, in_layers + row.dispatches_beside);
        // A GPU without a clock has no profiles.
        if let Some(profile) = &row.profile {
            let counted: usize = profile.kernels.iter().map(|k| k.dispatches).sum();
            assert_eq!(counted, row.dispatches);
            let bytes: u64 = profile.kernels.iter().map(|k| k.bytes).sum();
            assert_eq!(bytes, row.bytes);
        }
    }
    // 300 positions more of f16 keys and values: 2 layers, 2 KV heads of 16.
    let kv = 300 * 2 * 2 * 2 * 16 * 2;
    assert_eq!(report.decode[2].bytes - report.decode[0].bytes, kv);
    assert_eq!(report.decode[3].bytes - report.decode[1].bytes, 3 * kv);

    let json = serde_json::to_value(report).unwrap();
    for field in ["version", "adapter", "driver", "options", "copy"] {
        assert!(!json[field].is_null(), "{field}");
    }
    for field in ["tokens_per_second", "step_us", "bytes", "submit_us"] {
        assert!(!json["decode"][0][field].is_null(), "{field}");
    }
}

fn tiny(format: Format) -> Steps {
    let config = Shape::TINY.config(format);
    let gpu = Gpu::open(&EngineConfig::default()).unwrap();
    let weights = format.weights(&config);
    let source = WeightSource::Random(&weights);
    let forward = load(&gpu, source, &config, &EngineConfig::default(), &options()).unwrap();
    Steps {
        vocab_size: config.vocab_size,
        chunk: 32,
        blocks_per_sequence: sequence_blocks(&options()),
        spare: Vec::new(),
        gpu,
        forward,
        meter: None,
    }
}

#[test]
fn made_up_weights_keep_activations_finite() {
    for format in Format::ALL {
        let mut steps = tiny(format);
        steps.prefill(40).unwrap();
        let mut readback = crate::gpu::Readback::new(&steps.gpu, 4 * 320);
        let mut encoder = steps.gpu.device.create_command_encoder(&Default::default());
        readback.copy_from(&mut encoder, &steps.forward.scratch.logits, 0, 0, 4 * 320);
        let submission = steps.gpu.queue.submit([encoder.finish()]);
        readback.request();
        let logits: Vec<f32> = readback
            .read(&steps.gpu, submission, |raw| {
                bytemuck::cast_slice(raw).to_vec()
            })
            .unwrap();
        assert!(logits.iter().all(|l| l.is_finite()), "{format:?}");
        let largest = logits.iter().fold(0f32, |m, l| m.max(l.abs()));
        assert!((0.1..100.0).contains(&largest), "{format:?}: {largest}");
    }
}

#[test]
fn coarser_clocks_do_as_well() {
    let mut steps = tiny(Format::ALL[0]);
    let step = steps.decode_step(2, 20, 0);
    if steps.gpu.timestamps != Timestamps::Nowhere {
        steps.gpu.timestamps = Timestamps::AroundPasses;
        let profile = steps
            .profile(std::slice::from_ref(&step), 1e9)
            .unwrap()
            .unwrap();
        let counted: usize = profile.kernels.iter().map(|k| k.dispatches).sum();
        assert_eq!(counted, steps.dispatches(&step));
        assert!(profile.us > 0.0);
    }
    steps.gpu.timestamps = Timestamps::Nowhere;
    assert!(steps.profile(&[step], 1e9).unwrap().is_none());
    assert!(gpu_times(&mut steps, (1, 20), 2).unwrap().is_none());
    assert!(copy::measure(&steps.gpu).unwrap().bytes_per_second > 0.0);
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |change: fn(&mut BenchOptions)| {
        let mut options = options();
        change(&mut options);
        check(&options).unwrap_err().to_string()
    };
    assert!(refused(|o| o.batches = vec![1, 0]).contains("batch is 0"));
    assert!(refused(|o| o.batches = vec![17]).contains("1 to 16"));
    assert!(refused(|o| o.depths = vec![u32::MAX]).contains("positions"));
}
