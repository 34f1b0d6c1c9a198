"""The tokenizer of a checkpoint: which kind it is, and what all kinds have in common."""

from __future__ import annotations

from pathlib import Path

from llava_export.checkpoint.byte_level import open_byte_level
from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.checkpoint.documents import object_in
from llava_export.checkpoint.sentencepiece import open_sentencepiece
from llava_export.errors import CheckpointError
from llava_runner.bpe_model import is_byte_level
from llava_runner.contract import TOKENIZER_JSON, TOKENIZER_MODEL
from llava_runner.documents import JsonObject

SLOW_FILES = ("vocab.json", "merges.txt")  # of a byte-level BPE, as transformers' code in Python reads it


def open_tokenizer(folder: Path, *, vocab_size: int, chunks_are_texts: bool) -> CheckpointTokenizer:
    """Return the tokenizer in a checkpoint's folder, checked.

    ``vocab_size`` is the number of embedding rows. With ``chunks_are_texts``, the code that trained the model tokenizes
    what follows an image as a text of its own. Raises ``CheckpointError`` for a tokenizer that is missing, damaged, or
    of a kind that the runners do not have.
    """
    settings, tokenizer = object_in(folder / "tokenizer_config.json"), object_in(folder / TOKENIZER_JSON)
    has_json, has_model = (folder / TOKENIZER_JSON).is_file(), (folder / TOKENIZER_MODEL).is_file()
    if not has_json and not has_model:
        raise CheckpointError(_missing(folder))
    if has_json and (is_byte_level(tokenizer) or not (has_model or _is_of_sentencepiece(tokenizer))):
        return open_byte_level(folder, settings, tokenizer, vocab_size=vocab_size, image_begins_text=chunks_are_texts)
    return open_sentencepiece(folder, settings, tokenizer, vocab_size=vocab_size, chunks_are_texts=chunks_are_texts)


def _is_of_sentencepiece(tokenizer: JsonObject) -> bool:
    """Return whether a ``tokenizer.json`` was made from a SentencePiece model, as Llama's are."""
    model = tokenizer.section("model", {})
    return model.get("type") == "BPE" and model.get("byte_fallback") is True


def _missing(folder: Path) -> str:
    """Return the words about a folder without a tokenizer."""
    if all((folder / name).is_file() for name in SLOW_FILES):
        return (
            f"{folder} has {' and '.join(SLOW_FILES)} but no {TOKENIZER_JSON}, which is read here. transformers makes "
            f"one of them: AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return f"{folder} has no {TOKENIZER_MODEL} and no {TOKENIZER_JSON}; a package needs a tokenizer"
