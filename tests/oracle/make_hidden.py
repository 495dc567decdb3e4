"""Writes hidden.json: the residual stream, layer by layer, for a five-token prompt.

One job: numbers to find the first layer that goes wrong. Values are those of the
last position; norms (Euclidean) are given for every position.
"""

import json
from pathlib import Path

import numpy as np

import tokenizer_reference
from llama_reference import LlamaReference, log_softmax, model_path

PROMPT = "The capital of France is"


def main():
    """Runs the prompt once and writes what the trace saw."""
    model = LlamaReference(model_path())
    ids = tokenizer_reference.encode(tokenizer_reference.build(model.fields, True), PROMPT)
    assert len(ids) == 5, ids
    stages = []

    def observe(name, values):
        stages.append(
            {
                "stage": name,
                "norm": [round(float(np.linalg.norm(row.astype(np.float64))), 6) for row in values],
                "first8_last_position": [round(float(v), 7) for v in values[-1, :8]],
                "first8_position_0": [round(float(v), 7) for v in values[0, :8]],
            }
        )

    logits, _ = model.forward(ids, trace=observe)
    logprobs = log_softmax(logits)
    top = np.argsort(-logits[-1])[:5]
    document = {
        "prompt": PROMPT,
        "ids": ids,
        "stages": stages,
        "top5": [
            {"id": int(i), "logit": float(logits[-1, i]), "logprob": float(logprobs[-1, i])} for i in top
        ],
        "first8_logits_last_position": [float(v) for v in logits[-1, :8]],
    }
    target = Path(__file__).with_name("hidden.json")
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
