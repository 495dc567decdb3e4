//! The tensors of a model in Hugging Face's layout, said in GGUF's words: names, sizes with columns
//! first, and matrices that are stored in several parts as one. Reads no numbers.

use std::collections::HashMap;

use safetensors::tensor::Dtype;

use super::scheme::{Kind, Scheme};
use crate::format::cursor::clip;
use crate::format::grouped::{Grouped, Layout};
use crate::format::safetensors::RawTensor;
use crate::format::tensor::Place;
use crate::format::{FormatError, RowOrder, Stored, TensorInfo, TensorType};

/// Modules of a layer, and GGUF's names for them.
const LAYER_MODULES: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
/// Tensors that hold what the configuration says as well.
const DERIVED: [&str; 2] = [".rotary_emb.inv_freq", ".rotary_emb.cos_cached"];
const FLOATS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];
const WORDS: [Dtype; 2] = [Dtype::I32, Dtype::U32];

/// What names and sizes do not say.
pub(in crate::format) struct Facts<'a> {
    /// Values of a head.
    pub(in crate::format) head_dim: u64,
    /// The output matrix is the token embedding, whatever the files hold.
    pub(in crate::format) tied_output: bool,
    /// How weights are quantised.
    pub(in crate::format) scheme: Option<&'a Scheme>,
}

/// What the tensors are.
#[derive(Default)]
pub(in crate::format) struct Translated {
    /// In GGUF's words.
    pub(in crate::format) tensors: Vec<TensorInfo>,
    /// Biases of modules that have none here: they must hold zeros alone.
    pub(in crate::format) must_be_zero: Vec<TensorInfo>,
}

/// Translates all tensors of a model.
///
/// # Errors
/// One is of a kind or shape that is not read, or parts of a matrix are missing or disagree.
pub(in crate::format) fn translate(
    raw: Vec<RawTensor>,
    facts: &Facts<'_>,
) -> Result<Translated, FormatError> {
    let mut modules: Vec<(String, Module)> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for tensor in raw {
        if DERIVED.iter().any(|end| tensor.name.ends_with(end)) {
            continue;
        }
        let (module, part) = tensor.name.rsplit_once('.').unwrap_or((&tensor.name, ""));
        let (module, part) = (module.to_owned(), part.to_owned());
        let at = *index.entry(module).or_insert_with_key(|module| {
            modules.push((module.clone(), Module::default()));
            modules.len() - 1
        });
        let name = clip(&tensor.name);
        if modules[at].1.parts.insert(part, tensor).is_some() {
            let what = "tensor";
            return Err(FormatError::Duplicate { what, name });
        }
    }
    let mut translated = Translated::default();
    for (name, module) in modules {
        if name != "lm_head" || !facts.tied_output {
            // Whatever has no name in GGUF keeps its own, by which it is refused with the model.
            let gguf = gguf_name(&name).unwrap_or_else(|| name.clone());
            module.translate(&name, &gguf, facts, &mut translated)?;
        }
    }
    Ok(translated)
}

/// GGUF's name of a module, without `.weight`.
fn gguf_name(module: &str) -> Option<String> {
    let inner = module.strip_prefix("model.").unwrap_or(module);
    match inner {
        "embed_tokens" => return Some("token_embd".to_owned()),
        "norm" => return Some("output_norm".to_owned()),
        "lm_head" => return Some("output".to_owned()),
        _ => {}
    }
    let (number, rest) = inner.strip_prefix("layers.")?.split_once('.')?;
    let number: u32 = number.parse().ok()?;
    let (_, name) = LAYER_MODULES.iter().find(|(module, _)| *module == rest)?;
    Some(format!("blk.{number}.{name}"))
}

fn ends_with_any(name: &str, ends: &[&str]) -> bool {
    ends.iter().any(|end| name.ends_with(end))
}

/// The tensors of a module, by the last part of their names.
#[derive(Default)]
struct Module {
    parts: HashMap<String, RawTensor>,
}

impl Module {
    fn translate(
        mut self,
        name: &str,
        gguf: &str,
        facts: &Facts<'_>,
        into: &mut Translated,
    ) -> Result<(), FormatError> {
        let row_order = if ends_with_any(gguf, &[".attn_q", ".attn_k"]) {
            RowOrder::PairHalves(facts.head_dim)
        } else {
            RowOrder::AsStored
        };
        let weight = format!("{gguf}.weight");
        if let Some(raw) = self.parts.remove("weight") {
            into.tensors.push(plain(raw, weight, row_order)?);
        } else if let Some(grouped) = self.grouped(name, facts.scheme)? {
            into.tensors.push(whole(grouped, weight, row_order));
        }
        if let Some(raw) = self.parts.remove("bias") {
            let biased = [".attn_q", ".attn_k", ".attn_v", ".attn_output"];
            if ends_with_any(gguf, &biased) {
                into.tensors
                    .push(plain(raw, format!("{gguf}.bias"), row_order)?);
            } else {
                let name = raw.name.clone();
                into.must_be_zero
                    .push(plain(raw, name, RowOrder::AsStored)?);
            }
        }
        match self.parts.into_values().next() {
            None => Ok(()),
            Some(other) => Err(FormatError::Invalid {
                field: format!("tensor {:?}", clip(&other.name)),
                value: "not part of a Llama model".to_owned(),
                allowed: "weights, or the parts of a quantisation that is read, are needed",
            }),
        }
    }

    /// The matrix that the parts of a quantisation make, if there are such.
    fn grouped(
        &mut self,
        name: &str,
        scheme: Option<&Scheme>,
    ) -> Result<Option<Grouped>, FormatError> {
        let quants = ["qweight", "weight_packed"];
        let Some(first) = quants
            .into_iter()
            .find(|part| self.parts.contains_key(*part))
        else {
            return Ok(None);
        };
        let Some(scheme) = scheme else {
            return Err(FormatError::Invalid {
                field: format!("tensor {:?}", clip(&format!("{name}.{first}"))),
                value: "quantised".to_owned(),
                allowed: "a quantization_config in config.json must say how",
            });
        };
        let mut parts = Parts {
            module: self,
            name,
            scheme,
        };
        match scheme.kind {
            Kind::Gptq { zeros_less_one } => parts.gptq(zeros_less_one),
            Kind::Awq => parts.awq(),
            Kind::Packed => parts.packed(),
        }
        .map(Some)
    }
}

/// The parts of one quantised matrix.
struct Parts<'a> {
    module: &'a mut Module,
    name: &'a str,
    scheme: &'a Scheme,
}

impl Parts<'_> {
    fn bad(&self, part: &str, value: String, allowed: &'static str) -> FormatError {
        FormatError::Invalid {
            field: format!("tensor {:?}", clip(&format!("{}.{part}", self.name))),
            value,
            allowed,
        }
    }

    /// A part of two dimensions and of one of these types.
    fn table(&mut self, part: &str, types: &[Dtype]) -> Result<(RawTensor, u64, u64), FormatError> {
        let Some(tensor) = self.module.parts.remove(part) else {
            let allowed = "all parts of a quantised matrix are needed";
            return Err(self.bad(part, "missing".to_owned(), allowed));
        };
        match tensor.shape[..] {
            [a, b] if types.contains(&tensor.dtype) && a > 0 && b > 0 => Ok((tensor, a, b)),
            _ => {
                let found = format!("{:?} {:?}", tensor.dtype, tensor.shape);
                let allowed = "a table of another type is needed";
                Err(self.bad(part, found, allowed))
            }
        }
    }

    /// The same, of the shape that the other parts ask for.
    fn sized(
        &mut self,
        part: &str,
        types: &[Dtype],
        wanted: [u64; 2],
    ) -> Result<RawTensor, FormatError> {
        let (tensor, a, b) = self.table(part, types)?;
        if [a, b] == wanted {
            return Ok(tensor);
        }
        let found = format!("{:?}, where {wanted:?} fits the other parts", [a, b]);
        Err(self.bad(part, found, "the parts of a matrix must agree"))
    }

    fn per_word(&self) -> u64 {
        u64::from(32 / self.scheme.bits)
    }

    fn whole_words(&self, part: &str, n: u64) -> Result<(), FormatError> {
        if n.is_multiple_of(self.per_word()) {
            return Ok(());
        }
        let allowed = "a multiple of the numbers in a word is needed";
        Err(self.bad(part, format!("{n} rows"), allowed))
    }

    /// Columns of a group, and how many groups, for rows of so many columns.
    fn groups(&self, part: &str, columns: u64) -> Result<(u64, u64), FormatError> {
        let len = self.scheme.group_len.unwrap_or(columns).min(columns).max(1);
        if len < columns && !len.is_multiple_of(32) {
            let allowed = "groups of a multiple of 32 columns are read";
            return Err(self.bad(part, format!("groups of {len} columns"), allowed));
        }
        Ok((len, columns.div_ceil(len)))
    }

    fn group_index(&mut self, part: &str, columns: u64) -> Result<Option<Place>, FormatError> {
        let Some(tensor) = self.module.parts.remove(part) else {
            return Ok(None);
        };
        if tensor.shape == [columns] && WORDS.contains(&tensor.dtype) {
            return Ok(Some(tensor.place));
        }
        let found = format!("{:?} {:?}", tensor.dtype, tensor.shape);
        Err(self.bad(part, found, "a whole number for each column is needed"))
    }

    fn gptq(&mut self, zeros_less_one: bool) -> Result<Grouped, FormatError> {
        let word = self.per_word();
        let (quants, lines, rows) = self.table("qweight", &WORDS)?;
        let columns = lines.saturating_mul(word);
        self.whole_words("qweight", rows)?;
        let (group_len, groups) = self.groups("scales", columns)?;
        let scales = self.sized("scales", &FLOATS, [groups, rows])?;
        let zeros = self.sized("qzeros", &WORDS, [groups, rows / word])?;
        Ok(Grouped {
            layout: Layout::Gptq { zeros_less_one },
            bits: self.scheme.bits,
            rows,
            columns,
            group_len,
            symmetric: self.scheme.symmetric,
            quants: quants.place,
            scale_type: float_type(scales.dtype),
            scales: scales.place,
            zeros: Some(zeros.place),
            group_index: self.group_index("g_idx", columns)?,
        })
    }

    fn awq(&mut self) -> Result<Grouped, FormatError> {
        let (quants, columns, words) = self.table("qweight", &WORDS)?;
        let rows = words.saturating_mul(self.per_word());
        let (group_len, groups) = self.groups("scales", columns)?;
        let scales = self.sized("scales", &FLOATS, [groups, rows])?;
        let zeros = self.sized("qzeros", &WORDS, [groups, words])?;
        Ok(Grouped {
            layout: Layout::Awq,
            bits: self.scheme.bits,
            rows,
            columns,
            group_len,
            symmetric: false,
            quants: quants.place,
            scale_type: float_type(scales.dtype),
            scales: scales.place,
            zeros: Some(zeros.place),
            group_index: None,
        })
    }

    fn packed(&mut self) -> Result<Grouped, FormatError> {
        let word = self.per_word();
        let (quants, rows, words) = self.table("weight_packed", &WORDS)?;
        let columns = words.saturating_mul(word);
        // The shape before packing: the model's own sizes say it too.
        self.module.parts.remove("weight_shape");
        let (group_len, groups) = self.groups("weight_scale", columns)?;
        let scales = self.sized("weight_scale", &FLOATS, [rows, groups])?;
        let zeros = if self.scheme.symmetric {
            None
        } else {
            self.whole_words("weight_packed", rows)?;
            Some(self.sized("weight_zero_point", &WORDS, [rows / word, groups])?)
        };
        Ok(Grouped {
            layout: Layout::Packed,
            bits: self.scheme.bits,
            rows,
            columns,
            group_len,
            symmetric: self.scheme.symmetric,
            quants: quants.place,
            scale_type: float_type(scales.dtype),
            scales: scales.place,
            zeros: zeros.map(|zeros| zeros.place),
            group_index: self.group_index("weight_g_idx", columns)?,
        })
    }
}

/// The type of scales, which were checked to be floats.
fn float_type(dtype: Dtype) -> TensorType {
    match dtype {
        Dtype::F16 => TensorType::F16,
        Dtype::BF16 => TensorType::Bf16,
        _ => TensorType::F32,
    }
}

/// A quantised matrix as one tensor.
fn whole(grouped: Grouped, name: String, row_order: RowOrder) -> TensorInfo {
    let parts = [Some(grouped.quants), Some(grouped.scales), grouped.zeros];
    TensorInfo {
        name,
        dims: vec![grouped.columns, grouped.rows],
        tensor_type: match grouped.bits {
            4 => TensorType::Grouped4,
            _ => TensorType::Grouped8,
        },
        bytes: parts.iter().flatten().map(|place| place.bytes).sum(),
        stored: Stored::Grouped(Box::new(grouped)),
        row_order,
    }
}

/// A tensor that is stored as rows of floats.
fn plain(raw: RawTensor, name: String, row_order: RowOrder) -> Result<TensorInfo, FormatError> {
    let invalid = |value: String, allowed| FormatError::Invalid {
        field: format!("tensor {:?}", clip(&raw.name)),
        value,
        allowed,
    };
    if !FLOATS.contains(&raw.dtype) {
        let found = format!("{:?}", raw.dtype);
        return Err(invalid(found, "F32, F16 or BF16 is needed"));
    }
    if raw.shape.is_empty() || raw.shape.len() > 2 || raw.shape.contains(&0) {
        let found = format!("{:?}", raw.shape);
        return Err(invalid(found, "one or two dimensions above 0 are needed"));
    }
    Ok(TensorInfo {
        name,
        dims: raw.shape.iter().rev().copied().collect(),
        tensor_type: float_type(raw.dtype),
        bytes: raw.place.bytes,
        stored: Stored::Rows(raw.place),
        row_order,
    })
}
