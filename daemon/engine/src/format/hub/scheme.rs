//! How a model's weights are quantised: `quantization_config` of config.json, or the file of its own
//! that older tools write. Knows no tensor.

use serde_json::Value;

use crate::format::FormatError;
use crate::format::cursor::clip;

/// Which tool's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) enum Kind {
    /// GPTQ.
    Gptq {
        /// The first version, which stores zero points less 1.
        zeros_less_one: bool,
    },
    /// AWQ for GEMM.
    Awq,
    /// compressed-tensors, pack-quantized.
    Packed,
}

/// What holds for all quantised matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::format) struct Scheme {
    pub(in crate::format) kind: Kind,
    /// 4 or 8.
    pub(in crate::format) bits: u32,
    /// Columns of a group; `None`: a whole row.
    pub(in crate::format) group_len: Option<u64>,
    /// Zero points are all in the middle.
    pub(in crate::format) symmetric: bool,
}

impl Scheme {
    /// A few words for listings: `GPTQ 4-bit g128`.
    pub(in crate::format) fn label(&self) -> String {
        let kind = match self.kind {
            Kind::Gptq { .. } => "GPTQ",
            Kind::Awq => "AWQ",
            Kind::Packed => "pack-quantized",
        };
        match self.group_len {
            Some(len) => format!("{kind} {}-bit g{len}", self.bits),
            None => format!("{kind} {}-bit", self.bits),
        }
    }
}

/// Reads a `quantization_config`; `None` where it says that nothing is quantised.
///
/// # Errors
/// Its method or one of its numbers is not supported; which one is named.
pub(in crate::format) fn read(config: &Value) -> Result<Option<Scheme>, FormatError> {
    let fields = Fields {
        config,
        at: "quantization_config",
    };
    // The file of its own is GPTQ's, and does not say so.
    match fields.text("quant_method")?.unwrap_or("gptq") {
        "gptq" => gptq(&fields).map(Some),
        "awq" => awq(&fields).map(Some),
        "compressed-tensors" => packed(&fields),
        other => {
            let allowed = "gptq, awq and compressed-tensors are read";
            Err(fields.bad("quant_method", other, allowed))
        }
    }
}

struct Fields<'a> {
    config: &'a Value,
    at: &'static str,
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &str, value: &str, allowed: &'static str) -> FormatError {
        FormatError::Invalid {
            field: format!("{}.{key}", self.at),
            value: clip(value),
            allowed,
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(key, &other.to_string(), "a string is needed")),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.bad(key, &other.to_string(), "true or false is needed")),
        }
    }

    /// The first of the keys that is there, with its value.
    fn either<'k>(&self, keys: [&'k str; 2]) -> (&'k str, Option<&Value>) {
        let found = keys
            .into_iter()
            .find_map(|key| self.get(key).map(|value| (key, Some(value))));
        found.unwrap_or((keys[0], None))
    }

    fn bits(&self) -> Result<u32, FormatError> {
        let (key, value) = self.either(["bits", "w_bit"]);
        self.four_or_eight(key, value)
    }

    fn four_or_eight(&self, key: &str, value: Option<&Value>) -> Result<u32, FormatError> {
        match value.and_then(Value::as_u64) {
            Some(4) => Ok(4),
            Some(8) => Ok(8),
            _ => {
                let found = value.map_or("missing".to_owned(), Value::to_string);
                Err(self.bad(key, &found, "4 and 8 are read"))
            }
        }
    }

    /// A group's columns; -1 or nothing: a whole row.
    fn group_len(&self) -> Result<Option<u64>, FormatError> {
        let (key, value) = self.either(["group_size", "q_group_size"]);
        let Some(value) = value else {
            return Ok(None);
        };
        match value.as_i64() {
            Some(-1) => Ok(None),
            Some(len @ 1..=1_048_576) => Ok(Some(len.unsigned_abs())),
            _ => {
                let allowed = "-1 or a number of columns is needed";
                Err(self.bad(key, &value.to_string(), allowed))
            }
        }
    }
}

fn gptq(fields: &Fields<'_>) -> Result<Scheme, FormatError> {
    let (key, _) = fields.either(["checkpoint_format", "format"]);
    let zeros_less_one = match fields.text(key)?.unwrap_or("gptq") {
        "gptq" => true,
        "gptq_v2" => false,
        other => return Err(fields.bad(key, other, "gptq and gptq_v2 are read")),
    };
    Ok(Scheme {
        kind: Kind::Gptq { zeros_less_one },
        bits: fields.bits()?,
        group_len: fields.group_len()?,
        symmetric: fields.flag("sym")?.unwrap_or(true),
    })
}

fn awq(fields: &Fields<'_>) -> Result<Scheme, FormatError> {
    let version = fields.text("version")?.unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(fields.bad("version", version, "gemm is read"));
    }
    let bits = fields.bits()?;
    if bits != 4 {
        return Err(fields.bad("bits", &bits.to_string(), "AWQ has 4"));
    }
    Ok(Scheme {
        kind: Kind::Awq,
        bits,
        group_len: fields.group_len()?,
        symmetric: false,
    })
}

/// compressed-tensors: groups of modules, packed in one way; what they leave out is plain.
fn packed(top: &Fields<'_>) -> Result<Option<Scheme>, FormatError> {
    let format = top.text("format")?.unwrap_or_default();
    if format != "pack-quantized" {
        return Err(top.bad("format", format, "pack-quantized is read"));
    }
    if let Some(scheme) = top.get("kv_cache_scheme") {
        return Err(top.bad("kv_cache_scheme", &scheme.to_string(), "null is needed"));
    }
    let Some(Value::Object(groups)) = top.get("config_groups") else {
        return Err(top.bad("config_groups", "missing", "an object is needed"));
    };
    let mut found: Option<Scheme> = None;
    for group in groups.values() {
        let scheme = packed_group(group)?;
        if found.as_ref().is_some_and(|other| *other != scheme) {
            let allowed = "groups of one scheme are read";
            return Err(top.bad("config_groups", "several schemes", allowed));
        }
        found = Some(scheme);
    }
    Ok(found)
}

fn packed_group(group: &Value) -> Result<Scheme, FormatError> {
    let of_group = Fields {
        config: group,
        at: "quantization_config.config_groups",
    };
    if let Some(inputs) = of_group.get("input_activations") {
        return Err(of_group.bad("input_activations", &inputs.to_string(), "null is needed"));
    }
    let weights = Fields {
        config: group.get("weights").unwrap_or(&Value::Null),
        at: "quantization_config.config_groups.weights",
    };
    let kind = weights.text("type")?.unwrap_or("int");
    if kind != "int" {
        return Err(weights.bad("type", kind, "int is read"));
    }
    let strategy = weights.text("strategy")?.unwrap_or("group");
    if !["group", "channel"].contains(&strategy) {
        return Err(weights.bad("strategy", strategy, "group and channel are read"));
    }
    Ok(Scheme {
        kind: Kind::Packed,
        bits: weights.four_or_eight("num_bits", weights.get("num_bits"))?,
        group_len: match strategy {
            "group" => weights.group_len()?,
            _ => None,
        },
        symmetric: weights.flag("symmetric")?.unwrap_or(true),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_configurations_are_read() {
        let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true,
            "sym": true, "checkpoint_format": "gptq"});
        let scheme = read(&gptq).unwrap().unwrap();
        assert_eq!(scheme.label(), "GPTQ 4-bit g128");
        assert_eq!(
            scheme.kind,
            Kind::Gptq {
                zeros_less_one: true
            }
        );
        let second =
            json!({"bits": 8, "group_size": -1, "sym": false, "checkpoint_format": "gptq_v2"});
        let scheme = read(&second).unwrap().unwrap();
        assert_eq!((scheme.group_len, scheme.symmetric), (None, false));
        assert_eq!(
            scheme.kind,
            Kind::Gptq {
                zeros_less_one: false
            }
        );
        let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM",
            "zero_point": true});
        assert_eq!(read(&awq).unwrap().unwrap().label(), "AWQ 4-bit g64");
        let weights = json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group",
            "group_size": 32, "actorder": null});
        let packed = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                "input_activations": null}}, "ignore": ["lm_head"]});
        assert_eq!(
            read(&packed).unwrap().unwrap().label(),
            "pack-quantized 4-bit g32"
        );
    }

    #[test]
    fn what_is_not_read_is_refused_by_name() {
        let weights = |weights: Value| {
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": weights}}})
        };
        let table = [
            (
                json!({"quant_method": "bitsandbytes"}),
                "quant_method: bitsandbytes",
            ),
            (json!({"bits": 3, "group_size": 128}), "bits: 3"),
            (json!({"group_size": 128}), "bits: missing"),
            (json!({"bits": 4, "group_size": 0}), "group_size: 0"),
            (json!({"bits": 4, "group_size": -2}), "group_size: -2"),
            (json!({"bits": 4, "sym": 1}), "sym: 1"),
            (
                json!({"bits": 4, "checkpoint_format": "marlin"}),
                "checkpoint_format: marlin",
            ),
            (json!({"quant_method": "awq", "bits": 8}), "bits: 8"),
            (
                json!({"quant_method": "awq", "bits": 4, "version": "gemv"}),
                "version: gemv",
            ),
            (
                json!({"quant_method": "compressed-tensors", "format": "float-quantized"}),
                "format: float-quantized",
            ),
            (
                json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
                "config_groups: missing",
            ),
            (
                weights(json!({"num_bits": 4, "type": "float"})),
                "type: float",
            ),
            (weights(json!({"num_bits": 2})), "num_bits: 2"),
            (
                weights(json!({"num_bits": 4, "strategy": "block"})),
                "strategy: block",
            ),
        ];
        for (config, wanted) in table {
            let error = read(&config).unwrap_err().to_string();
            assert!(error.contains(wanted), "{config}: {error}");
        }
    }
}
