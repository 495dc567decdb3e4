//! Rotary position embedding of a `config.json` in GGUF's words: `rope_theta` with `rope_scaling`,
//! or `rope_parameters`, which holds both in newer files.

use serde_json::Value;

use super::json::Object;
use crate::format::FormatError;
use crate::format::metadata::Entry;

/// The fields that are understood, of all types.
const FIELDS: [&str; 9] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "max_position_embeddings",
];

/// The metadata, keys without the architecture before them.
pub(super) fn read(file: &mut Object) -> Result<Vec<(&'static str, Entry)>, FormatError> {
    let old = file.take_object("rope_scaling", "rope_scaling.")?;
    let new = file.take_object("rope_parameters", "rope_parameters.")?;
    let Some(rope) = new.or(old) else {
        return Ok(vec![("rope.freq_base", theta(file.f64("rope_theta")?))]);
    };
    // Some layers may have their own, in objects of their own.
    if let Some(key) = rope.keys().find(|key| !FIELDS.contains(key)) {
        let value = rope.get(key).cloned().unwrap_or_default();
        return Err(rope.bad(key, &value, "this kind of RoPE is not supported"));
    }
    if let Some(part) = rope.f64("partial_rotary_factor")?
        && part != 1.0
    {
        let value = Value::from(part);
        let allowed = "only heads that turn whole are supported";
        return Err(rope.bad("partial_rotary_factor", &value, allowed));
    }
    let base = match rope.f64("rope_theta")? {
        None => file.f64("rope_theta")?,
        found => found,
    };
    let mut entries = vec![("rope.freq_base", theta(base))];
    let key = if rope.get("rope_type").is_some() {
        "rope_type"
    } else {
        "type"
    };
    let kind = match rope.str(key)? {
        None | Some("default") => return Ok(entries),
        Some(kind @ ("linear" | "llama3")) => kind,
        Some(other) => {
            let value = Value::from(other);
            return Err(rope.bad(key, &value, "default, linear and llama3 are supported"));
        }
    };
    entries.push(("rope.scaling.type", Entry::Str(kind.to_owned())));
    let factor = rope.required_f64("factor")?;
    entries.push(("rope.scaling.factor", Entry::Float(factor)));
    if kind == "llama3" {
        for (from, to) in [
            ("low_freq_factor", "rope.scaling.low_freq_factor"),
            ("high_freq_factor", "rope.scaling.high_freq_factor"),
        ] {
            entries.push((to, Entry::Float(rope.required_f64(from)?)));
        }
        let length = rope.required_u32("original_max_position_embeddings")?;
        let key = "rope.scaling.original_context_length";
        entries.push((key, Entry::Int(u64::from(length))));
    }
    Ok(entries)
}

fn theta(base: Option<f64>) -> Entry {
    Entry::Float(base.unwrap_or(10_000.0))
}
