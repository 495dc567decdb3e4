//! `hearth run`: one prompt, one reply.

use hearth::v1;

use crate::cli::{Global, RunArgs};
use crate::exit::Failure;
use crate::output::Output;

use super::connect;
use super::reply::{Shown, judge_end};
use super::request::{join_prompt, message, options, read_stdin};

/// Answers one prompt.
///
/// # Errors
/// Why there is no whole reply.
pub(crate) async fn run(args: RunArgs, global: &Global, output: Output) -> Result<(), Failure> {
    if args.logprobs.is_some() && !output.json {
        return Err(Failure::usage(
            "--logprobs has nowhere to show them without --json",
        ));
    }
    let stdin = if args.no_stdin {
        None
    } else {
        read_stdin(output).await?
    };
    let prompt = join_prompt(&args.prompt, stdin, args.raw)?;
    let options = v1::GenerationOptions {
        logprobs: args.logprobs,
        echo: args.echo,
        allow_truncation: args.allow_truncation,
        ..options(&args.generation)
    };
    let model = args.generation.model.unwrap_or_default();

    let client = connect(global, output).await?;
    let mut shown = Shown::new(output);
    let reply = if args.raw {
        let input = v1::generate_request::Input::Prompt(prompt);
        let options = Some(options);
        client
            .generate(v1::GenerateRequest {
                model,
                input: Some(input),
                special_tokens: None,
                options,
            })
            .await?
    } else {
        let system = args.system.map(|text| message(v1::Role::System, text));
        let messages = system
            .into_iter()
            .chain([message(v1::Role::User, prompt)])
            .collect();
        client
            .chat(v1::ChatRequest {
                model,
                messages,
                options: Some(options),
            })
            .await?
    };
    let end = shown.follow(reply).await?;
    judge_end(&end, output)
}
