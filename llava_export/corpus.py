"""A text to measure a model on, or to calibrate it with: token ids, read from a file or made from text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.errors import CorpusError
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.prompt import Span

ARRAY = ".npy"
CORPUS_AT_MOST = 1 << 30  # bytes of a file
PIECE_OF_TEXT = 1 << 18  # characters that are tokenized at once; tokenizers take no text of any length


@dataclass(frozen=True)
class Corpus:
    """The token ids of a text, int64 ``[L]``. With a ``bos_id``, that token begins every window."""

    ids: Tensor
    bos_id: int | None

    def windows(self, count: int, *, length: int) -> list[Tensor]:
        """Return at most ``count`` windows of ``length`` tokens each, evenly spread over the text without overlap.

        They are fewer where the text is too short for as many. Raises ``CorpusError`` if it is too short for one.
        """
        if length < 2:
            raise CorpusError(f"a window of {length} token has no next one; it takes at least 2")
        taken = length if self.bos_id is None else length - 1
        if len(self.ids) < taken:
            raise CorpusError(
                f"the text is too short for a window of {length} tokens: it has {len(self.ids)}; "
                "a shorter --window-len may fit"
            )
        count = min(count, len(self.ids) // taken)
        begin = [] if self.bos_id is None else [self.bos_id]
        starts = [i * len(self.ids) // count for i in range(count)]
        return [torch.cat([torch.tensor(begin, dtype=torch.int64), self.ids[at : at + taken]]) for at in starts]


def open_corpus(path: Path, checkpoint: Checkpoint) -> Corpus:
    """Return a text file's tokens by a checkpoint's tokenizer, or the token ids in an ``.npy`` file as they are.

    Where the checkpoint's texts begin with a token for that, so does every window of a text file. Raises
    ``CorpusError`` for a file that cannot be read as one, or has ids outside the vocabulary.
    """
    bos_id = None
    if path.suffix == ARRAY:
        ids = read_ids(path)
    else:
        bos_id = begin_id(checkpoint)
        tokenizer = checkpoint.tokenizer.chat_tokenizer(bos_id=checkpoint.config.bos_id)
        ids = encode_text(read_text(path), tokenizer, begins=bos_id is not None)
    if not len(ids):
        raise CorpusError(f"{path} has no tokens")
    check_vocabulary(ids, checkpoint, name=str(path))
    if len(ids) == 1 and bos_id is None:
        raise CorpusError(f"{path} has one token, and no next one to compare")
    return Corpus(ids, bos_id)


def begin_id(checkpoint: Checkpoint) -> int | None:
    """Return the token that a checkpoint's texts begin with, or None if there is none."""
    return checkpoint.config.bos_id if checkpoint.tokenizer.rules.adds_bos else None


def check_vocabulary(ids: Tensor, checkpoint: Checkpoint, *, name: str) -> None:
    """Raise ``CorpusError``, which names where they are from, for ids outside a checkpoint's vocabulary."""
    vocab_size = checkpoint.config.text.vocab_size
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if len(wrong):
        raise CorpusError(
            f"{name} has the token id {int(wrong[0])}; the model's vocabulary has the ids 0 to {vocab_size - 1}"
        )


def read_ids(path: Path) -> Tensor:
    """Return the token ids in an ``.npy`` file, int64 ``[L]``. Raises ``CorpusError`` for what is no such file."""
    _check_file(path)
    try:
        with path.open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy reads a header by Python's tokenizer and parser, whose errors are of many types
        raise CorpusError(f"{path} is no array of numbers that numpy saved, or damaged") from error
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise CorpusError(
            f"{path} has {found.dtype} values in {found.ndim} dimensions; token ids are whole numbers in one dimension"
        )
    if found.dtype == np.uint64 and len(found):
        found = np.minimum(found, np.uint64(2**63 - 1))
    return torch.from_numpy(found.astype(np.int64))


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ``CorpusError`` for what is no such file, too large, or not UTF-8."""
    _check_file(path)
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text at byte {error.start}") from error


def _check_file(path: Path) -> None:
    """Raise ``CorpusError`` for what is no file, or too large a one."""
    if not path.is_file():
        raise CorpusError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if path.stat().st_size > CORPUS_AT_MOST:
        raise CorpusError(f"{path} is too large: at most {CORPUS_AT_MOST >> 30} GiB are read")


def encode_text(text: str, tokenizer: ChatTokenizer, *, begins: bool) -> Tensor:
    """Return the ids of a text, int64 ``[L]``, without the token that texts begin with if they do (``begins``)."""
    ids: list[int] = []
    for part in parts_of(text, length=PIECE_OF_TEXT):
        (piece,) = tokenizer.encode_turn([(Span(part, is_template=False),)])
        ids += piece[int(begins) :]
    return torch.tensor(ids, dtype=torch.int64)


def parts_of(text: str, *, length: int) -> Iterator[str]:
    """Yield the parts of a text, of at most so many characters. They end with a line, or a word, where they can."""
    start = 0
    while start < len(text):
        end = start + length
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end
        yield text[start:end]
        start = end
