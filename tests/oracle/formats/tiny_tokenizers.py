"""Trains the tiny vocabularies that the fixtures' models have.

One job: three tokenizers of 320 tokens, in the three manners that Llamas come in:
byte-level as SmolLM2, byte-level as Llama 3, and SentencePiece's BPE with byte
fallback as Llama 2. Each comes as a `tokenizers` object and as a transformers one.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 320
TEXT = Path(__file__).parents[1].joinpath("perplexity.txt")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
# The expression that splits text before Llama 3's merges, as its tokenizer.json has it.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def text():
    """Returns the text that vocabularies and models are trained on."""
    return TEXT.read_text(encoding="utf-8")


def byte_level(pre_tokenizer, specials, ignore_merges=False):
    """Returns a byte-level BPE tokenizer; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text()], trainer)
    return tokenizer


def smollm():
    """Returns the tokenizer in SmolLM2's manner."""
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(pre_tokenizers.Sequence(steps), specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def llama3():
    """Returns the tokenizer in Llama 3's manner: it puts its first token before every text."""
    steps = [
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(pre_tokenizers.Sequence(steps), specials, ignore_merges=True)
    first = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B", special_tokens=[("<|begin_of_text|>", 0)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=LLAMA3,
        clean_up_tokenization_spaces=False,
    )


def sentence_pieces():
    """Returns pieces in SentencePiece's order with their scores: controls, bytes, merged, letters."""
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, show_progress=False)
    plain.train_from_iterator(text().split("\n"), trainer)
    learned = sorted(plain.get_vocab().items(), key=lambda item: item[1])
    letters = [piece for piece, _ in learned if len(piece) == 1]
    merged = [piece for piece, _ in learned if len(piece) > 1]
    controls = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    room = VOCAB_SIZE + 96 - len(controls) - len(letters)
    pieces = merged[:room] + letters
    scores = [0.0] * len(controls) + [-float(rank) for rank in range(len(pieces))]
    return controls + pieces, scores


def llama2():
    """Returns the tokenizer in Llama 2's manner, with the pieces' scores."""
    pieces, scores = sentence_pieces()
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in pieces[259:]:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [(left, right) for left, right in pairs if left in ids and right in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=LLAMA2,
        clean_up_tokenization_spaces=False,
    )
    return wrapped, scores
