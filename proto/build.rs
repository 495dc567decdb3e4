//! Compiles the contract with protox and tonic's generator, so that nobody needs protoc.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost::Message as _;

const FILES: [&str; 4] = [
    "hearth/v1/types.proto",
    "hearth/v1/inference.proto",
    "hearth/v1/models.proto",
    "hearth/v1/daemon.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out_dir.join("hearth.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // What a person wrote or got back must not reach a log through Debug.
        .skip_debug([
            "hearth.v1.ChatMessage",
            "hearth.v1.ChatRequest",
            "hearth.v1.ChatResponse",
            "hearth.v1.Conversation",
            "hearth.v1.CountTokensRequest",
            "hearth.v1.CountTokensRequest.input",
            "hearth.v1.Delta",
            "hearth.v1.DetokenizeRequest",
            "hearth.v1.DetokenizeResponse",
            "hearth.v1.Echo",
            "hearth.v1.EmbedRequest",
            "hearth.v1.GenerateRequest",
            "hearth.v1.GenerateRequest.input",
            "hearth.v1.GenerateResponse",
            "hearth.v1.GenerationEvent",
            "hearth.v1.GenerationEvent.event",
            "hearth.v1.GenerationOptions",
            "hearth.v1.OutputFormat",
            "hearth.v1.OutputFormat.format",
            "hearth.v1.Token",
            "hearth.v1.TokenIds",
            "hearth.v1.TokenLogprob",
            "hearth.v1.TokenizeRequest",
            "hearth.v1.TokenizeResponse",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
