//! Which tokens begin and end a text or a turn.

use super::TokenizerError;
use super::vocab::{Kind, Vocab};
use crate::format::Checkpoint;

/// Tokens that end a text, where a file has more than GGUF has keys for.
const END_TOKENS_KEY: &str = "hearth.tokenizer.end_token_ids";

/// Names under which published models end a turn or a text. Only control tokens of these names
/// count.
const END_NAMES: [&str; 12] = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|endofturn|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<EOT>",
    "</s>",
];

/// The tokens that begin and end a text. With `usual`, SentencePiece's own numbers of them count
/// where a file names none.
pub(super) fn ends_of_text(
    checkpoint: &Checkpoint,
    vocab: &Vocab,
    usual: bool,
) -> Result<(Option<u32>, Option<u32>), TokenizerError> {
    let usual = |id: u32| (usual && vocab.kind(id) == Some(Kind::Control)).then_some(id);
    let bos = token_id(checkpoint, "tokenizer.ggml.bos_token_id", vocab)?;
    let eos = token_id(checkpoint, "tokenizer.ggml.eos_token_id", vocab)?;
    Ok((bos.or_else(|| usual(1)), eos.or_else(|| usual(2))))
}

/// A token that a file names by its id.
pub(super) fn token_id(
    checkpoint: &Checkpoint,
    key: &'static str,
    vocab: &Vocab,
) -> Result<Option<u32>, TokenizerError> {
    match checkpoint.get_u32(key)? {
        Some(id) if id >= vocab.len() => Err(TokenizerError::TokenOutOfRange {
            what: key,
            id,
            vocab_size: vocab.len(),
        }),
        other => Ok(other),
    }
}

/// The tokens that end a text or a turn, in rising order.
pub(super) fn end_tokens(
    checkpoint: &Checkpoint,
    vocab: &Vocab,
    eos: Option<u32>,
) -> Result<Vec<u32>, TokenizerError> {
    let mut ends: Vec<u32> = eos.into_iter().collect();
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(token_id(checkpoint, key, vocab)?);
    }
    for id in checkpoint
        .get_i32_array(END_TOKENS_KEY)?
        .unwrap_or_default()
    {
        match u32::try_from(id) {
            Ok(id) if id < vocab.len() => ends.push(id),
            _ => {
                return Err(TokenizerError::TokenOutOfRange {
                    what: END_TOKENS_KEY,
                    id: u32::try_from(id).unwrap_or(u32::MAX),
                    vocab_size: vocab.len(),
                });
            }
        }
    }
    ends.extend(
        vocab
            .iter()
            .filter(|(_, text, kind)| *kind == Kind::Control && END_NAMES.contains(text))
            .map(|(id, _, _)| id),
    );
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}
