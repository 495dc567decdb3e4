"""Writes the fuzz targets' first inputs, out of the fixtures of tests/oracle/formats.

One job: small sound inputs of every target, from which a fuzzer finds the unsound ones.
"""

import json
import re
import struct
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "oracle/formats/fixtures"
# Of a piece, at the top of a tokenizer.model: field 1, its length next.
PIECES_TAG = 0x0A
TEMPLATES = [
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}\n{% endfor %}",
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'].strip() %}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}"
    "{% endif %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endfor %}",
    "{% macro f(x) %}{{ x | upper }}{% endmacro %}{% set n = namespace(i=0) %}{% for i in range(3) %}"
    "{% set n.i = n.i + i %}{{ f(i | string) }}{% endfor %}{{ n.i }}{{ messages | tojson }}",
    "{{ strftime_now('%d %b %Y') }}{{ 'a' * 9 }}{{ messages[-1].content.split('x')[0] }}{{ [1, 2] | join(',') }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{% set s = 'x' %}{% for i in range(40) %}{% set s = s ~ s %}{% endfor %}{{ s }}",
    "{{ 'x' * 1073741824 }}",
    "{{ " + "(" * 60 + "1" + ")" * 60 + " }}",
]


def put(target, name, data):
    """Writes one input of a target."""
    folder = HERE / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def shrunk_tokenizer(text):
    """Returns a tokenizer.json with most of its merges and words left out."""
    document = json.loads(text)
    keep = {token: i for token, i in document["model"]["vocab"].items() if i < 48}
    document["model"]["vocab"] = keep
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in document["model"]["merges"]]
    document["model"]["merges"] = [merge for merge in merges if {*merge, "".join(merge)} <= set(keep)]
    return json.dumps(document, ensure_ascii=False).encode()


def gguf_seeds():
    """Writes headers; the data behind them is a hole."""
    for name in ["gguf_q4_k_m", "gguf_llama2", "gguf_bf16", "gguf_llama3"]:
        whole = (FIXTURES / f"{name}.gguf").read_bytes()
        end = max(match.end() for match in re.finditer(rb"(token_embd|output_norm|ffn_\w+|attn_\w+)\.weight", whole)) + 64
        put("gguf", name, b"\x01" + whole[:end])
    put("gguf", "empty", b"\x00GGUF" + struct.pack("<IQQ", 3, 0, 0))
    key = b"general.architecture"
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    put("gguf", "one_key", b"\x01GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)


def header_of(path):
    """Returns the header's text of a safetensors file."""
    data = path.read_bytes()
    return data[8 : 8 + struct.unpack("<Q", data[:8])[0]].strip()


def folder_seeds():
    """Writes folders without their tensors' data."""
    for name in ["hub_f16", "hub_llama2", "hub_mistral_window", "hub_qwen2", "gptq_g32_act", "awq_g64", "packed_g32_asym"]:
        folder = FIXTURES / name
        config = (folder / "config.json").read_bytes()
        put("folder", name, b"\0".join([config, header_of(folder / "model.safetensors")]))
    folder = FIXTURES / "hub_bf16_sharded"
    parts = sorted(folder.glob("*.safetensors"))
    index = (folder / "model.safetensors.index.json").read_bytes()
    put("folder", "index", b"\0".join([(folder / "config.json").read_bytes(), header_of(parts[0]), index, header_of(parts[1])]))


def shrunk_pieces(data, count):
    """Returns a tokenizer.model with its first pieces alone."""
    kept, at, pieces = b"", 0, 0
    while at < len(data):
        begin, tag, size, shift = at, data[at], 0, 0
        at += 1
        while True:
            size |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                break
        at += size
        pieces += tag == PIECES_TAG
        if tag != PIECES_TAG or pieces <= count:
            kept += data[begin:at]
    return kept


def main():
    """Writes all seeds."""
    gguf_seeds()
    folder_seeds()
    for name in ["hub_f16", "hub_llama2", "hub_llama3"]:
        text = (FIXTURES / name / "tokenizer.json").read_text(encoding="utf-8")
        config = (FIXTURES / name / "tokenizer_config.json").read_bytes()
        put("tokenizer", name, shrunk_tokenizer(text) + b"\0" + config)
    pieces = (FIXTURES.parent.parent / "pieces.model").read_bytes()
    for count in [5, 262, 318]:
        put("pieces", f"first_{count}", bytes([count & 3]) + shrunk_pieces(pieces, count))
    for i, template in enumerate(TEMPLATES):
        put("template", f"template_{i}", template.encode() + b"\0Hello <|im_end|>")
    for kind in range(3):
        put("groups", f"kind_{kind}", bytes([kind]) + bytes(200))
        put("groups", f"kind_{kind}_eight", bytes([kind, 0, 0, 0, 0, 3, 2, 1, 1, 1]) + bytes(200))


if __name__ == "__main__":
    main()
