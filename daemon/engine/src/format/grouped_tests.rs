//! Matrices in groups, packed here as the layouts are published, and read back: whole, by parts, in
//! another order of rows and columns.

use std::fs::File;
use std::io::Write as _;

use half::f16;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use super::{Checkpoint, FormatError, Stored, TensorInfo};

const ROWS: usize = 64;
const COLUMNS: usize = 96;
const HEAD: usize = 16;
const GROUP: usize = 32;

/// A matrix in numbers: n `[row, column]`, scale and zero `[row, group]`, each column's group.
struct Numbers {
    bits: usize,
    n: Vec<u32>,
    scales: Vec<f16>,
    zeros: Vec<u32>,
    groups_of: Vec<usize>,
}

impl Numbers {
    fn new(bits: usize, shuffled: bool) -> Self {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) % below
        };
        let most = 1 << bits;
        let groups = COLUMNS / GROUP;
        let mut groups_of: Vec<usize> = (0..COLUMNS).map(|c| c / GROUP).collect();
        if shuffled {
            for i in (1..COLUMNS).rev() {
                groups_of.swap(i, usize::try_from(next(i as u64 + 1)).unwrap());
            }
        }
        let number = |n: u64| u32::try_from(n).unwrap();
        Self {
            bits,
            n: (0..ROWS * COLUMNS).map(|_| number(next(most))).collect(),
            scales: (0..ROWS * groups)
                .map(|_| f16::from_f32(0.001 * (1 + next(100)) as f32))
                .collect(),
            // The first version stores them less 1, and none below 0.
            zeros: (0..ROWS * groups)
                .map(|_| number(1 + next(most - 1)))
                .collect(),
            groups_of,
        }
    }

    fn n(&self, row: usize, column: usize) -> u32 {
        self.n[row * COLUMNS + column]
    }

    fn zero(&self, row: usize, group: usize) -> u32 {
        self.zeros[row * (COLUMNS / GROUP) + group]
    }

    fn value(&self, row: usize, column: usize) -> f32 {
        let group = self.groups_of[column];
        let scale = self.scales[row * (COLUMNS / GROUP) + group].to_f32();
        scale * (self.n(row, column) as f32 - self.zero(row, group) as f32)
    }

    /// Words of numbers that are `of` their place in the word's list.
    fn words(&self, count: usize, of: impl Fn(usize, usize) -> u32) -> Vec<u8> {
        (0..count)
            .flat_map(|word| {
                let packed = (0..32 / self.bits).fold(0, |w, k| w | of(word, k) << (self.bits * k));
                packed.to_le_bytes()
            })
            .collect()
    }

    /// Scales, by group or by row first.
    fn scale_bytes(&self, by_row: bool) -> Vec<u8> {
        let groups = COLUMNS / GROUP;
        let at = |i: usize| {
            if by_row {
                i
            } else {
                i % ROWS * groups + i / ROWS
            }
        };
        (0..ROWS * groups)
            .flat_map(|i| self.scales[at(i)].to_le_bytes())
            .collect()
    }
}

type Part = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn gptq(m: &Numbers, less_one: u32) -> Vec<Part> {
    let per = 32 / m.bits;
    let groups = COLUMNS / GROUP;
    let quants = m.words(COLUMNS / per * ROWS, |word, k| {
        m.n(word % ROWS, word / ROWS * per + k)
    });
    let line = ROWS / per;
    let zeros = m.words(groups * line, |word, k| {
        m.zero(word % line * per + k, word / line) - less_one
    });
    let index = m
        .groups_of
        .iter()
        .flat_map(|g| i32::try_from(*g).unwrap().to_le_bytes());
    vec![
        ("qweight", Dtype::I32, vec![COLUMNS / per, ROWS], quants),
        ("qzeros", Dtype::I32, vec![groups, line], zeros),
        (
            "scales",
            Dtype::F16,
            vec![groups, ROWS],
            m.scale_bytes(false),
        ),
        ("g_idx", Dtype::I32, vec![COLUMNS], index.collect()),
    ]
}

fn awq(m: &Numbers) -> Vec<Part> {
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    let groups = COLUMNS / GROUP;
    let line = ROWS / 8;
    let quants = m.words(COLUMNS * line, |word, k| {
        m.n(word % line * 8 + order[k], word / line)
    });
    let zeros = m.words(groups * line, |word, k| {
        m.zero(word % line * 8 + order[k], word / line)
    });
    vec![
        ("qweight", Dtype::I32, vec![COLUMNS, line], quants),
        ("qzeros", Dtype::I32, vec![groups, line], zeros),
        (
            "scales",
            Dtype::F16,
            vec![groups, ROWS],
            m.scale_bytes(false),
        ),
    ]
}

fn packed(m: &Numbers) -> Vec<Part> {
    let per = 32 / m.bits;
    let groups = COLUMNS / GROUP;
    let line = COLUMNS / per;
    let quants = m.words(ROWS * line, |word, k| {
        m.n(word / line, word % line * per + k)
    });
    let zeros = m.words(ROWS / per * groups, |word, k| {
        m.zero(word / groups * per + k, word % groups)
    });
    let shape = [ROWS, COLUMNS]
        .map(|n| i64::try_from(n).unwrap().to_le_bytes())
        .concat();
    vec![
        ("weight_packed", Dtype::I32, vec![ROWS, line], quants),
        (
            "weight_zero_point",
            Dtype::I32,
            vec![ROWS / per, groups],
            zeros,
        ),
        (
            "weight_scale",
            Dtype::F16,
            vec![ROWS, groups],
            m.scale_bytes(true),
        ),
        ("weight_shape", Dtype::I64, vec![2], shape),
    ]
}

/// A checkpoint whose layer has nothing but that matrix as its q and its v.
fn checkpoint(parts: &[Part], scheme: &Value) -> Result<Checkpoint, FormatError> {
    let mut tensors = Vec::new();
    for module in ["q_proj", "v_proj"] {
        for (part, dtype, shape, bytes) in parts {
            let name = format!("model.layers.0.self_attn.{module}.{part}");
            let view = TensorView::new(*dtype, shape.clone(), bytes).unwrap();
            tensors.push((name, view));
        }
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": COLUMNS,
        "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": ROWS / HEAD,
        "head_dim": HEAD, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "vocab_size": 64,
        "hidden_act": "silu", "quantization_config": scheme,
    });
    let file = |bytes: &[u8]| -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    Checkpoint::from_files(vec![
        (
            "config.json".to_owned(),
            file(config.to_string().as_bytes()),
        ),
        (
            "model.safetensors".to_owned(),
            file(&serialize(tensors, None).unwrap()),
        ),
    ])
}

fn read(checkpoint: &Checkpoint, tensor: &TensorInfo, first: u64, count: u64) -> Vec<Vec<f32>> {
    let Stored::Grouped(grouped) = &tensor.stored else {
        panic!("in groups");
    };
    let groups_of = grouped.column_groups(checkpoint, &tensor.name).unwrap();
    let rows = grouped
        .read(checkpoint, tensor, (first, count), None)
        .unwrap();
    // In another order of columns the same numbers are found there.
    let back: Vec<u32> = (0..u32::try_from(COLUMNS).unwrap()).rev().collect();
    let turned = grouped
        .read(checkpoint, tensor, (first, count), Some(&back))
        .unwrap();
    (0..rows.quants.len() / COLUMNS)
        .map(|row| {
            let (n, scales, zeros) = rows.row(row);
            assert!(n.iter().rev().eq(turned.row(row).0));
            (0..COLUMNS)
                .map(|column| {
                    let group = groups_of
                        .as_ref()
                        .map_or(column / GROUP, |g| g[column] as usize);
                    scales[group] * (f32::from(n[column]) - f32::from(zeros[group]))
                })
                .collect()
        })
        .collect()
}

fn check(m: &Numbers, parts: &[Part], scheme: &Value) {
    let checkpoint = checkpoint(parts, scheme).unwrap();
    for (name, is_turned) in [
        ("blk.0.attn_v.weight", false),
        ("blk.0.attn_q.weight", true),
    ] {
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!(tensor.dims, [COLUMNS as u64, ROWS as u64]);
        for (first, count) in [(0, 64), (0, 1), (3, 5), (13, 40), (63, 1)] {
            let found = read(&checkpoint, tensor, first, count);
            for (row, found) in (usize::try_from(first).unwrap()..).zip(&found) {
                // Rows that turn together, half a head apart, become neighbours.
                let within = row % HEAD;
                let stored = match is_turned {
                    true => row - within + within / 2 + within % 2 * (HEAD / 2),
                    false => row,
                };
                let wanted: Vec<f32> = (0..COLUMNS).map(|c| m.value(stored, c)).collect();
                assert_eq!(found, &wanted, "{scheme}: row {row} of {name} from {first}");
            }
        }
    }
}

#[test]
fn gptq_is_read_back() {
    for (bits, shuffled) in [(4, false), (4, true), (8, false), (8, true)] {
        let m = Numbers::new(bits, shuffled);
        for (less_one, format) in [(1, "gptq"), (0, "gptq_v2")] {
            let scheme = json!({"quant_method": "gptq", "bits": bits, "group_size": GROUP,
                "sym": false, "desc_act": shuffled, "checkpoint_format": format});
            check(&m, &gptq(&m, less_one), &scheme);
        }
    }
}

#[test]
fn awq_is_read_back() {
    let m = Numbers::new(4, false);
    let scheme = json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"});
    check(&m, &awq(&m), &scheme);
}

#[test]
fn packed_quantisation_is_read_back() {
    for bits in [4, 8] {
        let mut m = Numbers::new(bits, false);
        let scheme = |symmetric: bool| {
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null,
                    "weights": {"num_bits": bits, "type": "int", "symmetric": symmetric,
                        "strategy": "group", "group_size": GROUP}}}})
        };
        check(&m, &packed(&m), &scheme(false));
        m.zeros.fill(1 << (bits - 1));
        let mut parts = packed(&m);
        parts.remove(1);
        check(&m, &parts, &scheme(true));
    }
}

#[test]
fn parts_that_do_not_fit_are_refused_by_name() {
    let m = Numbers::new(4, false);
    let scheme = json!({"bits": 4, "group_size": GROUP, "sym": false, "quant_method": "gptq"});
    let refused = |parts: &[Part], scheme: &Value, wanted: &str| {
        let error = checkpoint(parts, scheme).unwrap_err();
        let text = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(text.contains(wanted), "{text} has no {wanted}");
    };
    let changed = |part: usize, change: &dyn Fn(&mut Part)| {
        let mut parts = gptq(&m, 1);
        change(&mut parts[part]);
        parts
    };
    let parts = gptq(&m, 1);
    refused(
        &parts,
        &Value::Null,
        "quantization_config in config.json must say how",
    );
    refused(&parts[1..], &scheme, "not part of a Llama model");
    refused(&parts[..1], &scheme, "q_proj.scales\": missing");
    let cut = changed(2, &|p| {
        p.2 = vec![2, ROWS];
        p.3.truncate(4 * ROWS);
    });
    refused(&cut, &scheme, "q_proj.scales\": [2, 64], where [3, 64]");
    let floats = changed(0, &|p| p.1 = Dtype::F32);
    refused(&floats, &scheme, "q_proj.qweight\": F32");
    let flat = changed(1, &|p| p.2 = vec![3 * ROWS / 8]);
    refused(&flat, &scheme, "q_proj.qzeros\": I32 [24]");
    let short = changed(3, &|p| {
        p.2 = vec![COLUMNS - 1];
        p.3.truncate(4 * (COLUMNS - 1));
    });
    refused(&short, &scheme, "q_proj.g_idx\": I32 [95]");
    let sixteen = json!({"bits": 4, "group_size": 16, "quant_method": "gptq"});
    refused(&parts, &sixteen, "groups of 16 columns");

    // What only the numbers tell is refused when they are read.
    let far = changed(3, &|p| p.3[..4].copy_from_slice(&3_i32.to_le_bytes()));
    let checkpoint = checkpoint(&far, &scheme).unwrap();
    let tensor = checkpoint.tensor("blk.0.attn_q.weight").unwrap();
    let Stored::Grouped(grouped) = &tensor.stored else {
        panic!("in groups");
    };
    let error = grouped
        .column_groups(&checkpoint, &tensor.name)
        .unwrap_err();
    assert!(error.to_string().contains("g_idx"), "{error}");
}
