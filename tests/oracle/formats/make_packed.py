"""Writes the fixtures that compressed-tensors packs: what llm-compressor writes.

One job: real pack-quantized checkpoints, each with the answers of the weights as
compressed-tensors decompresses them.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import expected
import hub_folders
import tiny_tokenizers
from places import FIXTURES, base

# Name: how rounding is done, and the weights' scheme.
PACKED = {
    "packed_g128": (QuantizationModifier, {"strategy": "group", "group_size": 128, "symmetric": True}),
    "packed_g32_asym": (QuantizationModifier, {"strategy": "group", "group_size": 32, "symmetric": False}),
    "packed_row": (QuantizationModifier, {"strategy": "channel", "symmetric": True}),
    "packed_g64_act": (
        GPTQModifier,
        {"strategy": "group", "group_size": 64, "symmetric": True, "actorder": "weight"},
    ),
    "packed_8bit_g64": (QuantizationModifier, {"num_bits": 8, "strategy": "group", "group_size": 64, "symmetric": True}),
}
CALIBRATION_ROWS = 24


def calibration(tokenizer):
    """Returns rows of tokens that cover the text."""
    text = tiny_tokenizers.text()
    step = len(text) // CALIBRATION_ROWS
    rows = [tokenizer.encode(text[i * step : (i + 1) * step]) for i in range(CALIBRATION_ROWS)]
    return Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])


def quantise(source, target, tokenizer, modifier, weights):
    """Quantises a folder into another."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**{"num_bits": 4, **weights}))
    recipe = modifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    data = {} if modifier is QuantizationModifier else {"dataset": calibration(tokenizer)}
    oneshot(model=model, recipe=recipe, num_calibration_samples=CALIBRATION_ROWS, **data)
    model.save_pretrained(target, save_compressed=True)
    (target / "recipe.yaml").unlink(missing_ok=True)
    tokenizer.save_pretrained(target)
    hub_folders.place_template(target, tokenizer, "jinja")


def as_floats(folder, model):
    """Returns the model with the weights that compressed-tensors decompresses, in float32.

    Scales go in as float32: it multiplies in their type, and transformers would round each
    weight to bfloat16.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    state = {}
    for name in model.state_dict():
        stem = name.removesuffix("weight")
        if stem + "weight_packed" in tensors:
            parts = {key.removeprefix(stem): tensors[key] for key in tensors if key.startswith(stem)}
            parts["weight_scale"] = parts["weight_scale"].float()
            state[name] = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        else:
            tied = name == "lm_head.weight" and name not in tensors
            state[name] = tensors["model.embed_tokens.weight" if tied else name].float()
    model.load_state_dict(state)
    return model.float()


def make(name):
    """Writes one folder and its answers."""
    model, tokenizer, _ = base("grouped")
    target = FIXTURES / name
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as source:
        hub_folders.save(Path(source), model, tokenizer, torch.float32)
        quantise(source, target, tokenizer, *PACKED[name])
    kind = json.loads((target / "config.json").read_text(encoding="utf-8"))["quantization_config"]["format"]
    assert kind == "pack-quantized", kind
    answers = expected.answers(as_floats(target, model), tokenizer, tiny_tokenizers.text())
    expected.save(FIXTURES / f"{name}.json", model=name, dequantised_by="compressed-tensors", **answers)
    sys.stdout.write(f"MADE {name}: mean nll {answers['mean_nll']:.4f}\n")


def main(names):
    """Makes the named fixtures, or all."""
    for name in names or PACKED:
        make(name)


if __name__ == "__main__":
    main(sys.argv[1:])
