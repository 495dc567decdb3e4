"""Says what a model of a fixture must answer.

One job: log-probabilities and greedy tokens, out of transformers' own classes in
float64, of weights that were dequantised by the public tool of their format.
"""

import json

import torch

SCORED_TOKENS = 64
PROMPT_TOKENS = 12
GREEDY_TOKENS = 16


def text_of(tokenizer, text):
    """Returns the ids of the first tokens of a text, and their own text."""
    ids = tokenizer.encode(text)[:SCORED_TOKENS]
    return ids, tokenizer.decode(ids, skip_special_tokens=True)


@torch.no_grad()
def answers(model, tokenizer, text):
    """Returns the figures of a fixture; lists of length n-1 belong to positions 1..n-1."""
    model = model.double().eval()
    ids, scored = text_of(tokenizer, text)
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    logprobs = torch.log_softmax(logits[:-1], -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    two = logits[:-1].topk(2).values
    greedy, margins = greedily(model, ids[:PROMPT_TOKENS])
    return {
        "text": scored,
        "ids": ids,
        "mean_nll": round(float(-logprobs.mean()), 7),
        "logprobs": [round(float(v), 6) for v in logprobs],
        "top1": logits[:-1].argmax(-1).tolist(),
        "top2_margin": [round(float(v), 5) for v in two[:, 0] - two[:, 1]],
        "greedy": {"prompt_ids": ids[:PROMPT_TOKENS], "ids": greedy, "top2_margin": margins},
    }


def greedily(model, prompt, count=GREEDY_TOKENS):
    """Returns greedy tokens, and the margin of each. It does not stop at an end-of-text token."""
    ids, margins = list(prompt), []
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        two = logits.topk(2)
        ids.append(int(two.indices[0]))
        margins.append(round(float(two.values[0] - two.values[1]), 5))
    return ids[len(prompt) :], margins


def save(path, **document):
    """Writes a fixture's figures beside it."""
    path.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
