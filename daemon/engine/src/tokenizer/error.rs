//! What can be wrong with a tokenizer or with what it is given. Never quotes a user's text.

use super::vocab::TOKENS_KEY;
use crate::format::FormatError;

/// Metadata key of the merges.
pub(super) const MERGES_KEY: &str = "tokenizer.ggml.merges";

/// A tokenizer could not be built or used. Never quotes a user's text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Metadata of a wrong type.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Metadata that a tokenizer needs is not there.
    #[error("metadata {key:?} is missing: the file holds no tokenizer")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A kind of tokenizer that is not built here.
    #[error("metadata {key:?}: {found:?} is not supported; supported are {supported}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What the file says.
        found: String,
        /// What is built here.
        supported: &'static str,
    },
    /// No tokens, or too many.
    #[error("metadata {:?}: {count} tokens; 1 to {limit} are allowed", TOKENS_KEY)]
    VocabSize {
        /// Tokens in the file.
        count: u32,
        /// The most that are allowed.
        limit: u32,
    },
    /// Two arrays that belong together differ in length.
    #[error("metadata {key:?} has {found} elements, there are {wanted} tokens")]
    Lengths {
        /// The key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// Number of tokens.
        wanted: usize,
    },
    /// A token id outside the vocabulary.
    #[error("{what}: token id {id} is not below the vocabulary size {vocab_size}")]
    TokenOutOfRange {
        /// The metadata key, or `ids` for a caller's ids.
        what: &'static str,
        /// The id.
        id: u32,
        /// Number of tokens.
        vocab_size: u32,
    },
    /// A score that is no number.
    #[error("metadata \"tokenizer.ggml.scores\": element {index} is not a number")]
    Score {
        /// Which score.
        index: usize,
    },
    /// A merge that is not two tokens, or whose result is no token.
    #[error("metadata {MERGES_KEY:?}: element {index} {problem}")]
    Merge {
        /// Which merge.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The matcher of special tokens or the model could not be built.
    #[error("cannot build the tokenizer: {0}")]
    Build(String),
    /// A text longer than the limit.
    #[error("{what} has {bytes} bytes; at most {limit} are allowed")]
    TooLong {
        /// What is too long: `the text`, `a token`.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The BPE model refused a piece of text.
    #[error("the tokenizer's model failed")]
    Encode,
}
