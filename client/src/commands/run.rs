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

/// Pause before a daemon that is away is looked for again.
const PAUSE_AWAY: Duration = Duration::from_secs(5);

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
        start_when: start_when(&args).into(),
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

    let patience = if args.when_idle || args.on_mains {
        Some(Patience::Deferred)
    } else {
        args.wait.map(Patience::busy)
    };
    loop {
        let mut shown = Shown::new(output);
        let reply = match connect(global, output).await {
            Ok(client) => ask.send(&client, &mut shown).await,
            Err(failure) => Err(failure),
        };
        let failure = match reply {
            Ok(end) => return judge_end(&end, output),
            Err(failure) => failure,
        };
        let again = patience.as_ref().and_then(|p| p.pause(&failure));
        let Some(pause) = again.filter(|_| shown.text.is_empty()) else {
            return Err(failure);
        };
        let progress = output.progress();
        progress.say(format!(
            "{}; trying again in {}",
            failure.source,
            seconds(pause)
        ));
        tokio::time::sleep(pause).await;
    }
}

fn start_when(args: &RunArgs) -> v1::StartWhen {
    match (args.when_idle, args.on_mains) {
        (true, _) => v1::StartWhen::Idle,
        (_, true) => v1::StartWhen::OnMains,
        _ => v1::StartWhen::Unspecified,
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

/// What is waited for before one asks again.
enum Patience {
    /// A busy daemon; until then, or for ever.
    Busy(Option<Instant>),
    /// Whatever passes by itself: a busy daemon, one that restarts or that power or memory keeps from
    /// answering.
    Deferred,
}

impl Patience {
    fn busy(time: Option<Duration>) -> Self {
        Self::Busy(time.and_then(|time| Instant::now().checked_add(time)))
    }

    /// When to try again, as the daemon says it; `None` for a failure that waiting does not mend,
    /// or if that is later than one wants to wait.
    fn pause(&self, failure: &Failure) -> Option<Duration> {
        let error = failure.source.downcast_ref::<hearth::Error>();
        let retry_after = match error {
            Some(hearth::Error::Rpc(rpc)) => rpc.retry_after.map(|time| time.max(PAUSE_MIN)),
            _ => None,
        };
        match (self, failure.kind) {
            (Self::Busy(ends), Kind::Busy) => {
                let in_time =
                    |pause: &Duration| ends.is_none_or(|ends| Instant::now() + *pause <= ends);
                retry_after.filter(in_time)
            }
            (Self::Deferred, Kind::Unreachable) => Some(retry_after.unwrap_or(PAUSE_AWAY)),
            // What has no time to come back at does not mend itself.
            (Self::Deferred, Kind::Busy | Kind::Deferred | Kind::ModelUnavailable) => retry_after,
            _ => None,
        }
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
        let patience = Patience::busy(None);
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

        let deferred = |code, after| Patience::Deferred.pause(&refusal(code, after));
        assert_eq!(deferred(Code::Unavailable, second), second);
        assert_eq!(deferred(Code::Unavailable, None), Some(PAUSE_AWAY), "away");
        assert_eq!(deferred(Code::ResourceExhausted, second), second);
        assert_eq!(deferred(Code::NotFound, None), None);
        assert_eq!(deferred(Code::InvalidArgument, second), None);

        let minute = Patience::busy(Some(Duration::from_secs(60)));
        let after = |seconds| {
            let after = Some(Duration::from_secs(seconds));
            minute.pause(&refusal(Code::ResourceExhausted, after))
        };
        assert_eq!(after(10), Some(Duration::from_secs(10)));
        assert_eq!(after(61), None);
    }
}
