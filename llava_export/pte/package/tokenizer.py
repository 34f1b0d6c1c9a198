"""The tokenizer of a package.

It is SentencePiece's ``tokenizer.model``, and ``tokenizer.bin`` for runners without that library; or the checkpoint's
own ``tokenizer.json`` for a byte-level BPE.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.checkpoint.sentencepiece import SentencePieceTokenizer
from llava_export.errors import CheckpointError
from llava_runner import contract
from llava_runner.documents import shown
from llava_runner.tokenizer import SPACE, Piece, Tokenizer, model_from_bin, read_model

# Texts that tokenizers treat in different ways: spaces, line ends, other alphabets, characters of several code points,
# compatibility forms, and what looks like a special piece.
PROBES = (
    "", " ", "   ", " a  b ", "a\n\nb\t", "What is in the image?", "USER: <image>\nHi ASSISTANT:", "</s><s>", "<0x41>",
    "Grüße aus Zürich", "是在有人", "🙂👩‍👩‍👧 e\u0301 \u00a0x\u3000y", "ﬁ Ａ① ½", "\u2581a", "I'm 12,345.67!",
)  # fmt: skip
NUM_RANDOM_PROBES = 500
# The types of pieces that byte pair encoding does not make. Runners know from the model card what they stand for.
ADDED = (Piece.CONTROL, Piece.USER_DEFINED, Piece.UNUSED)


def write_tokenizer(tokenizer: CheckpointTokenizer, folder: Path) -> None:
    """Write a tokenizer's files to ``folder``.

    The added tokens of a SentencePiece model are user-defined pieces, which other runners find in a text. Raises
    ``CheckpointError`` for one that ``tokenizer.bin`` cannot express.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        for name, content in tokenizer.files.items():
            (folder / name).write_bytes(content)
        return
    content = tokenizer.model
    spec = read_model(content).trainer_spec
    if min(spec.bos_id, spec.eos_id) < 0:
        raise CheckpointError("the checkpoint's tokenizer has no token for the begin or the end of a text")
    with _quiet_stderr():  # the libraries print a greeting there when they are loaded
        from pytorch_tokenizers.llama2c import Llama2cTokenizer

    with TemporaryDirectory() as scratch:  # whose name is Unicode, as SentencePiece needs it
        model, binary = Path(scratch) / contract.TOKENIZER_MODEL, Path(scratch) / contract.TOKENIZER_BIN
        model.write_bytes(content)
        Llama2cTokenizer(str(model)).export(str(binary))
        written = binary.read_bytes()
    try:
        check_same(content, written)
    except ValueError as error:
        raise CheckpointError(f"tokenizer.bin cannot express the checkpoint's tokenizer: {error}") from error
    (folder / contract.TOKENIZER_MODEL).write_bytes(content)
    (folder / contract.TOKENIZER_BIN).write_bytes(written)


def check_same(model: bytes, binary: bytes) -> None:
    """Raise ``ValueError`` unless a ``tokenizer.bin`` says the same as the SentencePiece model it was written from."""
    ours, theirs = read_model(model), model_from_bin(binary)
    for name in ("byte_fallback", "unk_surface"):
        found, expected = getattr(theirs.trainer_spec, name), getattr(ours.trainer_spec, name)
        if found != expected:
            raise ValueError(f"{name} is {shown(expected)}, and readers take it for {shown(found)}")
    for i, (piece, other) in enumerate(zip(ours.pieces, theirs.pieces, strict=True)):
        if piece.type != other.type and not (piece.type in ADDED and other.type in ADDED):
            expected, found = (Piece.Type.Name(it.type) for it in (piece, other))
            raise ValueError(
                f"piece {i}, {shown(piece.piece)}, is {expected} with the score {piece.score:g}, and readers take it "
                f"for {found}"
            )
        if piece.type == Piece.NORMAL and (piece.piece, piece.score) != (other.piece, other.score):
            raise ValueError(f"piece {i}, {shown(piece.piece)}, is read as {shown(other.piece)}")
    first, second = Tokenizer.from_model(model), Tokenizer.from_model(theirs.SerializeToString())
    if (first.bos_id, first.eos_id) != (second.bos_id, second.eos_id):
        raise ValueError("its special tokens have other ids there")
    for text in _probes(ours):
        if first.encode_pieces(text) != second.encode_pieces(text):
            raise ValueError(f"{shown(text)} has other tokens there")
    for token_id in range(first.vocab_size):
        is_added = ours.pieces[token_id].type in ADDED
        if not is_added and first.decode_piece(token_id) != second.decode_piece(token_id):
            raise ValueError(f"token {token_id} has another text there")


def _probes(model: Any) -> Iterator[str]:
    """Yield texts to tokenize: of several alphabets, with every special piece, and of random pieces."""
    yield from PROBES
    for piece in model.pieces:
        if piece.type not in (Piece.NORMAL, Piece.BYTE, Piece.UNUSED):
            yield from (piece.piece, f"a{piece.piece}b", f" {piece.piece} {piece.piece}")
    generator = random.Random(0)
    texts = [piece.piece.replace(SPACE, " ") for piece in model.pieces]
    for _ in range(NUM_RANDOM_PROBES):
        yield "".join(generator.choices(texts, k=generator.randrange(1, 9)))


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard what native code writes to stderr."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
