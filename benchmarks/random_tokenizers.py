"""Tokenizers for checkpoints with random weights, trained on the sources of Python's standard library and of numpy.

Their merges are real, and they have as many tokens as the published ones, with the special ones at the same ids.
"""

from __future__ import annotations

import io
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from llava_export.gguf.vocabulary import LLAMA3, QWEN2

PIECES = 32000
RESERVED = 256  # special tokens of Llama 3, behind the others
LLAMA3_SPECIAL = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>",
                  9: "<|eot_id|>"}  # fmt: skip


@dataclass(frozen=True)
class ByteLevel:
    """A byte-level BPE: the pattern that splits a text, how many tokens are merged, the special ones behind them."""

    pattern: str
    tokens: int
    special: tuple[str, ...]
    bos: str | None
    eos: str
    is_nfc: bool = False


def _llama3(*behind: str) -> ByteLevel:
    """Return Llama 3's, with further special tokens behind its own."""
    own = (LLAMA3_SPECIAL.get(i, f"<|reserved_special_token_{i}|>") for i in range(RESERVED))
    return ByteLevel(LLAMA3, 128000, (*own, *behind), bos="<|begin_of_text|>", eos="<|eot_id|>")


# Of the models of published_configs.py that have no SentencePiece model.
BYTE_LEVEL = {
    "llava-llama-3-8b": _llama3("<pad>", "<image>"),
    "llama-joycaption-8b": _llama3(),
    "llava-interleave-qwen-0.5b": ByteLevel(
        QWEN2,
        151643,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"),
        bos=None,
        eos="<|im_end|>",
        is_nfc=True,
    ),
}


def write_tokenizer(name: str, folder: Path) -> None:
    """Write the files of a tokenizer like that of the model ``name``."""
    if name in BYTE_LEVEL:
        write_byte_level(BYTE_LEVEL[name], folder)
    else:
        write_sentencepiece(folder / "tokenizer.model")


def write_sentencepiece(path: Path) -> None:
    """Write a BPE like Llama's."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=source_lines(),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=0.9995,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def write_byte_level(wanted: ByteLevel, folder: Path) -> None:
    """Write a ``tokenizer.json`` with a ``tokenizer_config.json``."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    if wanted.is_nfc:
        tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(wanted.pattern), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted.tokens, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(source_lines(), trainer)
    tokenizer.add_special_tokens(list(wanted.special))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if wanted.bos:
        begin = (wanted.bos, tokenizer.token_to_id(wanted.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{wanted.bos} $A", special_tokens=[begin])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"bos_token": wanted.bos, "eos_token": wanted.eos}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def source_lines() -> Iterator[str]:
    """Yield the lines of the sources of Python's standard library and of numpy."""
    standard = sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py"))
    files = [path for path in standard if "site-packages" not in path.parts]
    for path in (*files, *sorted(Path(numpy.__file__).parent.glob("**/*.py"))):
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
            if 0 < len(line) < 1000 and "\0" not in line:
                yield line
