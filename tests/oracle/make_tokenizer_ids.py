"""Writes tokenizer_ids.json: what Hugging Face's tokenizers makes of 500 and more strings.

One job: fixtures for three published vocabularies: one that is SentencePiece-style (called
llama2 after the package it comes in), Llama 3's, and the default model's. The first two are
read from the folder that `make setup` fetches them to, which is the one argument.
"""

import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

import token_strings
import tokenizer_reference
from llama_reference import model_path

LEAST_STRINGS = 500
SEED = 20240
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", "  \t\n", "\r\n",
    ".,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+`~", "àéîõüßñçøåœ", "абвгдежзийклмнопрстуфхцч", "αβγδεζηθικλμ",
    "的一是不了人我在有他这为之大来以个中上们", "あいうえおかきくけこアイウエオ", "가나다라마바사아자차", "ابتثجحخدذرزسشصض",
    "אבגדהוזחטיכלמנ", "अआइईउऊएऐओऔकखगघ", "😀🎉🚀👍🏽❤️🔥✨", "\u0301\u0308\u200d\ufe0f", "▁", "½²Ⅷ٣",
]  # fmt: skip
MARKUP = [
    "<s>", "</s>", "<unk>", "<0x0A>", "<0x41>", "[INST]", "[/INST]", "<<SYS>>", "<|begin_of_text|>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|im_start|>",
]  # fmt: skip
CHATS = [
    "<s>[INST] Hi there [/INST] Hello! </s><s>[INST]  and  again [/INST]",
    "<s> [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST]",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "</s>a", "a</s>", "a</s> b", " <s> ", "<s><s>", "<s>\n", "</s>\n\nx", "< s>", "<s", "s>", "<S>", "</s", "/s>",
    "<s>▁a", "▁", "▁▁", "a▁b", " ▁ ", "▁ a", "<0x0A>", "<0x0a>", "\n<0x0A>\n", "[PAD32000]", "<pad>",
    "   x", "x   ", "\n\n\n\n", "\t\t\t", " \n \n ", " " * 15, " " * 16, " " * 17, " " * 40, "a" + " " * 33 + "b",
    "中" * 50, "日本語" * 20, "🙂" * 20, "é" * 40, "\u0000\u0000", "=" * 65, "ha" * 40, "lol" * 31, "aab" * 27, "abab" * 19 + "a",
    "the" * 30, "ing" * 25, "er" * 45, "  the  the   the", "theThe THEthe", "\u2581\u2581the", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
]  # fmt: skip


def strings():
    """Returns all strings, the same at every run."""
    fixed = token_strings.PLAIN + token_strings.SPECIAL + CHATS + MARKUP
    draw = random.Random(SEED)
    mixed = []
    while len(mixed) < 160:
        runs = [
            draw.choice(MARKUP) if draw.random() < 0.08 else "".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 7)))
            for _ in range(draw.randint(1, 14))
        ]
        mixed.append("".join(runs))
    return list(dict.fromkeys(fixed + mixed))


def entry(tokenizer, texts, spaces):
    """Returns the ids of each text, and by index what differs if special tokens are read.

    Decoded texts are there where they differ from the text, in which, with `spaces`,
    the mark that stands for a space has become one.
    """
    tokenizer.encode_special_tokens = True
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    tokenizer.encode_special_tokens = False
    parsed = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    whole = [text.replace("▁", " ") if spaces else text for text in texts]
    decoded = [tokenizer.decode(ids, skip_special_tokens=False) for ids in plain]
    return {
        "plain": plain,
        "parsed": {str(i): parsed[i] for i in range(len(texts)) if parsed[i] != plain[i]},
        "decoded": {str(i): decoded[i] for i in range(len(texts)) if decoded[i] != whole[i]},
        "with_special": [tokenizer.encode(text).ids for text in ("", "Hello there")],
    }


def main():
    """Writes the fixtures, one list of ids a line."""
    folder = Path(sys.argv[1])
    texts = strings()
    assert len(texts) >= LEAST_STRINGS, len(texts)
    read = {name: Tokenizer.from_file(str(folder / name / "tokenizer.json")) for name in ("llama2", "llama3")}
    fields = tokenizer_reference.fields_of(model_path())
    read["smollm"] = tokenizer_reference.build(fields, parse_special=True)
    fixtures = {"strings": texts} | {
        name: entry(tokenizer, texts, name == "llama2") for name, tokenizer in read.items()
    }
    text = json.dumps(fixtures, ensure_ascii=True, separators=(",", ":"))
    text = text.replace("],[", "],\n[").replace('","', '",\n"') + "\n"
    assert json.loads(text) == fixtures
    Path(__file__).with_name("tokenizer_ids.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
