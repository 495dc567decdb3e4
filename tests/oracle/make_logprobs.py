"""Writes logprobs.json: per-token log-probabilities of texts, and greedy continuations.

One job: numbers that say whether an engine computes the same model. Everything is
float32 from the dequantised weights (llama_reference.py).
"""

import json
from pathlib import Path

import numpy as np

import texts
import tokenizer_reference
from llama_reference import LlamaReference, log_softmax, model_path, top2_margin

GREEDY_TOKENS = 64


def token_logprobs(logits, ids):
    """Returns the log-probability of ids[1:], each given what stands before it."""
    return log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]]


def score(model, tokenizer, name, text):
    """Returns one text's entry; lists of length n-1 belong to positions 1..n-1."""
    ids = tokenizer_reference.encode(tokenizer, text)
    assert 50 <= len(ids) <= 200, (name, len(ids))
    logits, _ = model.forward(ids)
    return {
        "name": name,
        "text": text,
        "ids": ids,
        "logprobs": [round(float(v), 6) for v in token_logprobs(logits, ids)],
        "top1": [int(v) for v in logits[:-1].argmax(axis=-1)],
        "top2_margin": [round(float(v), 5) for v in top2_margin(logits[:-1])],
    }


def continue_greedily(model, tokenizer, name, messages):
    """Returns one prompt's greedy continuation, which runs on through end of text."""
    text = texts.chat_prompt(messages)
    ids = tokenizer_reference.encode(tokenizer, text)
    tokens, margins = model.greedy(ids, GREEDY_TOKENS)
    return {
        "name": name,
        "messages": [{"role": role, "content": content} for role, content in messages],
        "prompt": text,
        "prompt_ids": ids,
        "ids": tokens,
        "top2_margin": [round(v, 5) for v in margins],
        "text": tokenizer.decode(tokens, skip_special_tokens=False),
    }


def main():
    """Scores the texts and continues the prompts."""
    model = LlamaReference(model_path())
    tokenizer = tokenizer_reference.build(model.fields, parse_special=True)
    document = {
        "model": model_path().name,
        "texts": [score(model, tokenizer, *item) for item in texts.TEXTS.items()],
        "greedy": [continue_greedily(model, tokenizer, *item) for item in texts.PROMPTS.items()],
    }
    lines = json.dumps(document, ensure_ascii=False).replace('{"name"', '\n{"name"')
    Path(__file__).with_name("logprobs.json").write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
