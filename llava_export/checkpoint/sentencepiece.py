"""A SentencePiece tokenizer of a checkpoint: its pieces, its added tokens, and its rules about spaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_export.checkpoint.added_tokens import content_of, find_added
from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.checkpoint.pieces import NOT_LLAMAS, sentencepiece_model
from llava_export.errors import CheckpointError
from llava_runner.contract import TOKENIZER_JSON, TOKENIZER_MODEL, AddedToken, TokenizerRules
from llava_runner.documents import JsonObject, shown
from llava_runner.tokenizer import SPACE, Piece, Tokenizer, read_model

# The kinds of pieces that stand for no text of their own, so that an added token may take their place.
PLACEHOLDERS = (Piece.CONTROL, Piece.USER_DEFINED, Piece.UNUSED)
PAD = "<pad>"  # readers of tokenizer.bin take it for a control piece


@dataclass(frozen=True)
class SentencePieceTokenizer(CheckpointTokenizer):
    """A checkpoint's tokenizer with a SentencePiece ``model``, serialized, that has the added tokens as pieces.

    Ids between them that no token has are unused pieces.
    """

    model: bytes

    @cached_property
    def pieces(self) -> list[Any]:
        """All pieces by id, as ``ModelProto.SentencePiece``."""
        return list(read_model(self.model).pieces)

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self.pieces)

    @property
    def files(self) -> Mapping[str, bytes]:
        """The model, as SentencePiece reads it."""
        return {TOKENIZER_MODEL: self.model}

    @property
    def needs_bos(self) -> bool:
        """True: Llama's do."""
        return True

    def base(self) -> Tokenizer:
        """Return the tokenizer as a runner opens it."""
        return Tokenizer.from_model(self.model)

    def text(self, token_id: int) -> str:
        """Return how a token is spelled; "" for an id beyond the pieces."""
        return self.pieces[token_id].piece.replace(SPACE, " ") if 0 <= token_id < len(self.pieces) else ""

    def begin(self, bos_id: int) -> str:
        """Return how the token is spelled that conversations begin with: every such tokenizer has one."""
        return self.text(bos_id)


def open_sentencepiece(
    folder: Path, settings: JsonObject, tokenizer_json: JsonObject, *, vocab_size: int, chunks_are_texts: bool
) -> SentencePieceTokenizer:
    """Return the tokenizer in a checkpoint's folder, checked, as ``open_tokenizer`` does.

    ``settings`` are those of ``tokenizer_config.json``, and ``tokenizer_json`` may be empty.
    """
    # LLaVA's own code reads tokenizer.model alone.
    prepend_scheme = _prepend_scheme(settings, None if chunks_are_texts else tokenizer_json)
    model = read_model(sentencepiece_model(folder))
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    added = find_added(folder, settings, tokenizer_json, own=_marked(model.pieces), ids=ids, vocab_size=vocab_size)
    for token in added.tokens:
        same = ids.setdefault(token.content.replace(" ", SPACE), token.id)
        if same != token.id:
            raise CheckpointError(
                f"the added token {shown(token.content)} has the id {token.id}, and the piece of the same text {same}"
            )
        _add_piece(model, token)
    if len(model.pieces) > vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(model.pieces)} pieces and the model's vocabulary {vocab_size}; it belongs to "
            "another model"
        )
    for piece in model.pieces:
        if piece.type in PLACEHOLDERS:
            piece.score = 0.0  # by which readers of tokenizer.bin know that it is no ordinary piece
    model.trainer_spec.vocab_size = len(model.pieces)
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    spec = model.trainer_spec
    bos, eos = (content_of(settings.get(name)).replace(" ", SPACE) for name in ("bos_token", "eos_token"))
    rules = TokenizerRules(
        prepend_scheme=prepend_scheme,
        image_begins_text=chunks_are_texts,
        adds_bos=_adds_bos(settings, None if chunks_are_texts else tokenizer_json),
        added_tokens=added.tokens,
    )
    return SentencePieceTokenizer(
        source=TOKENIZER_MODEL if (folder / TOKENIZER_MODEL).is_file() else TOKENIZER_JSON,
        rules=rules,
        bos_id=ids.get(bos, spec.bos_id),
        eos_id=ids.get(eos, spec.eos_id),
        notes=added.notes,
        model=model.SerializeToString(),
    )


def _marked(pieces: Any) -> list[AddedToken]:
    """Return the added tokens that pieces are by their types."""
    return [
        AddedToken(
            i, piece.piece.replace(SPACE, " "), special=piece.type != Piece.USER_DEFINED, lstrip=False, rstrip=False,
            normalized=False,
        )
        for i, piece in enumerate(pieces)
        if piece.type in (Piece.CONTROL, Piece.UNKNOWN, Piece.USER_DEFINED)
    ]  # fmt: skip


def _add_piece(model: Any, token: AddedToken) -> None:
    """Give a SentencePiece model an added token. Raises ``CheckpointError`` if its id is an ordinary piece's."""
    content = token.content.replace(" ", SPACE)
    while len(model.pieces) < token.id:
        model.pieces.add(piece=f"[PAD{len(model.pieces)}]", score=0.0, type=Piece.UNUSED)
    if token.id == len(model.pieces):
        kind = Piece.CONTROL if content == PAD else Piece.USER_DEFINED
        model.pieces.add(piece=content, score=0.0, type=kind)
        return
    piece = model.pieces[token.id]
    if piece.piece == content:
        return
    if piece.type not in PLACEHOLDERS:
        raise CheckpointError(
            f"the added token {shown(token.content)} has the id {token.id}, which is that of the piece "
            f"{shown(piece.piece)}"
        )
    piece.piece, piece.score, piece.type = content, 0.0, Piece.USER_DEFINED


def _prepend_scheme(settings: JsonObject, tokenizer_json: JsonObject | None) -> str:
    """Return which segments of a text get a space, as ``TokenizerRules`` names it. Raises ``CheckpointError``.

    ``tokenizer.json`` says it as a pre-tokenizer, older ones as a normalizer. Without one, the settings do:
    ``legacy`` is true for tokenizers from before transformers 4.31, and where nothing is said.
    """
    if tokenizer_json:
        splitter = tokenizer_json.section("pre_tokenizer", {})
        normalizer = tokenizer_json.section("normalizer", {})
        steps = [step.get("type") for step in normalizer.sections("normalizers", [normalizer] if normalizer else [])]
        if steps == ["Prepend", "Replace"] and not splitter:
            return "prepend"
        if splitter.get("type") == "Metaspace" and not steps and splitter.get("split") is False:
            scheme = splitter.text("prepend_scheme", "always")
            if scheme in ("first", "always", "never"):
                return scheme
        if steps == ["Replace"] and not splitter:
            return "never"
        raise CheckpointError(f"{tokenizer_json.where()} is {NOT_LLAMAS}: it treats spaces in another way")
    if not settings.flag("add_prefix_space", True):
        return "never"
    return "always" if settings.flag("legacy", True) else "first"


def _adds_bos(settings: JsonObject, tokenizer_json: JsonObject | None) -> bool:
    """Return whether a text begins with the token for that.

    The post-processor decides and, without a ``tokenizer.json``, the settings. transformers ignores them beside one.
    """
    if not tokenizer_json:
        has_none = "bos_token" in settings and settings["bos_token"] is None
        return not has_none and settings.flag("add_bos_token", True)
    processor = tokenizer_json.section("post_processor", {})
    steps = [processor, *processor.sections("processors", [])]
    begins = [step.sections("single")[0] for step in steps if step.get("single")]
    return any("SpecialToken" in begin for begin in begins)
