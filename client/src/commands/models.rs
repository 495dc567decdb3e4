//! `hearth import`, `ls`, `rm`, `load` and `unload`: the models in the store and on the GPU.

use std::io::IsTerminal as _;

use hearth::v1::{self, import_response, load_response};

use crate::cli::{Global, ImportArgs, LoadArgs, OptionalNameArg, Quantize, RmArgs};
use crate::exit::{Failure, Kind};
use crate::json;
use crate::output::{Output, Progress, bytes, table};

use super::{connect, connect_to_running};

/// Adds a model file to the store.
///
/// # Errors
/// The file cannot be read or is no model; the name is taken.
pub(crate) async fn import(
    args: ImportArgs,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    // The daemon has another working directory.
    let path = std::fs::canonicalize(&args.file).map_err(|error| {
        Failure::new(
            Kind::Usage,
            format!("cannot read {}: {error}", args.file.display()),
        )
    })?;
    let Some(path_text) = path.to_str() else {
        return Err(Failure::usage(format!(
            "the path {} is not UTF-8",
            path.display()
        )));
    };
    let request = v1::ImportRequest {
        path: path_text.to_owned(),
        name: args.name.unwrap_or_default(),
        quantize: match args.quantize {
            None => v1::Quantize::Unspecified,
            Some(Quantize::Q4) => v1::Quantize::Q4,
            Some(Quantize::Q8) => v1::Quantize::Q8,
        }
        .into(),
        origin: None,
    };
    let client = connect(global, output).await?;
    let progress = output.progress();
    let mut stream = client
        .models()
        .import(request)
        .await
        .map_err(rpc)?
        .into_inner();
    while let Some(response) = stream.message().await.map_err(rpc)? {
        match response.event {
            Some(import_response::Event::Progress(part)) => {
                show_progress("copying", &part, &progress, output)?;
            }
            Some(import_response::Event::Model(info)) => {
                progress.clear();
                return report(&info, "imported", output);
            }
            None => {}
        }
    }
    Err(hearth::Error::Protocol("an import closes with the model").into())
}

/// Lists the models in the store.
///
/// # Errors
/// Those of the daemon.
pub(crate) async fn list(global: &Global, output: Output) -> Result<(), Failure> {
    let client = connect(global, output).await?;
    let models = client
        .models()
        .list(v1::ListRequest {})
        .await
        .map_err(rpc)?
        .into_inner()
        .models;
    if output.json {
        for info in &models {
            output.object(&json::model(info))?;
        }
        return Ok(());
    }
    if models.is_empty() {
        output.note("There is no model yet. `hearth pull NAME` or `hearth import FILE` adds one.");
        return Ok(());
    }
    let head = ["NAME", "STATE", "WEIGHTS", "SIZE", "TYPE", "CONTEXT"]
        .map(str::to_owned)
        .to_vec();
    let rows = models.iter().map(|info| {
        vec![
            info.name.clone(),
            json::model_state(info.state),
            count(info.parameter_count),
            bytes(info.file_bytes),
            info.quantization.clone(),
            info.context_len.to_string(),
        ]
    });
    Ok(output.text(&table(
        &std::iter::once(head).chain(rows).collect::<Vec<_>>(),
    ))?)
}

/// Removes a model from the store.
///
/// # Errors
/// Those of the daemon; it is not there, or warm.
pub(crate) async fn remove(args: RmArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let client = connect(global, output).await?;
    let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !args.yes && asks {
        let question = format!("Remove {} from the store?", args.name);
        if !super::pull::confirm(&question).await? {
            return Err(Failure::new(Kind::Runtime, "nothing was removed"));
        }
    }
    let request = v1::DeleteRequest {
        model: args.name.clone(),
    };
    let removed = client.models().delete(request).await.map_err(rpc)?;
    let freed_bytes = removed.into_inner().freed_bytes;
    if output.json {
        return Ok(output.object(&serde_json::json!({
            "event": "removed",
            "name": args.name,
            "freed_bytes": freed_bytes,
        }))?);
    }
    let freed = bytes(freed_bytes);
    Ok(output.line(&format!("removed: {} ({freed} given back)", args.name))?)
}

/// Makes a model warm.
///
/// # Errors
/// Those of the daemon; the model is not there, cannot run or does not fit.
pub(crate) async fn load(args: LoadArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let client = connect(global, output).await?;
    let progress = output.progress();
    progress.say("loading");
    let request = v1::LoadRequest {
        model: args.name,
        keep_alive: args.keep_alive.and_then(|time| time.try_into().ok()),
    };
    let mut stream = client
        .models()
        .load(request)
        .await
        .map_err(rpc)?
        .into_inner();
    while let Some(response) = stream.message().await.map_err(rpc)? {
        match response.event {
            Some(load_response::Event::Progress(part)) => {
                show_progress("loading", &part, &progress, output)?;
            }
            Some(load_response::Event::Model(info)) => {
                progress.clear();
                return report(&info, "warm", output);
            }
            None => {}
        }
    }
    Err(hearth::Error::Protocol("a load closes with the model").into())
}

/// Takes a model off the GPU, or all.
///
/// # Errors
/// Those of the daemon; the model is not warm, or none is.
pub(crate) async fn unload(
    args: OptionalNameArg,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    // A daemon that does not run has nothing to unload.
    let client = connect_to_running(global).await?;
    client
        .models()
        .unload(v1::UnloadRequest {
            model: args.name.unwrap_or_default(),
        })
        .await
        .map_err(rpc)?;
    if output.json {
        return Ok(output.object(&serde_json::json!({ "event": "unloaded" }))?);
    }
    Ok(output.line("unloaded")?)
}

/// Keeps a warm model warm without requests, or no longer so.
///
/// # Errors
/// Those of the daemon; the model is not warm.
pub(crate) async fn pin(
    args: OptionalNameArg,
    pinned: bool,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    // A daemon that does not run has no warm model.
    let mut models = connect_to_running(global).await?.models();
    let model = args.name.unwrap_or_default();
    let event = if pinned {
        models.pin(v1::PinRequest { model }).await.map_err(rpc)?;
        "pinned"
    } else {
        models
            .unpin(v1::UnpinRequest { model })
            .await
            .map_err(rpc)?;
        "unpinned"
    };
    if output.json {
        return Ok(output.object(&serde_json::json!({ "event": event }))?);
    }
    Ok(output.line(event)?)
}

pub(super) fn show_progress(
    what: &str,
    part: &v1::TransferProgress,
    progress: &Progress,
    output: Output,
) -> Result<(), Failure> {
    if output.json {
        output.object(&json::progress(part))?;
    }
    match part.total_bytes {
        Some(total) => progress.portion(what, part.done_bytes, total),
        None => progress.say(format!("{what} {}", bytes(part.done_bytes))),
    }
    Ok(())
}

/// Says what became of a model.
pub(super) fn report(info: &v1::ModelInfo, what: &str, output: Output) -> Result<(), Failure> {
    if output.json {
        let mut object = json::model(info);
        object["event"] = what.into();
        return Ok(output.object(&object)?);
    }
    let facts = [
        Some(bytes(info.file_bytes)),
        (!info.quantization.is_empty()).then(|| info.quantization.clone()),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    Ok(output.line(&format!("{what}: {} ({})", info.name, facts.join(", ")))?)
}

/// A number of weights in words.
pub(super) fn count(weights: u64) -> String {
    match weights {
        0..1_000_000 => format!("{} k", weights / 1_000),
        1_000_000..1_000_000_000 => format!("{} M", weights / 1_000_000),
        _ => {
            let tenths = weights / 100_000_000;
            format!("{}.{} G", tenths / 10, tenths % 10)
        }
    }
}

pub(super) fn rpc(status: tonic::Status) -> Failure {
    hearth::Error::from(status).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_counted_in_words() {
        for (weights, text) in [
            (12_345, "12 k"),
            (134_515_008, "134 M"),
            (8_030_261_248, "8.0 G"),
        ] {
            assert_eq!(count(weights), text);
        }
    }
}
