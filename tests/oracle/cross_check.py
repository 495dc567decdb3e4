"""Compares the numpy reference with Hugging Face transformers' own reading of the same file.

One job: doubt. It runs transformers' GGUF loading and its Llama in float32 with
torch on the CPU over every text of texts.py, and prints how far the numpy pass is
from it. It writes nothing; torch is needed for this script alone.
"""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import texts
import tokenizer_reference
from llama_reference import LlamaReference, model_path
from make_logprobs import GREEDY_TOKENS, token_logprobs


def main():
    """Prints the differences, one line a text, then a summary."""
    path = model_path()
    ours = LlamaReference(path)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    theirs.eval()
    tokenizer = tokenizer_reference.build(ours.fields, parse_special=True)
    their_tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    worst_logit, worst_logprob = 0.0, 0.0
    for name, text in texts.TEXTS.items():
        ids = tokenizer_reference.encode(tokenizer, text)
        same_ids = their_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        mine, _ = ours.forward(ids)
        with torch.no_grad():
            other = theirs(torch.tensor([ids])).logits[0].numpy()
        logit = float(np.abs(mine - other).max())
        delta = np.abs(token_logprobs(mine, ids) - token_logprobs(other, ids))
        sys.stdout.write(
            f"{name}: max |logit difference| {logit:.2e}, log-probability max {delta.max():.2e} "
            f"mean {delta.mean():.2e}, tokens {'equal' if same_ids else 'DIFFER'}\n"
        )
        worst_logit, worst_logprob = max(worst_logit, logit), max(worst_logprob, float(delta.max()))
    for name, messages in texts.PROMPTS.items():
        ids = tokenizer_reference.encode(tokenizer, texts.chat_prompt(messages))
        mine, _ = ours.greedy(ids, GREEDY_TOKENS)
        with torch.no_grad():
            sequence = list(ids)
            for _ in range(GREEDY_TOKENS):
                sequence.append(int(theirs(torch.tensor([sequence])).logits[0, -1].argmax()))
        sys.stdout.write(f"greedy {name}: {'equal' if mine == sequence[len(ids):] else 'DIFFERS'}\n")
    sys.stdout.write(f"worst: logit {worst_logit:.2e}, log-probability {worst_logprob:.2e}\n")


if __name__ == "__main__":
    main()
