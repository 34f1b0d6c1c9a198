"""A ``tokenizer.json`` of a byte-level BPE to damage, and a checkpoint's reading of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava_export.checkpoint.tokenizer import open_tokenizer
from llava_runner.bpe_model import ALPHABET
from llava_runner.contract import MAX_VOCAB
from llava_runner.prompt import Span


def small_byte_level() -> dict[str, Any]:
    """Return a ``tokenizer.json`` of a byte-level BPE, with a few merges."""
    texts = [*ALPHABET, "ab", "\u0120a", "<|end|>"]
    added = {"id": 258, "content": "<|end|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s+(?!\S)"}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "added_tokens": [{**added, "normalized": False}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {
            "type": "Sequence", "pretokenizers": [split, {"type": "Digits", "individual_digits": True}, last],
        },
        "post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|end|>"}}, {"Sequence": {}}],
        },
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE", "dropout": None, "ignore_merges": True, "vocab": {text: i for i, text in enumerate(texts)},
            "merges": ["a b", ["\u0120", "a"]],
        },
    }  # fmt: skip


SEED = json.dumps(small_byte_level()).encode()


def read(path: Path) -> None:
    """Open the tokenizer of a checkpoint's folder, and use it."""
    tokenizer = open_tokenizer(path.parent, vocab_size=MAX_VOCAB, chunks_are_texts=False)
    tokenizer.chat_tokenizer(bos_id=0).encode_turn([(Span("a e\u0301<|end|>12", is_template=True),)])
    for token_id in range(tokenizer.vocab_size if tokenizer.vocab_size < 1000 else 0):
        tokenizer.text(token_id)
