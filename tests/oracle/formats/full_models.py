"""Writes the default model itself in other formats, and says what each must answer.

One job: `full_models.py FOLDER [NAME...]` makes FOLDER/NAME and FOLDER/NAME.json from
the default model's dequantised weights: log-probabilities of ../perplexity.txt in one
float32 pass, and 24 greedy tokens of two prompts. A name that starts with `import_` is
a GGUF file that is there already. They are too large to keep:
`HEARTH_FORMATS=FOLDER` runs the tests of the tiny ones over them.
"""

import copy
import functools
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
PLAIN = {
    f"gguf_{name.lower()}": getattr(Kind, name)
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"]
}
MIXES = {f"gguf_{name.lower()}": name for name in ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL"]}
# As make_groups.py and make_packed.py have them, but for those whose groups do not divide rows of 576.
GROUPED = ["gptq_g32_act", "gptq_row", "gptq_row_act", "gptq_g64_asym_v2", "gptq_g32_asym_act"]
GROUPED += ["gptq_8bit_g64", "gptq_8bit_g32_act_v2", "awq_g32", "awq_g64"]
GROUPED += ["packed_g32_asym", "packed_row", "packed_g64_act", "packed_8bit_g64"]


@functools.cache
def source():
    """Returns the default model with float32 weights, its tokenizer, and the reference tokenizer of its file."""
    path = model_path()
    how = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **how).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **how)
    reference = tokenizer_reference.build(LlamaReference(path).fields, parse_special=True)
    tokenizer.backend_tokenizer.pre_tokenizer = reference.pre_tokenizer
    # Its weights are floats now, and are to be written as such.
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer, reference


@torch.no_grad()
def answers(model, reference):
    """Returns what a fixture says: log-probabilities and greedy tokens, in float32."""
    model = model.float().eval()
    text = Path(__file__).parents[1].joinpath("perplexity.txt").read_text(encoding="utf-8")
    ids = tokenizer_reference.encode(reference, text)
    hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    logprobs = []
    for start in range(0, len(ids) - 1, 256):
        stop = min(start + 256, len(ids) - 1)
        rows = torch.log_softmax(model.lm_head(hidden[start:stop]).double(), -1)
        logprobs += rows[torch.arange(stop - start), torch.tensor(ids[start + 1 : stop + 1])].tolist()
    greedy = []
    for messages in list(texts.PROMPTS.values())[:PROMPTS]:
        prompt = tokenizer_reference.encode(reference, texts.chat_prompt(messages))
        tokens, margins = expected.greedily(model, prompt, GREEDY_TOKENS)
        greedy.append({"prompt_ids": prompt, "ids": tokens, "top2_margin": margins})
    mean = -math.fsum(logprobs) / len(logprobs)
    figures = {"mean_nll": round(mean, 7), "perplexity": round(math.exp(mean), 5)}
    return {"text": text, "ids": ids, "logprobs": [round(v, 6) for v in logprobs], **figures, "greedy": greedy}


def make(folder, name):
    """Writes one checkpoint and returns the model of its dequantised weights, and the reference tokenizer."""
    model, tokenizer, reference = source()
    model = copy.deepcopy(model)
    target = folder / name
    if name.startswith("import_"):
        return gguf_files.load_into(model, [folder / f"{name}.gguf"]), reference
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
    plain = folder / f"{name}.tmp"
    shutil.rmtree(plain, ignore_errors=True)
    plain.mkdir()
    hub_folders.save(plain, model, tokenizer, torch.float16)
    if name.startswith("packed_"):
        import make_packed as maker

        maker.quantise(plain, target, tokenizer, *maker.PACKED[name])
    else:
        import make_groups as maker

        maker.quantise(plain, target, tokenizer, maker.GPTQ.get(name) or maker.AWQ[name])
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
