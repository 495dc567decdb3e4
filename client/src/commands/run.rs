//! `hearth run`: one prompt, one reply.

use std::time::{Duration, Instant};

use hearth::{Client, v1};

use crate::cli::{Global, RunArgs};
use crate::duration::seconds;
use crate::exit::{Failure, Kind};
use crate::output::Output;

use super::connect;
use super::reply::{Shown, judge_end};
use super::request::{join_prompt, message, options, read_stdin};

/// Shortest pause before a busy daemon is asked again.
const PAUSE_MIN: Duration = Duration::from_millis(100);

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

    let ask = if args.raw {
        Ask::Generate(v1::GenerateRequest {
            model,
            input: Some(v1::generate_request::Input::Prompt(prompt)),
            special_tokens: None,
            options: Some(options),
        })
    } else {
        let system = args.system.map(|text| message(v1::Role::System, text));
        let messages = system
            .into_iter()
            .chain([message(v1::Role::User, prompt)])
            .collect();
        Ask::Chat(v1::ChatRequest {
            model,
            messages,
            options: Some(options),
        })
    };

    let client = connect(global, output).await?;
    let patience = args.wait.map(Patience::new);
    loop {
        let mut shown = Shown::new(output);
        let failure = match ask.send(&client, &mut shown).await {
            Ok(end) => return judge_end(&end, output),
            Err(failure) => failure,
        };
        let again = patience.as_ref().and_then(|p| p.pause(&failure));
        let Some(pause) = again.filter(|_| shown.text.is_empty()) else {
            return Err(failure);
        };
        let progress = output.progress();
        progress.say(format!("busy, trying again in {}", seconds(pause)));
        tokio::time::sleep(pause).await;
    }
}

/// What is asked, as often as it takes.
enum Ask {
    Chat(v1::ChatRequest),
    Generate(v1::GenerateRequest),
}

impl Ask {
    /// Asks once and shows the reply.
    async fn send(&self, client: &Client, shown: &mut Shown) -> Result<v1::End, Failure> {
        let reply = match self {
            Self::Chat(request) => client.chat(request.clone()).await?,
            Self::Generate(request) => client.generate(request.clone()).await?,
        };
        shown.follow(reply).await
    }
}

/// How long a busy daemon is waited for.
struct Patience {
    /// Not for ever, if it is set.
    ends: Option<Instant>,
}

impl Patience {
    fn new(time: Option<Duration>) -> Self {
        Self {
            ends: time.and_then(|time| Instant::now().checked_add(time)),
        }
    }

    /// When to try again, as the daemon says it; `None` for a failure that waiting does not mend,
    /// or if that is later than one wants to wait.
    fn pause(&self, failure: &Failure) -> Option<Duration> {
        let error = failure.source.downcast_ref::<hearth::Error>();
        let Some(hearth::Error::Rpc(rpc)) = error.filter(|_| failure.kind == Kind::Busy) else {
            return None;
        };
        let pause = rpc.retry_after?.max(PAUSE_MIN);
        let in_time = |ends: Instant| Instant::now() + pause <= ends;
        self.ends.is_none_or(in_time).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    fn refusal(code: Code, retry_after: Option<Duration>) -> Failure {
        let mut details = ErrorDetails::new();
        details.set_retry_info(retry_after);
        Failure::from(hearth::Error::from(Status::with_error_details(
            code, "no", details,
        )))
    }

    #[test]
    fn only_a_busy_daemon_is_waited_for_and_as_long_as_it_says() {
        let second = Some(Duration::from_secs(1));
        let patience = Patience::new(None);
        let pause = |code, after| patience.pause(&refusal(code, after));
        assert_eq!(pause(Code::ResourceExhausted, second), second);
        assert_eq!(
            pause(Code::ResourceExhausted, Some(Duration::ZERO)),
            Some(PAUSE_MIN),
            "no daemon is asked without a pause"
        );
        assert_eq!(pause(Code::ResourceExhausted, None), None);
        assert_eq!(pause(Code::Unavailable, second), None);
        assert_eq!(pause(Code::InvalidArgument, second), None);

        let minute = Patience::new(Some(Duration::from_secs(60)));
        let after = |seconds| {
            let after = Some(Duration::from_secs(seconds));
            minute.pause(&refusal(Code::ResourceExhausted, after))
        };
        assert_eq!(after(10), Some(Duration::from_secs(10)));
        assert_eq!(after(61), None);
    }
}
