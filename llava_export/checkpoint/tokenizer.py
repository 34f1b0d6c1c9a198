"""The tokenizer of a checkpoint, as a SentencePiece model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_export.checkpoint.locate import read_json
from llava_export.errors import CheckpointError
from llava_runner.contract import TOKENIZER_MODEL
from llava_runner.tokenizer import BYTE_PIECE


def sentencepiece_model(checkpoint: Path) -> bytes:
    """Return the content of a ``tokenizer.model`` for a checkpoint's folder.

    It is the checkpoint's own or, where there is none, made from its ``tokenizer.json``. Raises ``CheckpointError``
    when neither is there, or when it is not a SentencePiece BPE.
    """
    from sentencepiece import SentencePieceProcessor

    path = checkpoint / TOKENIZER_MODEL
    if path.is_file():
        model = path.read_bytes()
        try:
            SentencePieceProcessor().LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise CheckpointError(f"{path} is not a SentencePiece model") from error
        return model
    if (checkpoint / "tokenizer.json").is_file():
        return _from_json(read_json(checkpoint / "tokenizer.json"), checkpoint)
    raise CheckpointError(f"{checkpoint} has no tokenizer.model and no tokenizer.json; a package needs a tokenizer")


def _from_json(tokenizer: dict[str, Any], checkpoint: Path) -> bytes:
    """Return the serialized SentencePiece model that a ``tokenizer.json`` of the Llama kind was made from.

    SentencePiece merges the pair whose piece has the highest score, and the JSON lists the best merge first. So a
    piece's score is minus the rank of the first merge that makes it. Pieces that no merge makes come after all others;
    special pieces have the score 0.
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
    """Return whether the tokenizer puts a space before the text and normalizes nothing else.

    Newer files have this as a ``pre_tokenizer``, older ones as a ``normalizer``.
    """
    splitter = tokenizer.get("pre_tokenizer") or {}
    if splitter:
        return splitter.get("type") == "Metaspace" and splitter.get("prepend_scheme") in ("first", "always")
    steps = (tokenizer.get("normalizer") or {}).get("normalizers", [])
    return [step.get("type") for step in steps] == ["Prepend", "Replace"]
