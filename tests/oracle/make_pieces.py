"""Writes pieces.model and pieces.json: a small tokenizer.model, and the ids of 575 strings by it.

One job: SentencePiece's own library trains the vocabulary on the texts of this folder, as Llama's
was (BPE, bytes for what is unknown, nothing normalised), and says what text becomes. Where control
tokens are read, it is given what lies between them, piece by piece, as by Hugging Face's code of the
time when models came with this file alone. (transformers 5 puts no space before text that begins with
one; the models were not trained so.)
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import sentencepiece

import texts as prose
from make_tokenizer_ids import strings

HERE = Path(__file__).parent
VOCAB_SIZE = 900


def train(to):
    """Trains the vocabulary."""
    lines = (HERE / "perplexity.txt").read_text(encoding="utf-8").splitlines()
    lines += [line for text in prose.TEXTS.values() for line in text.splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for line in lines if line),
            model_prefix=f"{folder}/pieces",
            model_type="bpe",
            vocab_size=VOCAB_SIZE,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            character_coverage=0.999,
            control_symbols=["[INST]", "[/INST]"],
            num_threads=1,
        )
        to.write_bytes(Path(folder, "pieces.model").read_bytes())


def parsed_ids(pieces, text):
    """Returns the ids of a text whose control tokens are read."""
    control = {pieces.id_to_piece(i): i for i in range(len(pieces)) if pieces.is_control(i) or pieces.is_unknown(i)}
    ids = []
    for part in re.split("(" + "|".join(map(re.escape, control)) + ")", text):
        ids += [control[part]] if part in control else pieces.encode(part)
    return ids


def main():
    """Writes both files."""
    model = HERE / "pieces.model"
    if not model.exists() or "--train" in sys.argv:
        train(model)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    all_texts = strings()
    plain = [pieces.encode(text) for text in all_texts]
    parsed = [parsed_ids(pieces, text) for text in all_texts]
    decoded = [pieces.decode(ids) for ids in plain]
    spaced = [text.replace("▁", " ") for text in all_texts]
    fixture = {
        "plain": plain,
        "parsed": {str(i): ids for i, ids in enumerate(parsed) if ids != plain[i]},
        "decoded": {str(i): text for i, text in enumerate(decoded) if text != spaced[i]},
        "with_special": [[pieces.bos_id()], [pieces.bos_id(), *pieces.encode("Hello there")]],
    }
    text = json.dumps({"pieces": fixture}, ensure_ascii=True, separators=(",", ":")).replace("],[", "],\n[") + "\n"
    (HERE / "pieces.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
