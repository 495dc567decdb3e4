"""Trains the tiny models that the fixtures are written from.

One job: models of one or two layers that know one text nearly by heart, so that their
greedy tokens have margins and a wrong weight shows. Nothing is random but the start,
which has a seed; training takes seconds.
"""

from dataclasses import dataclass, field
from typing import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

import tiny_tokenizers

CONTEXT = 512
WINDOW = 96
BATCH = 16
STEPS = 220


@dataclass
class Base:
    """A model to train: the classes, the sizes, and whose manner the vocabulary follows."""

    sizes: dict
    config: type = LlamaConfig
    model: type = LlamaForCausalLM
    tokenizer: Callable = tiny_tokenizers.smollm
    extra: dict = field(default_factory=dict)


def sizes(hidden, ffn, heads, kv_heads, layers=1, **more):
    """Returns the sizes in config.json's words; outputs are tied unless `more` says other."""
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        **more,
    }


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
MISTRAL = {"config": MistralConfig, "model": MistralForCausalLM}

BASES = {
    # What whole-number formats in blocks of 32 and in groups are made from: rows of 128 and 256.
    "grouped": Base(sizes(128, 256, 2, 1)),
    # What formats in blocks of 256 are made from.
    "wide": Base(sizes(256, 256, 4, 1)),
    # What is stored as floats.
    "plain": Base(sizes(64, 96, 4, 2, layers=2)),
    "llama2": Base(sizes(64, 96, 1, 1, tie_word_embeddings=False), tokenizer=tiny_tokenizers.llama2),
    "llama3": Base(
        sizes(64, 96, 1, 1), tokenizer=tiny_tokenizers.llama3, extra={"rope_parameters": LLAMA3_ROPE}
    ),
    "linear": Base(sizes(64, 96, 1, 1), extra={"rope_parameters": LINEAR_ROPE}),
    "bias": Base(sizes(64, 96, 1, 1, attention_bias=True)),
    "qwen2": Base(sizes(64, 96, 1, 1), config=Qwen2Config, model=Qwen2ForCausalLM),
    "mistral": Base(sizes(64, 96, 1, 1, layers=2, head_dim=64, sliding_window=16), **MISTRAL),
    "mistral_03": Base(sizes(64, 96, 1, 1, head_dim=128, sliding_window=None), **MISTRAL),
    "heads_80": Base(sizes(160, 64, 2, 1)),
    "heads_96": Base(sizes(64, 64, 2, 1, head_dim=96)),
    "heads_128": Base(sizes(64, 64, 2, 1, head_dim=128)),
}


def trained(name):
    """Returns the trained model in float32, its tokenizer, and its pieces' scores if it has any."""
    base = BASES[name]
    tokenizer = base.tokenizer()
    tokenizer, scores = tokenizer if isinstance(tokenizer, tuple) else (tokenizer, None)
    torch.manual_seed(sorted(BASES).index(name) + 1)
    config = base.config(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        initializer_range=0.06,
        **base.sizes,
        **base.extra,
    )
    model = base.model(config)
    for key, value in model.named_parameters():
        if "bias" in key:
            torch.nn.init.normal_(value, std=0.3)
        if "norm" in key:
            torch.nn.init.uniform_(value, 0.7, 1.3)
    learn(model, tokenizer)
    return model.eval(), tokenizer, scores


def learn(model, tokenizer):
    """Trains a model on windows of the text, which it learns nearly by heart."""
    ids = torch.tensor(tokenizer.encode(tiny_tokenizers.text()))
    first = torch.Generator().manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS)
    for _ in range(STEPS):
        starts = torch.randint(0, len(ids) - WINDOW, (BATCH,), generator=first)
        batch = torch.stack([ids[start : start + WINDOW] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
