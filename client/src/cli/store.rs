//! The arguments of `hearth import`, `pull` and `rm`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `hearth import`
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A GGUF file (of a split one any part), or a folder with *.safetensors, config.json and
    /// tokenizer.json
    #[arg(value_name = "FILE|DIR")]
    pub(crate) file: PathBuf,
    /// Name in the store [default: made from the file's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Turn weights that are not quantised into 4 or 8 bits
    #[arg(long, value_enum, value_name = "BITS")]
    pub(crate) quantize: Option<Quantize>,
}

/// What weights are turned into at import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quantize {
    /// 4 bits
    Q4,
    /// 8 bits
    Q8,
}

/// `hearth pull`
#[derive(Debug, Args)]
#[command(after_help = "\
SOURCE is a name of the catalogue, such as smollm2-135m-instruct (any other word lists them), or
ORG/NAME[@REVISION][:FILE] of a repository. FILE is a file's name, or a part of it that says which,
such as Q8_0. Without it a set of safetensors is fetched whole, of several GGUF files the one of
type Q4_K_M, Q4_0, Q4_K_S, Q4_1, Q5_K_M, Q8_0 or F16, in this order.

What was fetched before it was interrupted is kept for a week, and gone on with. Every file is
checked against the hash that the hub publishes.

Environment: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT,
HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE. Files in the cache of the hub's own tools are linked, not
fetched.")]
pub(crate) struct PullArgs {
    /// What to fetch
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// Name in the store [default: made from the source]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Fetch without asking
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// `hearth rm`
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Name of the model, as `hearth ls` shows it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Remove it without asking
    #[arg(long, short)]
    pub(crate) yes: bool,
}
