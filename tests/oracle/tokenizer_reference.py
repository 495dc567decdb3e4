"""Hugging Face's tokenizer for the model, built from the GGUF's own vocabulary and merges.

One job: the reference tokenizer. The pipeline is the one SmolLM2 publishes: digits
one by one, then byte-level pieces by GPT-2's expression, then BPE. It deliberately
knows nothing of the engine's own tokenizer.
"""

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN = 3


def fields_of(path):
    """Returns the GGUF's metadata as a dictionary."""
    return {name: field.contents() for name, field in GGUFReader(str(path)).fields.items()}


def build(fields, parse_special):
    """Returns the tokenizer; without `parse_special`, control tokens are plain text."""
    tokens = fields["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    if parse_special:
        kinds = fields["tokenizer.ggml.token_type"]
        tokenizer.add_special_tokens(
            [
                AddedToken(token, special=True, normalized=False)
                for token, kind in zip(tokens, kinds, strict=True)
                if kind == CONTROL_TOKEN
            ]
        )
    return tokenizer


def encode(tokenizer, text):
    """Returns the ids of a text; nothing is put before or after them."""
    return tokenizer.encode(text, add_special_tokens=False).ids
