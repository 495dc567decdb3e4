"""Writes tokens.json: what Hugging Face's tokenizers makes of many strings, and back.

One job: the tokenizer's fixtures. Decoding is of the bytes the tokens stand for,
with each maximal ill-formed part replaced by U+FFFD.
"""

import json
from pathlib import Path

import token_strings
import tokenizer_reference
from llama_reference import model_path

LEAST_STRINGS = 240


def byte_of_character():
    """Returns GPT-2's table from the printable stand-in to the byte it stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def encode_entries(plain, special):
    """Returns the encode fixtures: every string as text, some with tokens parsed too."""
    entries = []
    for text in dict.fromkeys(token_strings.PLAIN + token_strings.SPECIAL):
        entries.append((text, False, plain))
    for text in dict.fromkeys(token_strings.SPECIAL + token_strings.PLAIN[::7]):
        entries.append((text, True, special))
    return [
        {"text": text, "parse_special": parse, "ids": tokenizer_reference.encode(tokenizer, text)}
        for text, parse, tokenizer in entries
    ]


def decode_entries(fields, special):
    """Returns the decode fixtures: single bytes as tokens, then whole texts, cut at both ends."""
    to_byte = byte_of_character()
    tokens = fields["tokenizer.ggml.tokens"]
    control = {tokens.index(token) for token in token_strings.CONTROL_TOKENS}
    id_of_byte = {to_byte[t]: i for i, t in enumerate(tokens) if len(t) == 1 and i not in control}
    lists = [
        [id_of_byte[byte] for byte in data]
        for data in token_strings.DECODE_BYTES
        if all(byte in id_of_byte for byte in data)
    ]
    for text in ("naïve café 日本語 😀👨‍👩‍👧 नमस्ते", "<|im_start|>user\nHi 😀<|im_end|>\n", " a  b\r\n\t"):
        ids = tokenizer_reference.encode(special, text)
        lists += [ids] + [ids[:cut] for cut in range(1, len(ids), 3)] + [ids[cut:] for cut in range(1, len(ids), 3)]
    entries = []
    for ids in lists:
        for skip in (False, True):
            data = b""
            for index in ids:
                if index in control:
                    data += b"" if skip else tokens[index].encode()
                else:
                    data += bytes(to_byte[c] for c in tokens[index])
            entries.append({"ids": ids, "skip_special": skip, "text": data.decode("utf-8", errors="replace")})
    return entries


def check_decoding(entries, special):
    """Fails if Hugging Face's decoder disagrees with the bytes."""
    for entry in entries:
        theirs = special.decode(entry["ids"], skip_special_tokens=entry["skip_special"])
        assert theirs == entry["text"], (entry, theirs)


def main():
    """Writes the fixtures, one entry a line."""
    fields = tokenizer_reference.fields_of(model_path())
    plain = tokenizer_reference.build(fields, parse_special=False)
    special = tokenizer_reference.build(fields, parse_special=True)
    encoded = encode_entries(plain, special)
    assert len({entry["text"] for entry in encoded}) >= LEAST_STRINGS
    decoded = decode_entries(fields, special)
    check_decoding(decoded, special)
    rows = lambda entries: ",\n".join(json.dumps(entry) for entry in entries)
    text = f'{{"encode": [\n{rows(encoded)}\n],\n"decode": [\n{rows(decoded)}\n]}}\n'
    json.loads(text)
    Path(__file__).with_name("tokens.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
