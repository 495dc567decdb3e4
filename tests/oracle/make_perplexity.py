"""Writes perplexity.json: the float32 log-probability of every token of perplexity.txt.

One job: the text's likelihood in one pass, and what int8 activations in blocks of
32 would do to it and to the texts of texts.py. Printed figures belong in README.md.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

import texts
import tokenizer_reference
from llama_reference import LlamaReference, model_path
from make_logprobs import token_logprobs

LEAST_TOKENS = 2000


def main():
    """Scores the text with and without the int8 model, and writes the first."""
    model = LlamaReference(model_path())
    tokenizer = tokenizer_reference.build(model.fields, parse_special=True)
    text = Path(__file__).with_name("perplexity.txt").read_text(encoding="utf-8")
    ids = tokenizer_reference.encode(tokenizer, text)
    assert len(ids) >= LEAST_TOKENS, len(ids)
    short = {name: tokenizer_reference.encode(tokenizer, value) for name, value in texts.TEXTS.items()}

    exact = token_logprobs(model.forward(ids)[0], ids)
    short_exact = {name: token_logprobs(model.forward(i)[0], i) for name, i in short.items()}
    model.int8_blocks = True
    rounded = token_logprobs(model.forward(ids)[0], ids)
    short_rounded = {name: token_logprobs(model.forward(i)[0], i) for name, i in short.items()}

    figures = {
        "mean_abs_logprob_delta": round(float(np.abs(rounded - exact).mean()), 5),
        "perplexity": round(math.exp(-rounded.mean()), 5),
        "perplexity_change_per_cent": round(100 * (math.exp(exact.mean() - rounded.mean()) - 1), 4),
        "texts_mean_abs_logprob_delta": {
            name: round(float(np.abs(short_rounded[name] - short_exact[name]).mean()), 5) for name in short
        },
    }
    document = {
        "file": "perplexity.txt",
        "token_count": len(ids),
        "total_nll": round(float(-exact.sum()), 4),
        "mean_nll": round(float(-exact.mean()), 6),
        "perplexity": round(math.exp(-exact.mean()), 5),
        "numpy_int8_blocks_of_32": figures,
        "ids": ids,
        "logprobs": [round(float(v), 5) for v in exact],
    }
    target = Path(__file__).with_name("perplexity.json")
    target.write_text(json.dumps(document) + "\n", encoding="utf-8")
    everything = np.concatenate([np.abs(short_rounded[n] - short_exact[n]) for n in short])
    sys.stdout.write(json.dumps({k: v for k, v in document.items() if k not in ("ids", "logprobs")}, indent=1))
    sys.stdout.write(f"\nall texts, mean |delta|: {everything.mean():.5f} nats over {len(everything)} tokens\n")


if __name__ == "__main__":
    main()
