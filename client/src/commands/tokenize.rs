//! `hearth tokenize`: how a text is cut into tokens.

use std::time::{Duration, Instant};

use hearth::{Client, Error, v1};
use tonic::Code;

use crate::cli::{Global, TokenizeArgs};
use crate::exit::Failure;
use crate::output::{Output, table};

use super::connect;
use super::request::{join_prompt, read_stdin};

/// Longest wait for a model that is being loaded.
const LOADING_PATIENCE: Duration = Duration::from_secs(120);
/// Longest pause between two tries.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Shortest pause between two tries.
const RETRY_MIN: Duration = Duration::from_millis(50);

/// Shows the tokens of a text.
///
/// # Errors
/// There is no text, or the daemon cannot tokenize it.
pub(crate) async fn tokenize(
    args: TokenizeArgs,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    let stdin = if args.text.is_empty() {
        read_stdin(output).await?
    } else {
        None
    };
    // Every character counts here, also those at the end of standard input.
    let text = match stdin {
        Some(text) => text,
        None => join_prompt(&args.text, None, true)?,
    };
    let client = connect(global, output).await?;
    let request = v1::TokenizeRequest {
        model: args.model.unwrap_or_default(),
        text,
        special_tokens: Some(v1::SpecialTokens {
            add: None,
            parse: Some(args.special),
        }),
        with_pieces: !(args.ids || args.count),
    };
    let response = ask_until_loaded(&client, request, output).await?;
    let count = response.ids.len();
    if output.json {
        let mut object = serde_json::json!({ "count": count });
        if !args.count {
            object["ids"] = response.ids.clone().into();
        }
        if !response.pieces.is_empty() {
            let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
            object["pieces"] = response.pieces.iter().map(text).collect();
        }
        return Ok(output.object(&object)?);
    }
    if args.count {
        return Ok(output.line(&count.to_string())?);
    }
    if args.ids {
        let ids: Vec<String> = response.ids.iter().map(u32::to_string).collect();
        return Ok(output.line(&ids.join(" "))?);
    }
    let rows: Vec<Vec<String>> = response
        .ids
        .iter()
        .zip(&response.pieces)
        .map(|(id, piece)| vec![format!("{id:>7}"), visible(piece)])
        .collect();
    Ok(output.text(&table(&rows))?)
}

/// Asks again while the daemon says that the model is on its way.
async fn ask_until_loaded(
    client: &Client,
    request: v1::TokenizeRequest,
    output: Output,
) -> Result<v1::TokenizeResponse, Failure> {
    let begin = Instant::now();
    let progress = output.progress();
    loop {
        let error = match client.inference().tokenize(request.clone()).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => Error::from(status),
        };
        match &error {
            Error::Rpc(rpc)
                if rpc.code == Code::Unavailable && begin.elapsed() < LOADING_PATIENCE =>
            {
                let Some(after) = rpc.retry_after else {
                    return Err(error.into());
                };
                progress.say("waiting for the model");
                tokio::time::sleep(after.clamp(RETRY_MIN, RETRY_MAX)).await;
            }
            _ => return Err(error.into()),
        }
    }
}

/// The text of a token in quotes, with what cannot be seen escaped; parts of characters as bytes.
fn visible(piece: &[u8]) -> String {
    match std::str::from_utf8(piece) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", piece.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_visible() {
        assert_eq!(visible(b" the"), "\" the\"");
        assert_eq!(visible(b"\n\t"), "\"\\n\\t\"");
        assert_eq!(visible("ü".as_bytes()), "\"ü\"");
        assert_eq!(visible(&[0xC3]), "\"\\xc3\"");
    }
}
