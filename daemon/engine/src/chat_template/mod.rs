//! Chat templates: messages to prompt text, with the template's own text told from the users'.
//! Knows minijinja and which texts are special tokens; knows no tokens and no model.
//!
//! Fuel bounds a template's steps, not the sizes of its values. Templates come with models, from
//! strangers: whoever compiles or renders one should do it in a process whose memory and time are
//! bounded, as the daemon does. A template and its errors travel by serde for that.

mod clock;
mod environment;
mod parts;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};

use self::environment::{Bounded, Raised, environment, fuel};
use crate::format::{Checkpoint, FormatError};
use crate::limits::{
    TEMPLATE_BYTES_MAX, TEMPLATE_MESSAGES_MAX, TEMPLATE_OUTPUT_BYTES_MAX, TEMPLATE_TAG_CHARS_MAX,
};

pub use parts::Part;

const TEMPLATE_KEY: &str = "tokenizer.chat_template";
const NAME: &str = "chat";
const ROLE_BYTES_MAX: usize = 32;

/// Stack of the thread that compiles: the compiler goes as deep as a template is nested, and a chain of
/// `elif` is. Memory is taken as it is used.
pub const COMPILER_STACK_BYTES: usize = 256 << 20;

/// A template could not be used. Never quotes a message.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub enum TemplateError {
    /// Metadata of a wrong type. Met when a file is read, never when a template is rendered.
    #[serde(skip)]
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The template itself is too long.
    #[error("the chat template has {bytes} bytes; at most {limit} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not a template.
    #[error("the chat template is not valid: {problem}")]
    Syntax {
        /// What is wrong with it, with the line.
        problem: String,
    },
    /// It failed on these messages.
    #[error("the chat template failed in line {line}: {kind}")]
    Render {
        /// Line of the template, 0 if not known.
        line: usize,
        /// What kind of error it is.
        kind: String,
    },
    /// It refuses these messages, in words of its own.
    #[error("the chat template refuses the messages: {message}")]
    Refused {
        /// The template's message.
        message: String,
    },
    /// It ran for too long.
    #[error("the chat template ran for more steps than are allowed")]
    OutOfFuel,
    /// It wanted more memory than it may have, or went too deep. Of a process apart.
    #[error("the chat template needs more memory than is allowed")]
    TooMuchMemory,
    /// It took longer than it may. Of a process apart.
    #[error("the chat template takes more time than is allowed")]
    TooSlow,
    /// Its process failed in another way.
    #[error("the chat template made its interpreter fail")]
    Failed,
    /// Its output is too long.
    #[error("the rendered prompt is over {TEMPLATE_OUTPUT_BYTES_MAX} bytes")]
    OutputTooLong,
    /// A role that is not a plain word.
    #[error("the role of message {index} is not a word of 1 to 32 letters a-z, digits, - or _")]
    Role {
        /// Which message.
        index: usize,
    },
    /// Too many messages.
    #[error("{count} messages; at most {TEMPLATE_MESSAGES_MAX} are allowed")]
    TooManyMessages {
        /// How many there are.
        count: usize,
    },
    /// A message holds the text of a special token, and this template changes messages in a way
    /// that does not let it be told from the template's own.
    #[error(
        "message {index} contains the text of a special token, which this model's chat template cannot keep apart"
    )]
    UnsafeContent {
        /// Which message.
        index: usize,
    },
}

/// One message of a conversation. Holds a user's text, so it has no `Debug`.
#[derive(Clone, Copy, Serialize)]
pub struct ChatMessage<'a> {
    /// `system`, `user`, `assistant`, or another role that the template knows: 1 to 32 letters
    /// a-z, digits, `-` or `_`.
    pub role: &'a str,
    /// The text.
    pub content: &'a str,
}

/// A chat template, compiled when it is rendered for the first time. It travels as text.
#[derive(Serialize, Deserialize)]
pub struct ChatTemplate {
    #[serde(skip)]
    compiled: OnceLock<Environment<'static>>,
    source: String,
    bos_token: String,
    eos_token: String,
    /// Texts that a tokenizer reads as special tokens.
    special_texts: Vec<String>,
}

impl ChatTemplate {
    /// Compiles a template. Besides `bos_token` and `eos_token`, every text of the form `<|...|>`
    /// counts as a special token.
    ///
    /// # Errors
    /// The template is too long or not valid.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        let template = Self::of_text(source, bos_token, eos_token)?;
        template.environment()?;
        Ok(template)
    }

    /// Takes a template as it is, not compiled.
    fn of_text(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong {
                bytes: source.len(),
                limit: TEMPLATE_BYTES_MAX,
            });
        }
        if let Some(line) = long_tag(source) {
            return Err(TemplateError::Syntax {
                problem: format!(
                    "a tag in line {line} has over {TEMPLATE_TAG_CHARS_MAX} characters outside its \
                     texts"
                ),
            });
        }
        let special_texts = ["<|", bos_token, eos_token]
            .into_iter()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(Self {
            compiled: OnceLock::new(),
            source: source.to_owned(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            special_texts,
        })
    }

    /// The template of a model file, not compiled; `None` if it has none.
    ///
    /// # Errors
    /// The template is too long, or not a text.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, TemplateError> {
        let Some(source) = checkpoint.get_str(TEMPLATE_KEY)? else {
            return Ok(None);
        };
        let texts = checkpoint.get_str_array("tokenizer.ggml.tokens")?;
        let text_of = |key: &str| -> Result<String, TemplateError> {
            let id = checkpoint
                .get_u32(key)?
                .and_then(|id| usize::try_from(id).ok());
            Ok(id
                .and_then(|id| texts?.get(id))
                .unwrap_or_default()
                .to_owned())
        };
        let bos_token = text_of("tokenizer.ggml.bos_token_id")?;
        let eos_token = text_of("tokenizer.ggml.eos_token_id")?;
        let mut template = Self::of_text(source, &bos_token, &eos_token)?;
        let types = checkpoint
            .get_i32_array("tokenizer.ggml.token_type")?
            .unwrap_or_default();
        if let Some(texts) = texts {
            let special = texts
                .iter()
                .zip(&types)
                .filter(|(text, kind)| matches!(**kind, 3 | 4) && !text.trim().is_empty())
                .map(|(text, _)| text.to_owned());
            template.special_texts.extend(special);
        }
        Ok(Some(template))
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders messages to one text. Special tokens in messages are not told from the template's
    /// own there: use [`ChatTemplate::render_parts`] for anything that becomes tokens.
    ///
    /// # Errors
    /// The template is not valid, fails, refuses the messages, or goes over a limit.
    pub fn render(
        &self,
        messages: &[ChatMessage<'_>],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        check_messages(messages)?;
        // Templates are outside input: should the interpreter panic on one, only this call fails.
        catch_unwind(AssertUnwindSafe(|| {
            self.evaluate(messages, add_generation_prompt)
        }))
        .unwrap_or_else(|_| {
            Err(TemplateError::Render {
                line: 0,
                kind: "the interpreter failed".to_owned(),
            })
        })
    }

    /// Renders messages to parts: text of the template, which is trusted, and text of messages,
    /// in which the texts of special tokens must stay plain text. Make tokens of them with
    /// [`crate::tokenizer::Tokenizer::encode_parts`], all at once: text is cut and merged across
    /// their borders. The parts joined are what
    /// [`ChatTemplate::render`] gives; none is empty.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; and [`TemplateError::UnsafeContent`] if a message holds the
    /// text of a special token and the template does more with messages than print or trim them.
    pub fn render_parts(
        &self,
        messages: &[ChatMessage<'_>],
        add_generation_prompt: bool,
    ) -> Result<Vec<Part>, TemplateError> {
        let whole = self.render(messages, add_generation_prompt)?;
        let marks = parts::Marks::new(messages.len());
        let marked: Vec<ChatMessage<'_>> = messages
            .iter()
            .zip(marks.texts())
            .map(|(message, mark)| ChatMessage {
                role: message.role,
                content: mark,
            })
            .collect();
        // A template may fail on the marks alone, for instance because it parses messages.
        if let Ok(skeleton) = self.render(&marked, add_generation_prompt)
            && let Some(parts) = marks.split(&skeleton, &whole, messages)
        {
            return Ok(parts);
        }
        match messages
            .iter()
            .position(|message| self.holds_special(message.content))
        {
            Some(index) => Err(TemplateError::UnsafeContent { index }),
            None => Ok(parts::trusted(whole)),
        }
    }

    /// Tells whether a text holds that of a special token, in any case: a template may change it.
    fn holds_special(&self, content: &str) -> bool {
        let content = content.to_lowercase();
        self.special_texts
            .iter()
            .any(|special| content.contains(&special.to_lowercase()))
    }

    fn evaluate(
        &self,
        messages: &[ChatMessage<'_>],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut env = self.environment()?.clone();
        env.set_fuel(Some(fuel(messages.len())));
        let template = env
            .get_template(NAME)
            .map_err(|error| self.explain(&error))?;
        let mut out = Bounded::default();
        let none: Option<()> = None;
        let context = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
            tools => none,
            documents => none,
        };
        let outcome = template.render_captured_to(context, &mut out).map(|_| ());
        if out.overflowed {
            return Err(TemplateError::OutputTooLong);
        }
        outcome.map_err(|error| self.explain(&error))?;
        String::from_utf8(out.bytes).map_err(|_| TemplateError::Render {
            line: 0,
            kind: "the output is not UTF-8".to_owned(),
        })
    }

    fn environment(&self) -> Result<&Environment<'static>, TemplateError> {
        if let Some(env) = self.compiled.get() {
            return Ok(env);
        }
        let env = compile(&self.source)?;
        Ok(self.compiled.get_or_init(|| env))
    }

    /// An error without any text of a message: minijinja's own words may quote values.
    fn explain(&self, error: &Error) -> TemplateError {
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if let Some(Raised(message)) = inner.downcast_ref::<Raised>() {
                // Only what stands in the template in so many words is sure to quote no message.
                let message = if self.source.contains(message.as_str()) {
                    message.clone()
                } else {
                    "(its reason may quote a message and is not repeated)".to_owned()
                };
                return TemplateError::Refused { message };
            }
            cause = inner.source();
        }
        match error.kind() {
            ErrorKind::OutOfFuel => TemplateError::OutOfFuel,
            kind => TemplateError::Render {
                line: error.line().unwrap_or(0),
                kind: kind.to_string(),
            },
        }
    }
}

/// Roles go into the template's own text, so they must not carry markup.
fn check_messages(messages: &[ChatMessage<'_>]) -> Result<(), TemplateError> {
    if messages.len() > TEMPLATE_MESSAGES_MAX {
        return Err(TemplateError::TooManyMessages {
            count: messages.len(),
        });
    }
    let is_word = |role: &str| {
        (1..=ROLE_BYTES_MAX).contains(&role.len())
            && role
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    match messages.iter().position(|message| !is_word(message.role)) {
        Some(index) => Err(TemplateError::Role { index }),
        None => Ok(()),
    }
}

/// The environment with the template in it, compiled where there is room to go deep.
fn compile(source: &str) -> Result<Environment<'static>, TemplateError> {
    let failed = |problem: String| TemplateError::Syntax { problem };
    std::thread::scope(|scope| {
        let work = || {
            let mut env = environment();
            match env.add_template_owned(NAME, source.to_owned()) {
                Ok(()) => Ok(env),
                Err(error) => Err(failed(error.to_string())),
            }
        };
        let thread = std::thread::Builder::new().stack_size(COMPILER_STACK_BYTES);
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|error| failed(format!("no thread to compile it: {error}")))?;
        match thread.join() {
            Ok(compiled) => compiled,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The line of a tag whose expression may be deeper than a compiler should go: every operator of a chain
/// is a level. Texts in quotes do not count.
fn long_tag(source: &str) -> Option<usize> {
    let bytes = source.as_bytes();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        if bytes[at] == b'\n' {
            line += 1;
        }
        if !(source[at..].starts_with("{{") || source[at..].starts_with("{%")) {
            // To the next character's first byte.
            at += 1;
            while !source.is_char_boundary(at) {
                at += 1;
            }
            continue;
        }
        let (length, end) = tag(&bytes[at..]);
        if length > TEMPLATE_TAG_CHARS_MAX {
            return Some(line);
        }
        line += bytes[at..at + end].iter().filter(|b| **b == b'\n').count();
        at += end;
    }
    None
}

/// Bytes of the tag at the front that are outside of quotes, and bytes of all of it.
fn tag(bytes: &[u8]) -> (usize, usize) {
    let (mut length, mut at) = (0, 2);
    let mut quote = None;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'\'' | b'"') => quote = Some(bytes[at]),
            (None, b'}') if matches!(bytes[at - 1], b'}' | b'%') => return (length, at + 1),
            (None, _) => length += 1,
        }
        at += 1;
    }
    (length, bytes.len())
}
