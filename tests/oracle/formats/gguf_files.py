"""Writes Llama models as GGUF files, and reads such files back as transformers models.

One job: the passage between transformers' names and GGUF's, either way. Files are
written with the public `gguf` package, quantised with its own quantisers or with
llama.cpp's (llama_quantize.py), and read with its own dequantisers.
"""

import json

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
CONTROL, NORMAL, UNKNOWN, BYTE = 3, 1, 2, 6


def gguf_name(name):
    """Returns GGUF's name of a transformers parameter."""
    stem, kind = name.rsplit(".", 1)
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def turned_heads(config, name):
    """Returns how many heads' rows a name's tensor has in GGUF's order of pairs; 0: none."""
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else 0


def to_pairs(values, heads):
    """Reorders rows from halves (i, i + size/2) to neighbours (2i, 2i + 1)."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def to_halves(values, heads):
    """Undoes `to_pairs`."""
    shape = values.shape
    return values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def add_sizes(writer, config):
    """Writes what config.json says in GGUF's keys."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    head = head_size(config)
    writer.add_rope_dimension_count(head)
    if head * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head)
        writer.add_value_length(head)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, head))


def head_size(config):
    """Returns the values of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def llama3_factors(rope, head):
    """Returns what each pair's frequency is divided by, as converters store it."""
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head, 2) / head)
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    smooth = (low / waves - 1) / (low / high - 1)
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return np.where(waves < high, 1.0, np.where(waves > low, rope["factor"], between)).astype(np.float32)


def add_byte_level(writer, tokenizer, pre):
    """Writes a byte-level vocabulary, its merges, and its template."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {token["content"] for token in document["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([CONTROL if token in special else NORMAL for token, _ in vocabulary])
    merges = document["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    add_ends(writer, tokenizer, add_bos=pre == "llama-bpe")


def add_sentence_pieces(writer, tokenizer, scores):
    """Writes a SentencePiece vocabulary with scores, and its template."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(vocabulary) - 259)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    add_ends(writer, tokenizer, add_bos=True)


def add_ends(writer, tokenizer, add_bos):
    """Writes which tokens begin and end a text, and the chat template."""
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def write(path, model, tokenizer, scores=None, kind=GGMLQuantizationType.F32, pre="smollm", split_tensors=0):
    """Writes a GGUF file with matrices of one kind and vectors in float32."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_tensors, small_first_shard=False)
    writer.add_name("Tiny " + path.stem)
    writer.add_license("mit")
    add_sizes(writer, model.config)
    if scores is None:
        add_byte_level(writer, tokenizer, pre)
    else:
        add_sentence_pieces(writer, tokenizer, scores)
    tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = value.detach().float().numpy()
        heads = turned_heads(model.config, name)
        values = np.ascontiguousarray(to_pairs(values, heads) if heads else values)
        used = GGMLQuantizationType.F32 if values.ndim == 1 else kind
        writer.add_tensor(gguf_name(name), quantize(values, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantised(paths):
    """Returns {GGUF name: float32 array [rows, columns]} of a file or of all parts of one."""
    tensors = {}
    for path in paths:
        for tensor in GGUFReader(str(path)).tensors:
            shape = [int(n) for n in reversed(tensor.shape)]
            tensors[tensor.name] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
    return tensors


def load_into(model, paths):
    """Puts a file's dequantised weights into a transformers model, which it returns."""
    tensors = dequantised(paths)
    state = {}
    for name in model.state_dict():
        values = tensors.get(gguf_name(name))
        if values is None and name == "lm_head.weight":
            values = tensors["token_embd.weight"]
        heads = turned_heads(model.config, name)
        state[name] = torch.from_numpy(np.ascontiguousarray(to_halves(values, heads) if heads else values))
    model.load_state_dict(state)
    return model


def kinds(paths):
    """Returns how many tensors there are of each kind."""
    found = {}
    for path in paths:
        for tensor in GGUFReader(str(path)).tensors:
            found[tensor.tensor_type.name] = found.get(tensor.tensor_type.name, 0) + 1
    return dict(sorted(found.items()))
