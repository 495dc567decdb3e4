//! `hearth show`: everything that is known about a model.

use hearth::v1;

use crate::cli::{Global, NameArg};
use crate::exit::Failure;
use crate::json;
use crate::output::{Output, bytes, table};

use super::connect;
use super::models::{count, rpc};

/// Shows what is known about a model.
///
/// # Errors
/// Those of the daemon; the model is not in the store.
pub(crate) async fn show(args: NameArg, global: &Global, output: Output) -> Result<(), Failure> {
    let client = connect(global, output).await?;
    let request = v1::ShowRequest { model: args.name };
    let shown = client
        .models()
        .show(request)
        .await
        .map_err(rpc)?
        .into_inner();
    let info = shown.model.clone().unwrap_or_default();
    if output.json {
        let mut object = json::model(&info);
        object["chat_template"] = shown.chat_template.into();
        object["n_heads"] = shown.n_heads.into();
        object["n_kv_heads"] = shown.n_kv_heads.into();
        object["head_dim"] = shown.head_dim.into();
        object["ffn_dim"] = shown.ffn_dim.into();
        object["weights_bytes"] = shown.weights_bytes.into();
        object["kv_bytes_per_1024_tokens"] = shown.kv_bytes_per_1024_tokens.into();
        object["path"] = shown.path.into();
        object["source"] = shown.source.into();
        object["files"] = shown.files.iter().map(json::model_file).collect();
        object["memory"] = shown.memory.as_ref().map(json::memory_need).into();
        return Ok(output.object(&object)?);
    }
    Ok(output.text(&table(&show_rows(&info, &shown)))?)
}

fn show_rows(info: &v1::ModelInfo, shown: &v1::ShowResponse) -> Vec<Vec<String>> {
    let mut rows = vec![
        ("name", info.name.clone()),
        ("title", info.title.clone().unwrap_or_default()),
        ("state", json::model_state(info.state)),
        ("licence", info.license.clone().unwrap_or_default()),
        ("architecture", info.architecture.clone()),
        (
            "weights",
            format!(
                "{} of type {}",
                count(info.parameter_count),
                info.quantization
            ),
        ),
        ("context", format!("{} tokens", info.context_len)),
        ("vocabulary", format!("{} tokens", info.vocab_size)),
        (
            "layers",
            format!("{}, {} wide", info.n_layers, info.hidden_dim),
        ),
        ("feed-forward", format!("{} wide", shown.ffn_dim)),
        (
            "attention",
            format!(
                "{} heads over {} key-value heads of {}",
                shown.n_heads, shown.n_kv_heads, shown.head_dim
            ),
        ),
        (
            "chat",
            if info.has_chat_template {
                "yes"
            } else {
                "no template"
            }
            .to_owned(),
        ),
        ("GPU memory", memory(shown)),
        ("source", shown.source.clone().unwrap_or_default()),
        (
            "format",
            format!("{}, {}", info.format, bytes(info.file_bytes)),
        ),
    ];
    if shown.files.len() > 1 {
        rows.extend(shown.files.iter().map(|file| {
            let text = format!("{} ({}) {}", file.name, bytes(file.bytes), file.sha256);
            ("file", text)
        }));
    } else {
        rows.push(("file", shown.path.clone()));
        rows.push(("sha256", info.sha256.clone()));
    }
    rows.retain(|(_, value)| !value.is_empty());
    rows.into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect()
}

/// What a model takes of the GPU's memory, in words.
fn memory(shown: &v1::ShowResponse) -> String {
    let per_1024 = bytes(shown.kv_bytes_per_1024_tokens);
    let Some(need) = &shown.memory else {
        return format!(
            "{} and {per_1024} for 1024 tokens",
            bytes(shown.weights_bytes)
        );
    };
    let all = need
        .weights_bytes
        .saturating_add(need.kv_bytes)
        .saturating_add(need.scratch_bytes);
    let about = if need.measured { "" } else { "about " };
    let scratch = match need.scratch_bytes {
        0 => String::new(),
        scratch => format!(", {} others", bytes(scratch)),
    };
    let available = match need.available_bytes {
        None => String::new(),
        Some(free) if free < all => format!("; only {} can be had now", bytes(free)),
        Some(free) => format!("; {} can be had now", bytes(free)),
    };
    format!(
        "{about}{} for a context of {} tokens: {} weights, {} keys and values ({per_1024} for 1024 \
         tokens){scratch}{available}",
        bytes(all),
        need.context_len,
        bytes(need.weights_bytes),
        bytes(need.kv_bytes),
    )
}
