//! `hearthd bench`: measures the engine on this machine and prints the figures.
//!
//! It knows neither socket nor lock: a daemon may run beside it, and then shares the GPU with it.

use std::io::{self, Write};
use std::path::PathBuf;

use hearth_engine::LoadError;
use hearth_engine::bench::{BenchOptions, BenchReport, Rate};

use crate::config::Config;
use crate::store::{Store, StoreError};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// Prompt tokens of a prefill run.
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    prompt: u32,
    /// Tokens of a decode run.
    #[arg(long, value_name = "TOKENS", default_value_t = 32)]
    generate: u32,
    /// Positions before the first decoded token.
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    depth: u32,
    /// Counted runs, after one that does not count.
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: u32,
    /// Also times each kernel of a decode step by itself.
    #[arg(long)]
    kernels: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// The measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No model was named, and the store has none or several.
    #[error("name the model to measure with --model: a file, or a name that `hearth ls` shows")]
    NoModel,
    /// The store cannot say which file the model is.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model cannot be loaded, or the GPU failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The figures cannot be written.
    #[error("cannot write the figures")]
    Output(#[from] io::Error),
}

/// Measures and writes the figures to `out`.
///
/// # Errors
/// See [`BenchError`].
pub fn run(config: &Config, args: &BenchArgs, out: &mut dyn Write) -> Result<(), BenchError> {
    let path = model_file(config)?;
    let options = BenchOptions {
        prefill_tokens: args.prompt,
        decode_tokens: args.generate,
        depth: args.depth,
        runs: args.runs,
        kernels: args.kernels,
    };
    let report = hearth_engine::bench::run(&config.engine, &path, &options)?;
    if args.json {
        serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(())
}

fn model_file(config: &Config) -> Result<PathBuf, BenchError> {
    let store = Store::open(&config.models_dir)?;
    let name = match &config.model {
        Some(model) if std::path::Path::new(model).is_absolute() => return Ok(model.into()),
        Some(name) => name.clone(),
        None => match store.list()?.as_slice() {
            [only] => only.name.clone(),
            _ => return Err(BenchError::NoModel),
        },
    };
    Ok(store.blob_path(&store.get(&name)?)?)
}

fn print(r: &BenchReport, out: &mut dyn Write) -> io::Result<()> {
    let software = if r.software_adapter {
        ", software adapter: correct but slow"
    } else {
        ""
    };
    writeln!(
        out,
        "adapter            {} ({}){software}",
        r.adapter, r.driver
    )?;
    writeln!(
        out,
        "model              {} {}, {} activations",
        r.model, r.quantization, r.activations
    )?;
    let rate = |rate: &Rate| {
        format!(
            "{:>9.1} tokens/s   (min {:.1}, max {:.1})",
            rate.median, rate.min, rate.max
        )
    };
    writeln!(
        out,
        "prefill {:>6}     {}",
        r.prefill_tokens,
        rate(&r.prefill)
    )?;
    writeln!(
        out,
        "decode {:>7}     {}   at depth {}",
        r.decode_tokens,
        rate(&r.decode),
        r.depth
    )?;
    writeln!(out, "dispatches a step  {:>9}", r.dispatches_per_step)?;
    writeln!(
        out,
        "bytes a step       {:>9}   (weights and KV read)",
        r.bytes_per_step
    )?;
    writeln!(
        out,
        "copy bandwidth     {:>9.1} GB/s   (read + written, this run)",
        r.copy_bytes_per_second / 1e9
    )?;
    writeln!(
        out,
        "decode             {:>9.1} % of the copy bandwidth",
        r.decode_percent_of_copy
    )?;
    writeln!(
        out,
        "submitting a step  {:>9.0} us of the CPU's time",
        r.submit_us
    )?;
    for k in &r.kernels {
        writeln!(
            out,
            "  {:<34} {:>4} x {:>9.1} us a step",
            k.kernel, k.dispatches, k.step_us
        )?;
    }
    Ok(())
}
