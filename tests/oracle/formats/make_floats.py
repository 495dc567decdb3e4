"""Writes the fixtures whose weights are floats: folders and GGUF files, and one of each shape.

One job: every architecture and every way to store F32, F16 and BF16 that is read, each
with the answers of the weights as stored.
"""

import sys

import torch
from gguf import GGMLQuantizationType as Kind

import expected
import gguf_files
import hub_folders
import tiny_tokenizers
from places import FIXTURES, base, fresh

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Name: base, type, and how the folder is written.
FOLDERS = {
    "hub_f32": ("plain", "f32", {"template": "string"}),
    "hub_f16": ("plain", "f16", {"template": "list", "old_config": True}),
    "hub_bf16_sharded": ("plain", "bf16", {"shard_bytes": "64KB"}),
    "hub_llama2": ("llama2", "f16", {"template": "string", "old_config": True}),
    "hub_llama3": ("llama3", "bf16", {"template": "string", "old_config": True}),
    "hub_linear": ("linear", "f16", {"old_config": True}),
    "hub_bias": ("bias", "f16", {}),
    "hub_qwen2": ("qwen2", "bf16", {}),
    "hub_mistral_window": ("mistral", "bf16", {}),
    "hub_mistral_03": ("mistral_03", "bf16", {"old_config": True}),
    "hub_heads_80": ("heads_80", "f16", {}),
    "hub_heads_96": ("heads_96", "f16", {}),
    "hub_heads_128": ("heads_128", "f16", {}),
}
# Name: base, kind, the name of the vocabulary's splitting, and tensors of a part (0: one file).
FILES = {
    "gguf_f32": ("plain", Kind.F32, "smollm", 0),
    "gguf_f16_split": ("plain", Kind.F16, "smollm", 8),
    "gguf_bf16": ("plain", Kind.BF16, "smollm", 0),
    "gguf_llama2": ("llama2", Kind.F16, None, 0),
    "gguf_llama3": ("llama3", Kind.F16, "llama-bpe", 0),
    "gguf_heads_96": ("heads_96", Kind.F16, "smollm", 0),
}


def make_folder(name):
    """Writes one folder and its answers."""
    base_name, dtype, how = FOLDERS[name]
    model, tokenizer, _ = base(base_name)
    folder = fresh(name)
    hub_folders.save(folder, model, tokenizer, TYPES[dtype], **how)
    answers = expected.answers(hub_folders.load(folder), tokenizer, tiny_tokenizers.text())
    expected.save(FIXTURES / f"{name}.json", model=name, dequantised_by="transformers", **answers)


def make_file(name):
    """Writes one GGUF file, or the parts of one, and its answers."""
    base_name, kind, pre, parts = FILES[name]
    model, tokenizer, scores = base(base_name)
    for old in FIXTURES.glob(f"{name}*.gguf"):
        old.unlink()
    gguf_files.write(FIXTURES / f"{name}.gguf", model, tokenizer, scores, kind, pre, parts)
    paths = sorted(FIXTURES.glob(f"{name}*.gguf"))
    answers = expected.answers(gguf_files.load_into(model, paths), tokenizer, tiny_tokenizers.text())
    kinds = gguf_files.kinds(paths)
    expected.save(
        FIXTURES / f"{name}.json", model=paths[0].name, dequantised_by="gguf", kinds=kinds, **answers
    )


def main(names):
    """Makes the named fixtures, or all."""
    torch.set_num_threads(1)
    for name in names or [*FOLDERS, *FILES]:
        (make_folder if name in FOLDERS else make_file)(name)
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
