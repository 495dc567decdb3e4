"""A plain float32 numpy pass of a GGUF Llama model: the reference that fixtures are made with.

One job: from token ids to logits and the residual stream, out of the dequantised
weights, in float32 throughout, on the CPU. It deliberately knows nothing of the
engine under test: no blocks of KV, no planes, no shaders, no sampling.

`int8_blocks=True` models int8 activations: before every product with a quantised
weight the activations are rounded to 8 bits in blocks of 32 along the row. That is
a model of the rounding alone; the products stay float32.
"""

import math
import os
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

BLOCK = 32
REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = REPOSITORY_ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
UNQUANTISED = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}


def model_path():
    """Returns the model file: HEARTH_MODEL_FILE, or the place `make` puts it."""
    return Path(os.environ.get("HEARTH_MODEL_FILE") or DEFAULT_MODEL)


def round_to_int8_blocks(x):
    """Rounds each run of 32 values to int8 with scale max|x|/127, ties to even."""
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127.0)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.rint(blocks * inverse) * scale).reshape(x.shape).astype(np.float32)


def log_softmax(logits):
    """Returns log-probabilities over the last axis; sums are taken in float64."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def top2_margin(logits):
    """Returns the largest logit less the second largest, over the last axis."""
    two = np.partition(logits, -2, axis=-1)[..., -2:]
    return two[..., 1] - two[..., 0]


class LlamaReference:
    """A Llama model held as float32 arrays, with a growing KV cache per call chain.

    Weights of a linear layer are [outputs, inputs]. Q and K rows are in GGUF's
    order, in which the two halves of a rotated pair lie side by side.
    """

    def __init__(self, path=None, int8_blocks=False):
        reader = GGUFReader(str(path or model_path()))
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.weights, self.quantised = {}, set()
        for tensor in reader.tensors:
            shape = [int(n) for n in reversed(tensor.shape)]
            values = dequantize(tensor.data, tensor.tensor_type)
            self.weights[tensor.name] = np.ascontiguousarray(values, dtype=np.float32).reshape(shape)
            if tensor.tensor_type not in UNQUANTISED:
                self.quantised.add(tensor.name)
        self.int8_blocks = int8_blocks
        key = lambda name: self.fields["llama." + name]
        self.layer_count = key("block_count")
        self.head_count = key("attention.head_count")
        self.kv_head_count = key("attention.head_count_kv")
        self.epsilon = np.float32(key("attention.layer_norm_rms_epsilon"))
        self.head_size = key("embedding_length") // self.head_count
        pairs = np.arange(0, self.head_size, 2, dtype=np.float64)
        self.frequencies = key("rope.freq_base") ** (-pairs / self.head_size)

    def empty_cache(self):
        """Returns a KV cache with no positions: one (keys, values) a layer."""
        none = np.zeros((0, self.kv_head_count, self.head_size), np.float32)
        return [(none, none)] * self.layer_count

    def linear(self, x, name):
        """Returns x @ W^T for the named weight."""
        if self.int8_blocks and name in self.quantised:
            x = round_to_int8_blocks(x)
        return x @ self.weights[name].T

    def rms_norm(self, x, name):
        """Returns x over its root mean square, times the named weight."""
        mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(mean_square + self.epsilon) * self.weights[name]

    def rotate(self, x, first_position):
        """Returns x [positions, heads, head size] with pairs (2i, 2i+1) rotated."""
        positions = np.arange(first_position, first_position + x.shape[0])
        angles = positions[:, None] * self.frequencies[None, :]
        cos = np.cos(angles).astype(np.float32)[:, None, :]
        sin = np.sin(angles).astype(np.float32)[:, None, :]
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    def attend(self, x, layer, cache):
        """Returns causal grouped-query attention's output and the grown cache entry."""
        rows, prefix, size = x.shape[0], f"blk.{layer}.", self.head_size
        past = cache[layer][0].shape[0]
        q = self.linear(x, prefix + "attn_q.weight").reshape(rows, self.head_count, size)
        k = self.linear(x, prefix + "attn_k.weight").reshape(rows, self.kv_head_count, size)
        v = self.linear(x, prefix + "attn_v.weight").reshape(rows, self.kv_head_count, size)
        keys = np.concatenate([cache[layer][0], self.rotate(k, past)])
        values = np.concatenate([cache[layer][1], v])
        q = self.rotate(q, past)
        future = np.arange(keys.shape[0])[None, :] > (past + np.arange(rows))[:, None]
        out = np.empty_like(q)
        group = self.head_count // self.kv_head_count
        for head in range(self.head_count):
            scores = q[:, head] @ keys[:, head // group].T / np.float32(math.sqrt(size))
            scores[future] = -np.inf
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            out[:, head] = scores @ values[:, head // group]
        return self.linear(out.reshape(rows, -1), prefix + "attn_output.weight"), (keys, values)

    def feed_forward(self, x, layer):
        """Returns down(silu(gate(x)) * up(x))."""
        prefix = f"blk.{layer}.ffn_"
        gate = self.linear(x, prefix + "gate.weight")
        up = self.linear(x, prefix + "up.weight")
        return self.linear(gate / (1 + np.exp(-gate)) * up, prefix + "down.weight")

    def forward(self, ids, cache=None, trace=None):
        """Returns logits [len(ids), vocabulary] and the grown cache.

        `trace`, where given, is called with (name, residual stream) after the
        embedding, after each layer and after the final norm.
        """
        cache = list(cache) if cache is not None else self.empty_cache()
        observe = trace or (lambda name, values: None)
        x = self.weights["token_embd.weight"][np.asarray(ids)]
        observe("embedding", x)
        for layer in range(self.layer_count):
            attended, cache[layer] = self.attend(
                self.rms_norm(x, f"blk.{layer}.attn_norm.weight"), layer, cache
            )
            x = x + attended
            x = x + self.feed_forward(self.rms_norm(x, f"blk.{layer}.ffn_norm.weight"), layer)
            observe(f"layer_{layer}", x)
        x = self.rms_norm(x, "output_norm.weight")
        observe("final_norm", x)
        head = "output.weight" if "output.weight" in self.weights else "token_embd.weight"
        return self.linear(x, head), cache

    def greedy(self, ids, count):
        """Returns the greedy continuation: token ids and the top-2 margin at each step.

        It does not stop at an end-of-text token.
        """
        logits, cache = self.forward(ids)
        tokens, margins = [], []
        for _ in range(count):
            tokens.append(int(logits[-1].argmax()))
            margins.append(float(top2_margin(logits[-1])))
            logits, cache = self.forward(tokens[-1:], cache)
        return tokens, margins
