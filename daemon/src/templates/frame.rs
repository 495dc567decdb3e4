//! What the daemon and its renderer say to each other: a length of four bytes, then JSON. They are the
//! same program, so nothing of it is told from one version to another.

use std::io::{self, Read, Write};

use hearth_engine::chat_template::{ChatMessage, ChatTemplate, Part, TemplateError};
use serde::{Deserialize, Serialize};

use crate::limits::RENDER_FRAME_BYTES_MAX;

/// What comes of a rendering.
pub(super) type Answer = Result<Vec<Part>, TemplateError>;

#[derive(Serialize)]
struct Ask<'a> {
    template: &'a ChatTemplate,
    messages: &'a [ChatMessage<'a>],
}

#[derive(Deserialize)]
struct Asked {
    template: ChatTemplate,
    messages: Vec<AskedMessage>,
}

#[derive(Deserialize)]
struct AskedMessage {
    role: String,
    content: String,
}

/// A rendering, put in words.
///
/// # Errors
/// It is too long for a frame.
pub(super) fn ask(
    template: &ChatTemplate,
    messages: &[ChatMessage<'_>],
) -> Result<Vec<u8>, TemplateError> {
    match serde_json::to_vec(&Ask { template, messages }) {
        Ok(bytes) if bytes.len() <= RENDER_FRAME_BYTES_MAX => Ok(bytes),
        Ok(_) => Err(TemplateError::TooMuchMemory),
        Err(_) => Err(TemplateError::Failed),
    }
}

/// Does what was asked for, in this process.
pub(super) fn render(ask: &[u8]) -> Answer {
    let asked: Asked = serde_json::from_slice(ask).map_err(|_| TemplateError::Failed)?;
    let messages: Vec<ChatMessage<'_>> = asked
        .messages
        .iter()
        .map(|message| ChatMessage {
            role: &message.role,
            content: &message.content,
        })
        .collect();
    asked.template.render_parts(&messages, true)
}

/// An answer, put in words.
pub(super) fn answer(answer: &Answer) -> Vec<u8> {
    // Every answer can be written; an empty one is read as a failure.
    serde_json::to_vec(answer).unwrap_or_default()
}

/// What an answer's words say.
pub(super) fn read_answer(bytes: &[u8]) -> Answer {
    serde_json::from_slice(bytes).unwrap_or(Err(TemplateError::Failed))
}

/// Sends a frame.
pub(super) fn send(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)
}

/// Receives a frame.
pub(super) fn receive(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > RENDER_FRAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendering_survives_the_way() {
        let source =
            "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        let messages = [ChatMessage {
            role: "user",
            content: "\"h\u{e9}\"\n\0<s>",
        }];
        let here = template.render_parts(&messages, true).unwrap();
        let mut line = Vec::new();
        send(&mut line, &ask(&template, &messages).unwrap()).unwrap();
        let asked = receive(&mut line.as_slice()).unwrap();
        let there = read_answer(&answer(&render(&asked))).unwrap();
        assert!(here == there && here.len() == 3);
    }

    #[test]
    fn errors_keep_their_words() {
        let errors = [
            TemplateError::Render {
                line: 3,
                kind: "invalid operation".to_owned(),
            },
            TemplateError::UnsafeContent { index: 7 },
            TemplateError::OutOfFuel,
            TemplateError::TooMuchMemory,
        ];
        for error in errors {
            let words = error.to_string();
            let read = read_answer(&answer(&Err(error)));
            assert_eq!(read.err().unwrap().to_string(), words);
        }
        let broken = read_answer(b"{").err().unwrap();
        assert!(matches!(broken, TemplateError::Failed));
    }

    #[test]
    fn a_frame_has_a_longest_length() {
        let length = u32::try_from(RENDER_FRAME_BYTES_MAX + 1).unwrap();
        let refused = receive(&mut length.to_le_bytes().as_slice()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
