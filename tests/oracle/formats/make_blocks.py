"""Writes the fixtures whose weights are GGUF's whole-number blocks.

One job: every block format that is read, and llama.cpp's own mixes of them, each with
the answers of the weights as the `gguf` package dequantises them.
"""

import sys

import torch
from gguf import GGMLQuantizationType as Kind

import expected
import gguf_files
import llama_quantize
import tiny_tokenizers
from places import FIXTURES, base

# By the gguf package: all matrices are of this kind.
PLAIN = {f"gguf_{name.lower()}": getattr(Kind, name) for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]}
# By llama.cpp: its mix, the base, and tensors of a part (0: one file).
MIXES = {
    "gguf_iq4_nl": ("IQ4_NL", "grouped"),
    "gguf_q2_k": ("Q2_K", "wide"),
    "gguf_q3_k_m": ("Q3_K_M", "wide"),
    "gguf_q4_k_m": ("Q4_K_M", "wide"),
    "gguf_q5_k_m": ("Q5_K_M", "wide"),
    "gguf_q6_k": ("Q6_K", "wide"),
    # Rows of 128: llama.cpp takes another kind where its own does not fit.
    "gguf_q4_k_m_narrow": ("Q4_K_M", "grouped"),
}


def make(name):
    """Writes one file and its answers."""
    path = FIXTURES / f"{name}.gguf"
    path.unlink(missing_ok=True)
    if name in PLAIN:
        model, tokenizer, _ = base("grouped")
        gguf_files.write(path, model, tokenizer, kind=PLAIN[name])
    else:
        mix, base_name = MIXES[name]
        model, tokenizer, _ = base(base_name)
        source = FIXTURES / f"{name}.tmp"
        source.unlink(missing_ok=True)
        gguf_files.write(source, model, tokenizer)
        llama_quantize.quantise(source, path, mix)
        source.unlink()
    answers = expected.answers(gguf_files.load_into(model, [path]), tokenizer, tiny_tokenizers.text())
    theirs = llama_quantize.logits(path, answers["ids"])
    theirs = torch.log_softmax(torch.from_numpy(theirs).double()[:-1], -1)
    theirs = -theirs[torch.arange(len(theirs)), torch.tensor(answers["ids"][1:])].mean()
    kinds = gguf_files.kinds([path])
    expected.save(FIXTURES / f"{name}.json", model=path.name, dequantised_by="gguf", kinds=kinds, **answers)
    sys.stdout.write(f"{name} {kinds}: mean nll {answers['mean_nll']:.4f}, llama.cpp's {theirs:.4f}\n")


def main(names):
    """Makes the named fixtures, or all."""
    torch.set_num_threads(1)
    for name in names or [*PLAIN, *MIXES]:
        make(name)


if __name__ == "__main__":
    main(sys.argv[1:])
