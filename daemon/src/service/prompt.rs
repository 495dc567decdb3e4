//! What a request asks the model to read, as tokens: rendered, tokenized, and cut if allowed.
//!
//! All of it is CPU work of some milliseconds: callers run it off the async threads.

use std::sync::{Arc, Weak};

use hearth_engine::LoadedModel;
use hearth_engine::chat_template::{ChatMessage, ChatTemplate};
use hearth_engine::tokenizer::{EncodeOptions, Tokenizer, TokenizerError};
use hearth_proto::v1;
use tonic::{Code, Status};

use crate::limits::CHAT_MESSAGES_MAX;
use crate::state::Shared;
use crate::status::{self, bad_field, context_overflow, fault};
use crate::templates::RenderError;

/// What to read. Holds a user's text, so it has no `Debug`.
pub(super) enum Ask {
    /// A conversation; the field it came in.
    Chat(Vec<v1::ChatMessage>, &'static str),
    /// A text; the field it came in.
    Text(String, EncodeOptions, &'static str),
    /// Tokens.
    Tokens(Vec<u32>),
}

impl Ask {
    /// The field it came in.
    pub(super) fn field(&self) -> &'static str {
        match self {
            Self::Chat(_, field) | Self::Text(_, _, field) => field,
            Self::Tokens(_) => "tokens.ids",
        }
    }
}

/// How a text's special tokens are read; `add` is the default of its own field.
pub(super) fn encode_options(special: Option<v1::SpecialTokens>, add: bool) -> EncodeOptions {
    let special = special.unwrap_or_default();
    EncodeOptions {
        add_special: special.add.unwrap_or(add),
        parse_special: special.parse.unwrap_or(false),
    }
}

/// Checks what can be checked without a model.
///
/// # Errors
/// INVALID_ARGUMENT naming the field.
pub(super) fn check(ask: &Ask) -> Result<(), Status> {
    match ask {
        Ask::Text(text, _, field) if text.is_empty() => Err(bad_field(field, "is empty")),
        Ask::Tokens(ids) if ids.is_empty() => Err(bad_field("tokens.ids", "is empty")),
        Ask::Text(..) | Ask::Tokens(_) => Ok(()),
        Ask::Chat(messages, field) => {
            if messages.is_empty() || messages.len() > CHAT_MESSAGES_MAX {
                let problem = format!("must have 1 to {CHAT_MESSAGES_MAX} messages");
                return Err(bad_field(field, problem));
            }
            let strange = messages
                .iter()
                .position(|message| role(message.role).is_none());
            match strange {
                Some(i) => Err(bad_field(
                    &format!("{field}[{i}].role"),
                    "must be a known role",
                )),
                None => Ok(()),
            }
        }
    }
}

fn role(role: i32) -> Option<&'static str> {
    match v1::Role::try_from(role) {
        Ok(v1::Role::System) => Some("system"),
        Ok(v1::Role::User) => Some("user"),
        Ok(v1::Role::Assistant) => Some("assistant"),
        Ok(v1::Role::Tool) => Some("tool"),
        Ok(v1::Role::Unspecified) | Err(_) => None,
    }
}

/// Where a request's template is rendered, as long as the request is there.
pub(super) struct Renders {
    shared: Arc<Shared>,
    asker: Weak<()>,
}

impl Renders {
    /// For a request that holds the first of the two while it waits.
    pub(super) fn of(shared: &Arc<Shared>) -> (Arc<()>, Self) {
        let held = Arc::new(());
        let asker = Arc::downgrade(&held);
        let shared = Arc::clone(shared);
        (held, Self { shared, asker })
    }
}

/// The tokens of a request, uncut.
///
/// # Errors
/// The template or the tokenizer refuses.
pub(super) fn tokens(
    renders: &Renders,
    model: &LoadedModel,
    ask: &Ask,
) -> Result<Vec<u32>, Status> {
    match ask {
        Ask::Tokens(ids) => Ok(ids.clone()),
        Ask::Text(text, options, field) => model
            .tokenizer
            .encode(text, *options)
            .map_err(|error| unreadable(field, &error)),
        Ask::Chat(messages, field) => {
            let messages: Vec<&v1::ChatMessage> = messages.iter().collect();
            chat_tokens(
                renders,
                template(model)?,
                &model.tokenizer,
                &messages,
                field,
            )
        }
    }
}

/// The tokens of a request, cut if they do not fit `context_len` and `truncates` allows that. A cut leaves
/// room for the most tokens to generate that it holds, but for no more than a quarter of the context.
///
/// # Errors
/// As [`tokens`], and CONTEXT_OVERFLOW if nothing more may be cut.
pub(super) fn fitting_tokens(
    renders: &Renders,
    model: &LoadedModel,
    ask: &Ask,
    context_len: u32,
    truncates: Option<Option<u32>>,
) -> Result<(Vec<u32>, Option<v1::Truncation>), Status> {
    let all = tokens(renders, model, ask)?;
    let Some(max_tokens) = truncates.filter(|_| count(&all) >= context_len) else {
        return Ok((all, None));
    };
    let reserve_max = (context_len / 4).max(1);
    let reserve = max_tokens.unwrap_or(reserve_max).clamp(1, reserve_max);
    let room = context_len.saturating_sub(reserve).max(1);
    match ask {
        Ask::Text(..) | Ask::Tokens(_) => {
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let kept = all[all.len().saturating_sub(room)..].to_vec();
            let cut = truncation(&all, &kept, 0);
            Ok((kept, Some(cut)))
        }
        Ask::Chat(messages, field) => {
            let (kept, dropped) =
                shorter_chat(renders, model, messages, room, field)?.ok_or_else(|| {
                    context_overflow(all.len() as u64, [context_len, model.context_len], field)
                })?;
            let cut = truncation(&all, &kept, dropped);
            Ok((kept, Some(cut)))
        }
    }
}

fn truncation(all: &[u32], kept: &[u32], dropped_messages: u32) -> v1::Truncation {
    v1::Truncation {
        offered_tokens: count(all),
        kept_tokens: count(kept),
        dropped_tokens: count(all).saturating_sub(count(kept)),
        dropped_messages,
    }
}

/// The longest end of a conversation that has at most `room` tokens, with all its system messages
/// and at least its last message. `None`: not even that fits.
fn shorter_chat(
    renders: &Renders,
    model: &LoadedModel,
    messages: &[v1::ChatMessage],
    room: u32,
    field: &str,
) -> Result<Option<(Vec<u32>, u32)>, Status> {
    let template = template(model)?;
    let last = messages.len() - 1;
    let droppable: Vec<usize> = (0..last)
        .filter(|i| messages[*i].role() != v1::Role::System)
        .collect();
    let without = |n: usize| {
        let dropped = &droppable[..n];
        let left: Vec<&v1::ChatMessage> = messages
            .iter()
            .enumerate()
            .filter(|(i, _)| dropped.binary_search(i).is_err())
            .map(|(_, message)| message)
            .collect();
        chat_tokens(renders, template, &model.tokenizer, &left, field)
    };
    // The fewest to drop: fewer messages never make more tokens.
    let (mut too_few, mut best) = (0, None);
    let mut enough = droppable.len();
    while too_few < enough || best.is_none() {
        let n = if best.is_none() {
            enough
        } else {
            too_few + (enough - too_few) / 2
        };
        match without(n) {
            Ok(tokens) if count(&tokens) <= room => {
                best = Some((tokens, u32::try_from(n).unwrap_or(u32::MAX)));
                enough = n;
            }
            // Templates may insist that roles alternate: then one message more must go.
            Err(error) if best.is_none() => return Err(error),
            Ok(_) if best.is_none() => return Ok(None),
            Ok(_) | Err(_) => too_few = n + 1,
        }
    }
    Ok(best)
}

fn template(model: &LoadedModel) -> Result<&ChatTemplate, Status> {
    model.chat_template.as_ref().ok_or_else(|| {
        let message = "the model has no chat template; Generate works without one";
        fault(Code::FailedPrecondition, "NO_CHAT_TEMPLATE", message).status()
    })
}

/// A conversation's tokens. What users wrote can never become control tokens.
fn chat_tokens(
    renders: &Renders,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[&v1::ChatMessage],
    field: &str,
) -> Result<Vec<u32>, Status> {
    let messages: Vec<ChatMessage<'_>> = messages
        .iter()
        .map(|message| ChatMessage {
            role: role(message.role).unwrap_or("user"),
            content: &message.content,
        })
        .collect();
    let templates = &renders.shared.own.process.templates;
    let parts = templates
        .render_parts(&renders.asker, template, &messages)
        .map_err(|error| not_rendered(field, &error))?;
    tokenizer
        .encode_parts(&parts)
        .map_err(|error| unreadable(field, &error))
}

fn unreadable(field: &str, error: &TokenizerError) -> Status {
    bad_field(field, format!("cannot be tokenized: {error}"))
}

fn not_rendered(field: &str, error: &RenderError) -> Status {
    match error {
        RenderError::Template(error) => bad_field(
            field,
            format!("the model's chat template refuses it: {error}"),
        ),
        RenderError::Crowded => status::renders_waiting(),
        RenderError::AskerGone => Status::cancelled("the caller is gone"),
    }
}

fn count(ids: &[u32]) -> u32 {
    u32::try_from(ids.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: i32) -> v1::ChatMessage {
        v1::ChatMessage {
            role,
            content: "x".to_owned(),
        }
    }

    #[test]
    fn conversations_are_checked() {
        let chat = |messages| check(&Ask::Chat(messages, "messages"));
        assert!(chat(Vec::new()).is_err());
        assert!(chat(vec![message(2); CHAT_MESSAGES_MAX]).is_ok());
        assert!(chat(vec![message(2); CHAT_MESSAGES_MAX + 1]).is_err());
        let status = chat(vec![message(2), message(0)]).unwrap_err();
        assert!(status.message().starts_with("messages[1].role"));
        assert!(chat(vec![message(9)]).is_err());
    }

    #[test]
    fn nothing_to_read_is_refused() {
        let options = encode_options(None, true);
        assert!(check(&Ask::Text(String::new(), options, "prompt")).is_err());
        assert!(check(&Ask::Tokens(Vec::new())).is_err());
    }

    #[test]
    fn special_tokens_have_their_defaults() {
        let options = encode_options(None, true);
        assert!(options.add_special && !options.parse_special);
        let special = v1::SpecialTokens {
            add: Some(false),
            parse: Some(true),
        };
        let options = encode_options(Some(special), true);
        assert!(!options.add_special && options.parse_special);
    }
}
