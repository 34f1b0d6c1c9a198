"""The pieces of a checkpoint's tokenizer, as a SentencePiece model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_export.errors import CheckpointError
from llava_runner.contract import TOKENIZER_MODEL
from llava_runner.documents import JsonObject, read_object, shown
from llava_runner.tokenizer import BYTE_PIECE, Piece, Tokenizer, read_model, schema

NOT_LLAMAS = "no SentencePiece BPE with byte fallback, as Llama's tokenizers are"


def sentencepiece_model(checkpoint: Path) -> bytes:
    """Return the content of a ``tokenizer.model`` for a checkpoint's folder.

    It is the checkpoint's own or, where there is none, made from its ``tokenizer.json``. Raises ``CheckpointError``
    when neither is there, when it is damaged, or when it is not a BPE of Llama's kind, which is all that the runtimes
    have.
    """
    path = checkpoint / TOKENIZER_MODEL
    if path.is_file():
        content = path.read_bytes()
    elif (checkpoint / "tokenizer.json").is_file():
        path = checkpoint / "tokenizer.json"
        content = _from_json(read_object(path, error=CheckpointError), checkpoint)
    else:
        raise CheckpointError(f"{checkpoint} has no tokenizer.model and no tokenizer.json; a package needs a tokenizer")
    try:
        _check_kind(read_model(content))
        Tokenizer.from_model(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a SentencePiece model that can be used: {error}") from error
    return content


def _check_kind(model: Any) -> None:
    """Raise ``ValueError`` unless a model treats text as Llama's does.

    A ``tokenizer.bin`` and a GGUF file cannot say anything else: their readers put a space before the text, change
    nothing else in it, and merge pairs.
    """
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kinds = dict(trainer.ModelType.items())
    has_bytes = any(piece.type == Piece.BYTE for piece in model.pieces)
    for is_other, what in (
        (
            trainer.model_type != kinds["BPE"],
            f"it is of the kind {trainer.ModelType.Name(trainer.model_type)}, not BPE",
        ),
        (trainer.byte_fallback != has_bytes, "its byte_fallback does not fit its pieces"),
        (trainer.treat_whitespace_as_suffix, "it puts spaces behind words (treat_whitespace_as_suffix)"),
        (not normalizer.add_dummy_prefix, "it puts no space before the text (add_dummy_prefix is off)"),
        (normalizer.remove_extra_whitespaces, "it removes repeated spaces (remove_extra_whitespaces is on)"),
        (not normalizer.escape_whitespaces, "it does not escape spaces (escape_whitespaces is off)"),
        (normalizer.precompiled_charsmap, f"it changes characters (normalization rules {shown(normalizer.name)})"),
        (model.denormalizer_spec.precompiled_charsmap, "it changes characters of its output (denormalization rules)"),
    ):
        if is_other:
            raise ValueError(f"{what}, which the files of an export cannot express")


def _from_json(tokenizer: JsonObject, checkpoint: Path) -> bytes:
    """Return the serialized SentencePiece model that a ``tokenizer.json`` of the Llama kind was made from.

    SentencePiece merges the pair whose piece has the highest score, and the JSON lists the best merge first. So a
    piece's score is minus the rank of the first merge that makes it. Pieces that no merge makes come after all others;
    special pieces have the score 0.
    """
    model = tokenizer.section("model", {})
    if model.get("type") != "BPE" or not model.flag("byte_fallback", False):
        raise CheckpointError(f"tokenizer.json in {checkpoint} is {NOT_LLAMAS}; put the model's tokenizer.model there")
    vocab = model.section("vocab")
    ids = {text: vocab.integer(text) for text in vocab}
    if sorted(ids.values()) != list(range(len(ids))):
        raise CheckpointError(f"{vocab.where()} has ids that are missing or given twice")
    merges = model.items_of("merges")
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise CheckpointError(f"{model.where(f'merges[{i}]')} is {shown(merge)}; it must be a pair of pieces")
        rank.setdefault(pair[0] + pair[1], i)
    unknown = model.text("unk_token", "<unk>")
    special = {
        token.text("content") for token in tokenizer.sections("added_tokens", []) if token.flag("special", False)
    }
    proto = schema.ModelProto()
    for text, token_id in sorted(ids.items(), key=lambda item: item[1]):
        if text == unknown:
            kind, score = Piece.UNKNOWN, 0
        elif BYTE_PIECE.fullmatch(text):
            kind, score = Piece.BYTE, 0
        elif text in special:
            kind, score = Piece.CONTROL, 0
        else:
            kind, score = Piece.NORMAL, rank.get(text, len(merges) + token_id)
        # JSON can hold half a character; a piece cannot. Nobody could ever type it.
        proto.pieces.add(piece=text.encode("utf-8", "replace").decode(), score=-float(score), type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_piece = unknown.encode("utf-8", "replace").decode()
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()
