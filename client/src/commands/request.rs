//! From the command line to a request: the prompt out of words and standard input, and the settings.
//! It sends nothing.

use std::io::{self, IsTerminal as _, Read as _};
use std::time::Duration;

use hearth::v1;

use crate::cli::{Cache, Class, GenerationArgs};
use crate::exit::Failure;
use crate::output::Output;

/// Most bytes taken from standard input: the daemon takes messages of 4 MiB.
const STDIN_BYTES_MAX: u64 = 4_000_000;
/// After this time without an end of standard input, a person is told what is waited for.
const STDIN_PATIENCE: Duration = Duration::from_secs(2);

/// Reads standard input to its end, unless it is a terminal.
///
/// # Errors
/// Those of reading; text that is not UTF-8, or longer than the limit.
pub(crate) async fn read_stdin(output: Output) -> Result<Option<String>, Failure> {
    if io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut reading = tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        io::stdin()
            .lock()
            .take(STDIN_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    });
    let progress = output.progress();
    let bytes = tokio::select! {
        bytes = &mut reading => bytes,
        () = tokio::time::sleep(STDIN_PATIENCE) => {
            progress.say("reading standard input");
            reading.await
        }
    };
    let bytes = bytes.map_err(io::Error::other)??;
    decode(bytes).map(Some)
}

fn decode(bytes: Vec<u8>) -> Result<String, Failure> {
    if u64::try_from(bytes.len()).is_ok_and(|len| len > STDIN_BYTES_MAX) {
        return Err(Failure::usage(format!(
            "standard input is longer than {STDIN_BYTES_MAX} bytes"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::usage(format!("standard input is not UTF-8 text (at byte {at})"))
    })
}

/// Joins standard input and the words of the command line: first the text, then what to do with it.
///
/// The question stands last since small models heed best what they read last, and since the same
/// text with another question shares its beginning. With `exact`, a text that stands alone keeps
/// its line ends.
///
/// # Errors
/// Neither has anything in it.
pub(crate) fn join_prompt(
    words: &[String],
    stdin: Option<String>,
    exact: bool,
) -> Result<String, Failure> {
    let words = words.join(" ");
    let stdin = stdin.unwrap_or_default();
    let (has_words, has_stdin) = (!words.trim().is_empty(), !stdin.trim().is_empty());
    match (has_stdin, has_words) {
        (false, false) => Err(Failure::usage("there is no prompt").with_hint(
            "give it as words, or on standard input: hearth run \"Why is the sky blue?\"",
        )),
        (false, true) => Ok(words),
        (true, false) if exact => Ok(stdin),
        (true, false) => Ok(stdin.trim_end().to_owned()),
        (true, true) => Ok(format!("{}\n\n{words}", stdin.trim_end())),
    }
}

/// The settings of a request.
pub(crate) fn options(args: &GenerationArgs) -> v1::GenerationOptions {
    v1::GenerationOptions {
        sampling: Some(v1::SamplingParams {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repeat_penalty: args.repeat_penalty,
            frequency_penalty: args.frequency_penalty,
            presence_penalty: args.presence_penalty,
            seed: args.seed,
        }),
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        class: args.class.map_or(v1::Class::Unspecified, class).into(),
        cache_scope: args
            .cache
            .map_or(v1::CacheScope::Unspecified, cache_scope)
            .into(),
        deadline: args
            .timeout
            .and_then(|timeout| prost_types::Duration::try_from(timeout).ok()),
        ..Default::default()
    }
}

fn class(class: Class) -> v1::Class {
    match class {
        Class::Interactive => v1::Class::Interactive,
        Class::Utility => v1::Class::Utility,
        Class::Background => v1::Class::Background,
    }
}

fn cache_scope(cache: Cache) -> v1::CacheScope {
    match cache {
        Cache::App => v1::CacheScope::App,
        Cache::Shared => v1::CacheScope::Shared,
        Cache::None => v1::CacheScope::None,
    }
}

/// One message of a conversation.
pub(crate) fn message(role: v1::Role, content: impl Into<String>) -> v1::ChatMessage {
    v1::ChatMessage {
        role: role.into(),
        content: content.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Kind;

    fn join(words: &[&str], stdin: Option<&str>, exact: bool) -> Result<String, Kind> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        join_prompt(&words, stdin.map(str::to_owned), exact).map_err(|failure| failure.kind)
    }

    #[test]
    fn words_and_standard_input_join() {
        for (words, stdin, exact, prompt) in [
            (&["why", "so"][..], None, false, "why so"),
            (&["why"], Some(""), false, "why"),
            (&["why"], Some("\n"), true, "why"),
            (&[], Some("text\n"), false, "text"),
            (&[], Some("text\n"), true, "text\n"),
            (
                &["sum", "up"],
                Some("line 1\nline 2\n"),
                false,
                "line 1\nline 2\n\nsum up",
            ),
            (&[""], Some("  indented\n"), false, "  indented"),
        ] {
            assert_eq!(
                join(words, stdin, exact).as_deref(),
                Ok(prompt),
                "{words:?} {stdin:?}"
            );
        }
    }

    #[test]
    fn no_prompt_is_a_usage_failure() {
        for stdin in [None, Some(""), Some(" \n")] {
            assert_eq!(join(&[], stdin, false), Err(Kind::Usage));
            assert_eq!(join(&[" "], stdin, true), Err(Kind::Usage));
        }
    }

    #[test]
    fn standard_input_must_be_short_utf8() {
        assert_eq!(decode("grüezi".into()).unwrap(), "grüezi");
        let failure = decode(vec![b'a', 0xFF]).unwrap_err();
        assert_eq!(failure.kind, Kind::Usage);
        assert!(
            failure.message().contains("byte 1"),
            "{}",
            failure.message()
        );
        let limit = usize::try_from(STDIN_BYTES_MAX).unwrap();
        assert!(decode(vec![b'a'; limit]).is_ok());
        assert!(decode(vec![b'a'; limit + 1]).is_err());
    }

    #[test]
    fn what_is_not_given_is_not_set() {
        let args = GenerationArgs {
            model: None,
            max_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repeat_penalty: None,
            frequency_penalty: None,
            presence_penalty: None,
            seed: None,
            stop: Vec::new(),
            class: None,
            cache: None,
            timeout: Some(Duration::from_millis(1500)),
        };
        let options = options(&args);
        assert_eq!(options.sampling, Some(v1::SamplingParams::default()));
        assert_eq!(options.class, i32::from(v1::Class::Unspecified));
        assert_eq!(options.cache_scope, i32::from(v1::CacheScope::Unspecified));
        assert_eq!(
            options.deadline,
            Some(prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000
            })
        );
    }
}
