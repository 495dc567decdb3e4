"""Writes the default model itself in other formats, and says what each must answer.

One job: `full_models.py FOLDER [NAME...]` makes FOLDER/NAME and FOLDER/NAME.json from
the default model's dequantised weights: perplexity of ../perplexity.txt in one float32
pass, and 24 greedy tokens of two prompts. They are too large to keep; long tests make them.
"""

import gc
import math
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import expected
import gguf_files
import hub_folders
import llama_quantize
from gguf import GGMLQuantizationType as Kind

sys.path.insert(0, str(Path(__file__).parents[1]))
import texts  # noqa: E402
import tokenizer_reference  # noqa: E402
from llama_reference import LlamaReference, model_path  # noqa: E402

GREEDY_TOKENS = 24
PROMPTS = 2
FOLDERS = {"hub_f32": (torch.float32, "1GB"), "hub_f16": (torch.float16, None), "hub_bf16_sharded": (torch.bfloat16, "100MB")}
PLAIN = {f"gguf_{name.lower()}": getattr(Kind, name) for name in ["Q4_0", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"]}
MIXES = {f"gguf_{name.lower()}": name for name in ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL"]}
GROUPED = {
    "gptq_g64_act": ("groups", {"group_size": 64, "desc_act": True, "sym": True}),
    "gptq_g32_asym": ("groups", {"group_size": 32, "desc_act": False, "sym": False}),
    "awq_g64": ("groups", {"group_size": 64, "method": "awq", "format": "gemm"}),
    "packed_g64": ("packed", {"strategy": "group", "group_size": 64, "symmetric": True}),
    "packed_g32_asym": ("packed", {"strategy": "group", "group_size": 32, "symmetric": False}),
}


def source():
    """Returns the default model with float32 weights, its tokenizer, and the reference tokenizer of its file."""
    path = model_path()
    how = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **how).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **how)
    reference = tokenizer_reference.build(LlamaReference(path).fields, parse_special=True)
    tokenizer.backend_tokenizer.pre_tokenizer = reference.pre_tokenizer
    return model, tokenizer, reference


@torch.no_grad()
def answers(model, reference):
    """Returns perplexity and greedy tokens in float32."""
    model = model.float().eval()
    text = Path(__file__).parents[1].joinpath("perplexity.txt").read_text(encoding="utf-8")
    ids = tokenizer_reference.encode(reference, text)
    hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    sums = 0.0
    for start in range(0, len(ids) - 1, 256):
        stop = min(start + 256, len(ids) - 1)
        rows = torch.log_softmax(model.lm_head(hidden[start:stop]).double(), -1)
        sums -= float(rows[torch.arange(stop - start), torch.tensor(ids[start + 1 : stop + 1])].sum())
    greedy = []
    for name, messages in list(texts.PROMPTS.items())[:PROMPTS]:
        prompt = tokenizer_reference.encode(reference, texts.chat_prompt(messages))
        tokens, margins = expected.greedily(model, prompt, GREEDY_TOKENS)
        greedy.append({"name": name, "prompt_ids": prompt, "ids": tokens, "top2_margin": margins})
    mean = sums / (len(ids) - 1)
    return {"token_count": len(ids), "mean_nll": round(mean, 7), "perplexity": round(math.exp(mean), 5), "greedy": greedy}


def make(folder, name):
    """Writes one checkpoint and returns the model of its dequantised weights, and the reference tokenizer."""
    model, tokenizer, reference = source()
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    if name in FOLDERS:
        dtype, shard = FOLDERS[name]
        target.mkdir()
        hub_folders.save(target, model, tokenizer, dtype, shard)
        return hub_folders.load(target), reference
    if name in PLAIN or name in MIXES:
        path = folder / f"{name}.gguf"
        path.unlink(missing_ok=True)
        if name in PLAIN:
            gguf_files.write(path, model, tokenizer, kind=PLAIN[name])
        else:
            plain = folder / f"{name}.tmp"
            plain.unlink(missing_ok=True)
            gguf_files.write(plain, model, tokenizer)
            llama_quantize.quantise(plain, path, MIXES[name])
            plain.unlink()
        return gguf_files.load_into(model, [path]), reference
    tool, settings = GROUPED[name]
    plain = folder / f"{name}.tmp"
    shutil.rmtree(plain, ignore_errors=True)
    plain.mkdir()
    hub_folders.save(plain, model, tokenizer, torch.float16)
    if tool == "groups":
        import make_groups as maker

        maker.quantise(plain, target, tokenizer, settings)
    else:
        import make_packed as maker
        from llmcompressor.modifiers.quantization import QuantizationModifier

        maker.quantise(plain, target, tokenizer, QuantizationModifier, settings)
    shutil.rmtree(plain)
    return maker.as_floats(target, model), reference


def main(folder, names):
    """Makes the named checkpoints, or all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or [*FOLDERS, *PLAIN, *MIXES, *GROUPED]:
        model, reference = make(folder, name)
        found = answers(model, reference)
        made = name if (folder / name).is_dir() else f"{name}.gguf"
        expected.save(folder / f"{name}.json", model=made, **found)
        sys.stdout.write(f"MADE {name}: perplexity {found['perplexity']}\n")
        sys.stdout.flush()
        del model
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
