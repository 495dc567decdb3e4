//! `Debug` for the messages that hold a user's text: their name, never their contents.

use std::fmt;

use crate::v1;

macro_rules! redacted {
    ($($type:ty => $name:literal),* $(,)?) => {
        $(impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($name, " { .. }"))
            }
        })*
    };
}

redacted! {
    v1::ChatMessage => "ChatMessage",
    v1::ChatRequest => "ChatRequest",
    v1::ChatResponse => "ChatResponse",
    v1::Conversation => "Conversation",
    v1::CountTokensRequest => "CountTokensRequest",
    v1::count_tokens_request::Input => "Input",
    v1::Delta => "Delta",
    v1::DetokenizeRequest => "DetokenizeRequest",
    v1::DetokenizeResponse => "DetokenizeResponse",
    v1::Echo => "Echo",
    v1::EmbedRequest => "EmbedRequest",
    v1::GenerateRequest => "GenerateRequest",
    v1::generate_request::Input => "Input",
    v1::GenerateResponse => "GenerateResponse",
    v1::GenerationEvent => "GenerationEvent",
    v1::generation_event::Event => "Event",
    v1::GenerationOptions => "GenerationOptions",
    v1::OutputFormat => "OutputFormat",
    v1::output_format::Format => "Format",
    v1::Token => "Token",
    v1::TokenIds => "TokenIds",
    v1::TokenLogprob => "TokenLogprob",
    v1::TokenizeRequest => "TokenizeRequest",
    v1::TokenizeResponse => "TokenizeResponse",
}

#[cfg(test)]
mod tests {
    use crate::v1;

    #[test]
    fn debug_never_shows_text() {
        let request = v1::ChatRequest {
            messages: vec![v1::ChatMessage {
                role: 2,
                content: "canary".to_owned(),
            }],
            ..Default::default()
        };
        assert_eq!(format!("{request:?}"), "ChatRequest { .. }");
        let delta = v1::Delta {
            text: "canary".to_owned(),
            tokens: Vec::new(),
        };
        assert!(!format!("{delta:?}").contains("canary"));
    }
}
