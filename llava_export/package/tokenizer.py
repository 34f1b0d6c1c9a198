"""The tokenizer of a package: SentencePiece's ``tokenizer.model``, and ``tokenizer.bin`` for runners without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_export.checkpoint.locate import read_json
from llava_export.errors import CheckpointError
from llava_runner import contract
from llava_runner.tokenizer import BYTE_PIECE


def write_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Both files, from the checkpoint's ``tokenizer.model`` or, where there is none, its ``tokenizer.json``.

    Raises ``CheckpointError`` when neither is there or the latter is no SentencePiece BPE.
    """
    with _quiet():  # its libraries greet on stderr when they are loaded
        from pytorch_tokenizers.llama2c import Llama2cTokenizer

    model = folder / contract.TOKENIZER_MODEL
    if (checkpoint / contract.TOKENIZER_MODEL).is_file():
        model.write_bytes((checkpoint / contract.TOKENIZER_MODEL).read_bytes())
    elif (checkpoint / "tokenizer.json").is_file():
        model.write_bytes(sentencepiece_model(read_json(checkpoint / "tokenizer.json"), checkpoint))
    else:
        raise CheckpointError(f"{checkpoint} has no tokenizer.model and no tokenizer.json; a package needs a tokenizer")
    try:
        Llama2cTokenizer(str(model)).export(str(folder / contract.TOKENIZER_BIN))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint / contract.TOKENIZER_MODEL} is not a SentencePiece model") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what native code writes to stderr nowhere."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def sentencepiece_model(tokenizer: dict[str, Any], checkpoint: Path) -> bytes:
    """A ``tokenizer.json`` of the Llama kind as the SentencePiece model it was made from, serialized.

    SentencePiece merges the pair whose piece has the highest score, the json lists merges best first: so a piece's
    score is minus the rank of the first merge that makes it. Pieces that no merge makes come after all; special ones
    have the score 0.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or not model.get("byte_fallback") or not _spells_spaces_like_llama(tokenizer):
        raise CheckpointError(
            f"tokenizer.json in {checkpoint} is no SentencePiece BPE with byte fallback and a space before the text, "
            "as Llama tokenizers are; put the model's tokenizer.model there"
        )
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    piece_type = ModelProto.SentencePiece
    unknown = model.get("unk_token") or "<unk>"
    special = {token["content"] for token in tokenizer.get("added_tokens", []) if token.get("special")}
    proto = ModelProto()
    for text, token_id in sorted(model["vocab"].items(), key=lambda item: item[1]):
        if text == unknown:
            kind, score = piece_type.UNKNOWN, 0
        elif BYTE_PIECE.fullmatch(text):
            kind, score = piece_type.BYTE, 0
        elif text in special:
            kind, score = piece_type.CONTROL, 0
        else:
            kind, score = piece_type.NORMAL, rank.get(text, len(merges) + token_id)
        proto.pieces.add(piece=text, score=-float(score), type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_piece = unknown
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


def _spells_spaces_like_llama(tokenizer: dict[str, Any]) -> bool:
    """Nothing is normalized, but a space goes before the text; newer files and older ones say so differently."""
    splitter = tokenizer.get("pre_tokenizer") or {}
    if splitter:
        return splitter.get("type") == "Metaspace" and splitter.get("prepend_scheme") in ("first", "always")
    steps = (tokenizer.get("normalizer") or {}).get("normalizers", [])
    return [step.get("type") for step in steps] == ["Prepend", "Replace"]
