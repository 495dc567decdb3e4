"""Writes the fixtures whose weights are quantised in groups: GPTQ and AWQ.

One job: real checkpoints by gptqmodel, which runs GPTQ and AWQ with calibration on the
text, each with the answers of the weights as its own code dequantises them.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear import BaseQuantLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from gptqmodel.quantization.config import FORMAT, METHOD
from safetensors.torch import load_file

import expected
import hub_folders
import tiny_tokenizers
from places import FIXTURES, base

GPTQ = {
    "gptq_g32_act": {"group_size": 32, "desc_act": True, "sym": True},
    "gptq_g128": {"group_size": 128, "desc_act": False, "sym": True},
    "gptq_row": {"group_size": -1, "desc_act": False, "sym": True, "act_group_aware": False},
    "gptq_row_act": {"group_size": -1, "desc_act": True, "sym": False},
    "gptq_g64_asym_v2": {"group_size": 64, "desc_act": False, "sym": False, "format": FORMAT.GPTQ_V2},
    "gptq_g32_asym_act": {"group_size": 32, "desc_act": True, "sym": False},
    "gptq_8bit_g64": {"bits": 8, "group_size": 64, "desc_act": False, "sym": True},
    "gptq_8bit_g32_act_v2": {"bits": 8, "group_size": 32, "desc_act": True, "sym": False, "format": FORMAT.GPTQ_V2},
}
AWQ = {f"awq_g{size}": {"group_size": size, "method": METHOD.AWQ, "format": FORMAT.GEMM} for size in (32, 64, 128)}
CALIBRATION_ROWS = 24


def calibration(tokenizer):
    """Returns rows of tokens that cover the text."""
    text = tiny_tokenizers.text()
    step = len(text) // CALIBRATION_ROWS
    rows = [tokenizer.encode(text[i * step : (i + 1) * step]) for i in range(CALIBRATION_ROWS)]
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


def quantise(source, target, tokenizer, settings):
    """Quantises a folder into another, and drops what says where that was."""
    config = QuantizeConfig(**{"bits": 4, "offload_to_disk": False, **settings})
    model = GPTQModel.load(str(source), config, device="cpu", dtype=torch.float16)
    model.quantize(calibration(tokenizer), batch_size=1)
    model.save(str(target))
    (target / "quant_log.csv").unlink(missing_ok=True)
    for path in (target / "config.json", target / "quantize_config.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        document.get("quantization_config", document).get("meta", {}).pop("offload_to_disk_path", None)
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def dequantised(folder):
    """Returns {module: float32 weight [outputs, inputs]} by the tool's own code, and all tensors.

    Scales are float16 as stored; the product is taken in float32.
    """
    scheme = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if scheme["quant_method"] == "awq":
        parts = [[tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")] for name in names]
        weights = [dequantize_gemm(*part[:2], part[2].float(), 4, scheme["group_size"]).T for part in parts]
        return dict(zip(names, weights)), tensors
    model = GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model
    modules = dict(model.named_modules())
    assert all(isinstance(modules[name], BaseQuantLinear) for name in names)
    for name in names:
        # It would multiply in bfloat16, and what it multiplies is to be exact.
        modules[name].to(torch.float32).scales = tensors[f"{name}.scales"].float()
    return {name: modules[name].dequantize_weight().T for name in names}, tensors


def as_floats(folder, model):
    """Returns the model with the folder's dequantised weights in place of its own."""
    weights, tensors = dequantised(folder)
    state = {}
    for name in model.state_dict():
        stem = name.removesuffix(".weight")
        values = weights[stem] if stem in weights else tensors.get(name)
        if values is None and name == "lm_head.weight":
            values = tensors["model.embed_tokens.weight"]
        state[name] = values.float().contiguous()
    model.load_state_dict(state)
    return model.float()


def make(name):
    """Writes one folder and its answers."""
    model, tokenizer, _ = base("grouped")
    target = FIXTURES / name
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as source:
        hub_folders.save(Path(source), model, tokenizer, torch.float16)
        quantise(source, target, tokenizer, GPTQ.get(name) or AWQ[name])
    answer(name)


def answer(name):
    """Writes the answers of a folder that is there."""
    model, tokenizer, _ = base("grouped")
    target = FIXTURES / name
    answers = expected.answers(as_floats(target, model), tokenizer, tiny_tokenizers.text())
    expected.save(FIXTURES / f"{name}.json", model=name, dequantised_by="gptqmodel", **answers)
    sys.stdout.write(f"MADE {name}: mean nll {answers['mean_nll']:.4f}\n")


def main(names):
    """Makes the named fixtures, or all; after the word `answers`, their answers alone."""
    work = answer if names[:1] == ["answers"] else make
    for name in names[work is answer :] or [*GPTQ, *AWQ]:
        work(name)


if __name__ == "__main__":
    main(sys.argv[1:])
