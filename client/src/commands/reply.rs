//! Showing a reply while it comes: text to stdout, progress to stderr, or one JSON object an event.
//! It does not know where the reply comes from.

use std::time::Duration;

use hearth::v1::{self, FinishReason};
use hearth::{Event, Reply};

use crate::exit::{Failure, Kind};
use crate::json;
use crate::output::{Output, Progress, complain};

/// Longest wait for the stream to close after its `end`.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// What is being shown of a reply.
pub(crate) struct Shown {
    output: Output,
    progress: Progress,
    /// The reply so far, without the echo.
    pub(crate) text: String,
    ends_line: bool,
}

impl Shown {
    /// Nothing yet.
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            progress: output.progress(),
            text: String::new(),
            ends_line: true,
        }
    }

    /// Shows the reply to its end.
    ///
    /// # Errors
    /// Those of the stream and of writing. What came before stays in `text`.
    pub(crate) async fn follow(&mut self, mut reply: Reply) -> Result<v1::End, Failure> {
        loop {
            let next = reply.next().await;
            let Some(event) = next.inspect_err(|_| self.finish_line())? else {
                self.finish_line();
                return Err(hearth::Error::Protocol("a reply closes with `end`").into());
            };
            if self.output.json {
                self.output.object(&json::event(&event))?;
            }
            match event {
                Event::Queued(queued) => self.say(format!("waiting, {} ahead", queued.ahead)),
                Event::Loading(loading) => self.say(loading_text(loading.fraction)),
                Event::Prefill(prefill) => {
                    self.say(format!(
                        "reading {} of {} tokens",
                        prefill.done, prefill.total
                    ));
                }
                Event::Echo(echo) => self.write(&echo.text)?,
                Event::Delta(delta) => {
                    self.text.push_str(&delta.text);
                    self.write(&delta.text)?;
                }
                Event::End(end) => {
                    self.finish_line();
                    // A stream dropped before its last frame looks like a cancelled one to the
                    // daemon.
                    let _ = tokio::time::timeout(CLOSE_PATIENCE, reply.next()).await;
                    return Ok(end);
                }
            }
        }
    }

    /// Shows progress, but never within a line of text.
    fn say(&self, text: String) {
        if self.ends_line {
            self.progress.say(text);
        }
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        if text.is_empty() || self.output.json {
            return Ok(());
        }
        self.progress.clear();
        self.output.text(text)?;
        self.ends_line = text.ends_with('\n');
        Ok(())
    }

    /// Takes the progress away and ends the last line of text, so that what follows starts its own.
    pub(crate) fn finish_line(&mut self) {
        self.progress.clear();
        if !self.ends_line {
            self.ends_line = true;
            // If the reader is gone, so is the line.
            let _ = self.output.text("\n");
        }
    }
}

fn loading_text(fraction: f32) -> String {
    format!(
        "loading the model {:.0}%",
        (fraction * 100.0).clamp(0.0, 100.0)
    )
}

/// Tells on stderr what a person should know about the end of a reply.
///
/// # Errors
/// The reply was cut off by the time limit.
pub(crate) fn judge_end(end: &v1::End, output: Output) -> Result<(), Failure> {
    if let Some(cut) = &end.truncation {
        // Said to scripts too: a prompt must never be cut in silence.
        complain(&truncation_text(cut));
    }
    match FinishReason::try_from(end.finish_reason) {
        Ok(FinishReason::Deadline) => Err(Failure::new(
            Kind::Runtime,
            "the time allowed for the reply is over",
        )
        .with_hint("give it longer with --timeout")),
        Ok(FinishReason::Length) => {
            output.note(&format!("[stopped at {} tokens]", end.generated_tokens));
            Ok(())
        }
        Ok(FinishReason::ContextFull) => {
            output.note(&format!(
                "[stopped: the context of {} tokens is full]",
                end.context_len
            ));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn truncation_text(cut: &v1::Truncation) -> String {
    let messages = match cut.dropped_messages {
        0 => String::new(),
        1 => " (1 message)".to_owned(),
        n => format!(" ({n} messages)"),
    };
    format!(
        "hearth: warning: the oldest {} of {} prompt tokens were dropped{messages}\n",
        cut.dropped_tokens, cut.offered_tokens
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(reason: FinishReason) -> v1::End {
        v1::End {
            finish_reason: reason.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_passed_deadline_is_a_failure_and_other_ends_are_not() {
        let output = Output::new(true);
        for reason in [
            FinishReason::Eos,
            FinishReason::Stop,
            FinishReason::Length,
            FinishReason::ContextFull,
        ] {
            assert!(judge_end(&end(reason), output).is_ok(), "{reason:?}");
        }
        let failure = judge_end(&end(FinishReason::Deadline), output).unwrap_err();
        assert_eq!(failure.kind, Kind::Runtime);
    }

    #[test]
    fn a_cut_prompt_is_told_with_its_counts() {
        let cut = v1::Truncation {
            offered_tokens: 9000,
            kept_tokens: 8000,
            dropped_tokens: 1000,
            dropped_messages: 2,
        };
        assert_eq!(
            truncation_text(&cut),
            "hearth: warning: the oldest 1000 of 9000 prompt tokens were dropped (2 messages)\n"
        );
    }
}
