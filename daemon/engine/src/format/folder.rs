//! A model in Hugging Face's layout: which of its files count, and what they say together, in GGUF's
//! words.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read as _, Seek as _};

use serde::Deserialize;

use super::checkpoint::{Parts, size_of};
use super::cursor::clip;
use super::hub::{self, HubFiles};
use super::metadata::Metadata;
use super::{FormatError, Stored, TensorInfo, safetensors};
use crate::limits::{
    GGUF_TENSORS_MAX, HUB_CONFIG_BYTES_MAX, HUB_INDEX_BYTES_MAX, HUB_PIECES_BYTES_MAX,
    HUB_TOKENIZER_BYTES_MAX, HUB_TOKENIZER_CONFIG_BYTES_MAX,
};

const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";

/// Reads a model's files: its metadata, and where its tensors lie.
pub(super) fn read(files: Vec<(String, File)>) -> Result<Parts, FormatError> {
    let (weights, mut side): (Vec<_>, HashMap<_, _>) = {
        let is_weights = |name: &str| name.ends_with(".safetensors");
        let (weights, side): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(name, _)| is_weights(name));
        (weights, side.into_iter().collect())
    };
    let weights = counting(weights, &mut side)?;
    let missing = || FormatError::MissingField {
        field: hub::CONFIG.to_owned(),
    };
    let mut take = |name, limit| text(&mut side, name, limit);
    let said = hub::metadata(HubFiles {
        config: take(hub::CONFIG, HUB_CONFIG_BYTES_MAX)?.ok_or_else(missing)?,
        generation_config: take(hub::GENERATION_CONFIG, HUB_CONFIG_BYTES_MAX)?,
        tokenizer: take(hub::TOKENIZER, HUB_TOKENIZER_BYTES_MAX)?,
        pieces: take(hub::PIECES, HUB_PIECES_BYTES_MAX)?,
        added_tokens: take(hub::ADDED_TOKENS, HUB_CONFIG_BYTES_MAX)?,
        tokenizer_config: take(hub::TOKENIZER_CONFIG, HUB_TOKENIZER_CONFIG_BYTES_MAX)?,
        chat_template: take(hub::CHAT_TEMPLATE, HUB_CONFIG_BYTES_MAX)?,
    })?;
    let scheme = match said.quantization {
        Some(config) => hub::scheme(&config).map_err(|error| error.in_file(hub::CONFIG))?,
        None => older_scheme(&mut side)?,
    };
    let metadata = Metadata::from_entries(said.entries)?;

    let mut opened = Vec::with_capacity(weights.len());
    let mut raw = Vec::new();
    let mut file_bytes = 0_u64;
    for (name, file) in weights {
        let in_file = |error: FormatError| error.in_file(&name);
        let bytes = size_of(&file).map_err(in_file)?;
        raw.extend(safetensors::read(&file, opened.len(), bytes).map_err(in_file)?);
        file_bytes = file_bytes.saturating_add(bytes);
        opened.push(file);
    }
    if raw.len() as u64 > GGUF_TENSORS_MAX {
        return Err(FormatError::OverLimit {
            field: "tensors of all files".to_owned(),
            value: raw.len() as u64,
            limit: GGUF_TENSORS_MAX,
        });
    }
    let facts = hub::Facts {
        head_dim: head_dim(&metadata)?,
        tied_output: said.tied_output,
        scheme: scheme.as_ref(),
    };
    let translated = hub::translate(raw, &facts)?;
    check_zero(&opened, &translated.must_be_zero)?;
    Ok(Parts {
        files: opened,
        file_bytes,
        format: "safetensors",
        quantization: scheme.map(|scheme| scheme.label()),
        metadata,
        tensors: translated.tensors,
    })
}

/// The weight files that make up the model: those that the index names; without one the file of the
/// usual name; else all.
fn counting(
    weights: Vec<(String, File)>,
    side: &mut HashMap<String, File>,
) -> Result<Vec<(String, File)>, FormatError> {
    /// What is needed of the index: a tensor's file by the tensor's name.
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let Some(bytes) = text(side, INDEX, HUB_INDEX_BYTES_MAX)? else {
        let whole = weights.iter().any(|(name, _)| name == WHOLE);
        return Ok(weights
            .into_iter()
            .filter(|(name, _)| !whole || name == WHOLE)
            .collect());
    };
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| {
        FormatError::Unsound {
            problem: clip(&error.to_string()),
        }
        .in_file(INDEX)
    })?;
    let named: BTreeSet<String> = index.weight_map.into_values().collect();
    let missing = named
        .iter()
        .find(|name| !weights.iter().any(|(have, _)| have == *name));
    if let Some(name) = missing {
        return Err(FormatError::Invalid {
            field: "weight_map".to_owned(),
            value: clip(name),
            allowed: "the file is not there; every file that it names is needed",
        }
        .in_file(INDEX));
    }
    Ok(weights
        .into_iter()
        .filter(|(name, _)| named.contains(name))
        .collect())
}

/// Takes a small file and reads it whole, if it is there.
fn text(
    side: &mut HashMap<String, File>,
    name: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, FormatError> {
    let Some(mut file) = side.remove(name) else {
        return Ok(None);
    };
    let read = || {
        let bytes = size_of(&file)?;
        if bytes > limit {
            return Err(FormatError::OverLimit {
                field: "size in bytes".to_owned(),
                value: bytes,
                limit,
            });
        }
        let failed = |source| FormatError::Io {
            what: "the file".to_owned(),
            source,
        };
        let mut text = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        file.rewind().map_err(failed)?;
        // It may have grown since.
        (&file).take(limit).read_to_end(&mut text).map_err(failed)?;
        Ok(text)
    };
    let mut read = read;
    read()
        .map(Some)
        .map_err(|error: FormatError| error.in_file(name))
}

/// What older tools write beside a model that says nothing in config.json.
fn older_scheme(side: &mut HashMap<String, File>) -> Result<Option<hub::Scheme>, FormatError> {
    for name in ["quantize_config.json", "quant_config.json"] {
        if let Some(bytes) = text(side, name, HUB_CONFIG_BYTES_MAX)? {
            let config = serde_json::from_slice(&bytes).map_err(|error| FormatError::Unsound {
                problem: clip(&error.to_string()),
            });
            return config
                .and_then(|config| hub::scheme(&config))
                .map_err(|error| error.in_file(name));
        }
    }
    Ok(None)
}

/// Values of a head, from the metadata; 2, which any number of rows has, where they do not say:
/// such a model is refused later.
pub(super) fn head_dim(metadata: &Metadata) -> Result<u64, FormatError> {
    let architecture = metadata.str("general.architecture")?.unwrap_or_default();
    let number = |key: &str| metadata.int::<u64>(&format!("{architecture}.{key}"), "u64");
    if let Some(length) = number("attention.key_length")? {
        return Ok(length);
    }
    let hidden = number("embedding_length")?.unwrap_or(0);
    let heads = number("attention.head_count")?.unwrap_or(1).max(1);
    Ok((hidden / heads).max(2))
}

/// Refuses biases that would change something: the forward pass has none there.
fn check_zero(files: &[File], tensors: &[TensorInfo]) -> Result<(), FormatError> {
    for tensor in tensors {
        let Stored::Rows(place) = tensor.stored else {
            continue;
        };
        let refused = || FormatError::Invalid {
            field: format!("tensor {:?}", clip(&tensor.name)),
            value: "not all zeros".to_owned(),
            allowed: "a Llama model has no bias there",
        };
        // A bias is as long as a layer is wide.
        if place.bytes > HUB_CONFIG_BYTES_MAX {
            return Err(refused());
        }
        let mut bytes = vec![0; usize::try_from(place.bytes).unwrap_or(0)];
        let file = files.get(place.file).ok_or_else(refused)?;
        super::checkpoint::read_exact_at(file, &mut bytes, place.offset).map_err(|source| {
            FormatError::Io {
                what: format!("tensor {:?}", clip(&tensor.name)),
                source,
            }
        })?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(refused());
        }
    }
    Ok(())
}
