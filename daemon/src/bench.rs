//! `hearthd bench`: measures the engine on this machine and prints the figures.
//!
//! It knows neither socket nor lock: a daemon may run beside it, and then shares the GPU with it.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use hearth_engine::bench::{
    BenchError as MeasureError, BenchModel, BenchOptions, BenchReport, DecodeReport, Format,
    PrefillReport, Profile, Shape,
};
use hearth_engine::format::ModelFiles;
use hearth_engine::{EngineConfig, LoadError};

use crate::config::Config;
use crate::energy::{self, Meter};
use crate::store::{Store, StoreError};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// Takes a known model's sizes with random weights; no file is needed.
    #[arg(long, value_name = "NAME", conflicts_with = "model", value_parser = shapes())]
    shape: Option<Shape>,
    /// What the random weights are stored in.
    #[arg(long, value_name = "NAME", requires = "shape", default_value = "q4_0", value_parser = formats())]
    format: Format,
    /// Prompts to prefill, in tokens; 0 for none.
    #[arg(
        long,
        value_name = "TOKENS,...",
        value_delimiter = ',',
        default_value = "128"
    )]
    prompt: Vec<u32>,
    /// Positions of a sequence before the first decoded token.
    #[arg(
        long,
        value_name = "TOKENS,...",
        value_delimiter = ',',
        default_value = "128"
    )]
    depth: Vec<u32>,
    /// Sequences decoded together.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1")]
    batch: Vec<u32>,
    /// Steps of a decode run; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 32)]
    generate: u32,
    /// Counted runs of each, after one that does not count.
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: u32,
    /// Also times the kernels of each step, by the GPU's clock.
    #[arg(long)]
    kernels: bool,
    /// Chooses the kernels for this adapter anew first.
    #[arg(long)]
    retune: bool,
    /// Also tells tokens a joule, by the GPU's sensor, the processor's counters, `gpu_watts` or the
    /// battery.
    #[arg(long)]
    energy: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

fn shapes() -> impl TypedValueParser<Value = Shape> {
    PossibleValuesParser::new(Shape::ALL.map(|shape| shape.name))
        .try_map(|name| Shape::named(&name).ok_or("no such shape"))
}

fn formats() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(|format| format.name))
        .try_map(|name| Format::named(&name).ok_or("no such format"))
}

/// The measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No model was named, and the store has none or several.
    #[error(
        "name the model to measure with --model (a file, or a name that `hearth ls` shows), or \
         measure one of random weights with --shape"
    )]
    NoModel,
    /// Energy was asked for and nothing tells it.
    #[error(
        "nothing on this machine tells energy: no GPU sensor, no readable processor counter (RAPL \
         often needs root), no battery that discharges; gpu_watts in the configuration estimates it"
    )]
    NoMeter,
    /// The store cannot say which file the model is.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model cannot be loaded, the GPU failed, or an option is out of range.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The figures cannot be written.
    #[error("cannot write the figures")]
    Output(#[from] io::Error),
}

/// Measures and writes the figures to `out`.
///
/// # Errors
/// See [`BenchError`].
pub fn run(config: &Config, args: &BenchArgs, out: &mut dyn Write) -> Result<(), BenchError> {
    let model = match args.shape {
        Some(shape) => BenchModel::Shape(shape, args.format),
        None => BenchModel::Files(model_files(config)?),
    };
    let options = BenchOptions {
        prompts: args.prompt.clone(),
        depths: args.depth.clone(),
        batches: args.batch.clone(),
        generate: args.generate,
        runs: args.runs,
        kernels: args.kernels,
        retune: args.retune,
    };
    let meter = if args.energy {
        Some(energy::find(Path::new("/sys"), config.gpu_watts).ok_or(BenchError::NoMeter)?)
    } else {
        None
    };
    let engine = EngineConfig {
        meter: meter.as_ref().map(|found| Arc::clone(&found.meter)),
        ..config.engine.clone()
    };
    let report = hearth_engine::bench::run(&engine, &model, &options)?;
    if args.json {
        serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
        if let Some(meter) = &meter {
            energy_table(&report, meter, out)?;
        }
    }
    Ok(())
}

fn model_files(config: &Config) -> Result<ModelFiles, BenchError> {
    if let Some(model) = &config.model
        && Path::new(model).is_absolute()
    {
        let files = ModelFiles::at(Path::new(model)).map_err(LoadError::from);
        return Ok(files.map_err(MeasureError::from)?);
    }
    let store = Store::open(&config.models_dir)?;
    let name = match &config.model {
        Some(name) => name.clone(),
        None => match store.list()?.as_slice() {
            [only] => only.name.clone(),
            _ => return Err(BenchError::NoModel),
        },
    };
    Ok(store.files(&store.get(&name)?)?)
}

fn print(r: &BenchReport, out: &mut dyn Write) -> io::Result<()> {
    let software = if r.software_adapter {
        "; software adapter: correct but slow"
    } else {
        ""
    };
    let kind = if r.synthetic { "random weights, " } else { "" };
    writeln!(
        out,
        "adapter  {} ({}), {}{software}",
        r.adapter, r.driver, r.backend
    )?;
    writeln!(
        out,
        "model    {} {}, {kind}{:.2} GB, {} activations",
        r.model,
        r.quantization,
        giga(r.weights_bytes),
        r.activations
    )?;
    writeln!(
        out,
        "copy     {:.1} GB/s read + written (kernel {:.1} with {} workgroups, command {:.1})",
        r.copy.bytes_per_second / 1e9,
        r.copy.kernel_bytes_per_second / 1e9,
        r.copy.kernel_workgroups,
        r.copy.command_bytes_per_second / 1e9
    )?;
    prefill_table(&r.prefill, out)?;
    decode_table(&r.decode, out)?;
    for row in &r.prefill {
        if let Some(profile) = &row.profile {
            writeln!(out, "\nprefill of {} tokens", row.tokens)?;
            kernel_table(profile, out)?;
        }
    }
    for row in &r.decode {
        if let Some(profile) = &row.profile {
            writeln!(out, "\ndecode at depth {}, batch {}", row.depth, row.batch)?;
            kernel_table(profile, out)?;
        }
    }
    if r.options.kernels && r.timestamps == "none" {
        writeln!(
            out,
            "\nno kernel times: this adapter's clock cannot be read"
        )?;
    }
    Ok(())
}

fn prefill_table(rows: &[PrefillReport], out: &mut dyn Write) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\nprefill  tokens  chunk    tokens/s         min         max  dispatches"
    )?;
    for row in rows {
        let rate = &row.tokens_per_second;
        writeln!(
            out,
            "{:>15} {:>6} {:>11.1} {:>11.1} {:>11.1} {:>11}",
            row.tokens, row.chunk, rate.median, rate.min, rate.max, row.dispatches
        )?;
    }
    Ok(())
}

fn decode_table(rows: &[DecodeReport], out: &mut dyn Write) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\ndecode  depth  batch  tokens/s       min       max   us/step    GPU us    GB/s  % copy  \
         dispatches (layer, rest)  submit us  CPU us  idle %"
    )?;
    let maybe = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    for row in rows {
        let rate = &row.tokens_per_second;
        writeln!(
            out,
            "{:>13} {:>6} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9} {:>7.1} {:>7.1} {:>11} {:>13} {:>10.1} \
             {:>7} {:>7}",
            row.depth,
            row.batch,
            rate.median,
            rate.min,
            rate.max,
            row.step_us,
            maybe(row.gpu_us, 1),
            row.bytes_per_second / 1e9,
            row.percent_of_copy,
            row.dispatches,
            format!("({}, {})", row.dispatches_per_layer, row.dispatches_beside),
            row.submit_us,
            maybe(row.step_cpu_us, 1),
            maybe(row.idle_percent, 2)
        )?;
    }
    Ok(())
}

fn energy_table(r: &BenchReport, meter: &Meter, out: &mut dyn Write) -> io::Result<()> {
    let source = if meter.measured {
        "measured"
    } else {
        "estimated"
    };
    writeln!(out, "\nenergy   tokens/J, {source} by {}", meter.name)?;
    let told =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    for row in &r.prefill {
        let rate = told(row.tokens_per_joule);
        writeln!(out, "{rate:>17}  prefill of {}", row.tokens)?;
    }
    for row in &r.decode {
        let rate = told(row.tokens_per_joule);
        writeln!(
            out,
            "{rate:>17}  decode, depth {}, batch {}",
            row.depth, row.batch
        )?;
    }
    Ok(())
}

fn kernel_table(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "  {:<44} {:>5} {:>10} {:>7} {:>9} {:>8} {:>7}",
        "kernel", "times", "us", "share %", "MB", "GB/s", "% copy"
    )?;
    for kernel in &profile.kernels {
        write!(
            out,
            "  {:<44} {:>5} {:>10.1} {:>7.1}",
            kernel.kernel,
            kernel.dispatches,
            kernel.us,
            100.0 * kernel.us / profile.us.max(f64::MIN_POSITIVE)
        )?;
        if kernel.bytes > 0 {
            write!(
                out,
                " {:>9.2} {:>8.1} {:>7.1}",
                1e3 * giga(kernel.bytes),
                kernel.bytes_per_second / 1e9,
                kernel.percent_of_copy
            )?;
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "  all {:.1} us, {:.1} us without reading the clock; those that read weights {:.1} us, \
         {:.1} % of the copy bandwidth ({:.1} % without reading the clock)",
        profile.us,
        profile.plain_us,
        profile.matrix_us,
        profile.matrix_percent_of_copy,
        profile.matrix_percent_of_copy_unmarked
    )
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn giga(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[arg(long)]
        model: Option<String>,
        #[command(flatten)]
        what: BenchArgs,
    }

    fn parse(args: &[&str]) -> Result<BenchArgs, String> {
        let args = ["bench"].iter().chain(args);
        match Cli::try_parse_from(args) {
            Ok(cli) => Ok(cli.what),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn lists_shapes_and_formats_are_read() {
        let args = parse(&[
            "--prompt", "128,512", "--depth", "512,8192", "--batch", "1,8,16",
        ]);
        let args = args.unwrap();
        assert_eq!(args.prompt, [128, 512]);
        assert_eq!(args.depth, [512, 8192]);
        assert_eq!(args.batch, [1, 8, 16]);
        assert!(args.shape.is_none());
        let args = parse(&["--shape", "llama3-8b", "--format", "q8_0", "--retune"]).unwrap();
        assert_eq!(args.shape.map(|shape| shape.name), Some("llama3-8b"));
        assert_eq!(args.format.name, "q8_0");
        assert!(args.retune && !args.kernels);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let unknown = parse(&["--shape", "llama-8b"]).unwrap_err();
        assert!(unknown.contains("llama3-8b"), "{unknown}");
        let unknown = parse(&["--shape", "llama-7b", "--format", "q3_0"]).unwrap_err();
        assert!(unknown.contains("q4_0"), "{unknown}");
        let both = parse(&["--shape", "llama-7b", "--model", "mine"]).unwrap_err();
        assert!(both.contains("cannot be used with"), "{both}");
        let alone = parse(&["--format", "q8_0"]).unwrap_err();
        assert!(alone.contains("--shape"), "{alone}");
    }
}
