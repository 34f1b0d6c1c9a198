"""The tokenizer of a checkpoint: its pieces, its added tokens, and its rules about spaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_export.checkpoint.pieces import NOT_LLAMAS, sentencepiece_model
from llava_export.errors import CheckpointError
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import MAX_ADDED_TOKENS, AddedToken, TokenizerRules
from llava_runner.documents import JsonObject, read_object, shown
from llava_runner.tokenizer import PIECE_AT_MOST, SPACE, Piece, Tokenizer, read_model

# The keys under which tokenizer_config.json and special_tokens_map.json name special tokens: one each, or lists.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED_TOKENS = ("additional_special_tokens", "extra_special_tokens")
# The kinds of pieces that stand for no text of their own, so that an added token may take their place.
PLACEHOLDERS = (Piece.CONTROL, Piece.USER_DEFINED, Piece.UNUSED)
MAX_ID_LENGTH = 9  # digits
PAD = "<pad>"  # readers of tokenizer.bin take it for a control piece


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A checkpoint's tokenizer. ``model`` is a SentencePiece model, serialized, with the added tokens as pieces.

    Ids between them that no token has are unused pieces. ``bos_id`` and ``eos_id`` are -1 where there is no such token.
    ``notes`` are sentences for the user about what was left out.
    """

    model: bytes
    rules: TokenizerRules
    bos_id: int
    eos_id: int
    notes: tuple[str, ...]

    @cached_property
    def pieces(self) -> list[Any]:
        """All pieces by id, as ``ModelProto.SentencePiece``."""
        return list(read_model(self.model).pieces)

    def chat_tokenizer(self, *, bos_id: int) -> ChatTokenizer:
        """Return the tokenizer as a runner has it."""
        return ChatTokenizer(Tokenizer.from_model(self.model), rules=self.rules, bos_id=bos_id)

    def text(self, token_id: int) -> str:
        """Return how a token is spelled; "" for an id beyond the pieces."""
        return self.pieces[token_id].piece.replace(SPACE, " ") if 0 <= token_id < len(self.pieces) else ""


def open_tokenizer(folder: Path, *, vocab_size: int, chunks_are_texts: bool) -> CheckpointTokenizer:
    """Return the tokenizer in a checkpoint's folder, checked.

    ``vocab_size`` is the number of embedding rows. With ``chunks_are_texts``, the code that trained the model tokenizes
    what follows an image as a text of its own. Raises ``CheckpointError`` for a tokenizer that is missing, damaged, or
    of a kind that the runners do not have.
    """
    settings = object_in(folder / "tokenizer_config.json")
    tokenizer_json = object_in(folder / "tokenizer.json")
    # LLaVA's own code reads tokenizer.model alone.
    prepend_scheme = _prepend_scheme(settings, None if chunks_are_texts else tokenizer_json)
    model = read_model(sentencepiece_model(folder))
    listed = _added_tokens(folder, settings, tokenizer_json, model.pieces)
    named = _named_tokens({**object_in(folder / "special_tokens_map.json"), **settings})
    listed = _with_named(listed, named, pieces=model.pieces, vocab_size=vocab_size)
    added = tuple(token for token in listed if token.id < vocab_size or not token.special)
    if len(added) > MAX_ADDED_TOKENS:
        raise CheckpointError(f"{folder} has {len(added):,} added tokens; at most {MAX_ADDED_TOKENS:,} are taken")
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    for token in added:
        _check_content(token)
        same = ids.setdefault(token.content.replace(" ", SPACE), token.id)
        if same != token.id:
            raise CheckpointError(
                f"the added token {shown(token.content)} has the id {token.id}, and the piece of the same text {same}"
            )
        if token.id >= vocab_size:
            raise CheckpointError(
                f"the added token {shown(token.content)} has the id {token.id}, and the model's vocabulary "
                f"{vocab_size} tokens"
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
        added_tokens=added,
    )
    return CheckpointTokenizer(
        model.SerializeToString(),
        rules,
        bos_id=ids.get(bos, spec.bos_id),
        eos_id=ids.get(eos, spec.eos_id),
        notes=tuple(
            f"the special token {shown(token.content)} is left out: the embedding has no row for its id, {token.id}"
            for token in listed
            if token not in added
        ),
    )


def content_of(token: object) -> str:
    """Return the text of a token, which is text or an object with ``content``; "" for anything else."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _added_tokens(
    folder: Path, settings: JsonObject, tokenizer_json: JsonObject, pieces: Any
) -> tuple[AddedToken, ...]:
    """Return the added tokens of all files, by id. Raises ``CheckpointError`` where files contradict each other."""
    found: dict[int, AddedToken] = {}
    id_of: dict[str, int] = {}
    for token in _listed_tokens(folder, settings, tokenizer_json):
        other, other_id = found.get(token.id, token).content, id_of.get(token.content, token.id)
        if other != token.content:
            said = f"the id {token.id} is {shown(other)} in one and {shown(token.content)}"
        elif other_id != token.id:
            said = f"{shown(token.content)} has the id {other_id} in one and {token.id}"
        else:
            found.setdefault(token.id, token)
            id_of.setdefault(token.content, token.id)
            continue
        raise CheckpointError(f"the tokenizer's files in {folder} contradict each other: {said} in another")
    for i, piece in enumerate(pieces):
        if piece.type in (Piece.CONTROL, Piece.UNKNOWN, Piece.USER_DEFINED) and i not in found:
            content = piece.piece.replace(SPACE, " ")
            if content not in id_of:
                is_special = piece.type != Piece.USER_DEFINED
                found[i] = AddedToken(i, content, special=is_special, lstrip=False, rstrip=False, normalized=False)
    return tuple(token for _, token in sorted(found.items()))


def _listed_tokens(folder: Path, settings: JsonObject, tokenizer_json: JsonObject) -> Iterator[AddedToken]:
    """Yield the added tokens that each of the files lists, the file that says most about them first."""
    decoder = settings.section("added_tokens_decoder", {})
    for key in decoder:
        if not key.isascii() or not key.isdecimal() or len(key) > MAX_ID_LENGTH:
            raise CheckpointError(f"{decoder.where()} has {shown(key)} for the id of a token")
        yield _described(int(key), decoder.section(key))
    for token in tokenizer_json.sections("added_tokens", []):
        yield _described(token.integer("id", least=0), token)
    special = _special_contents(settings, object_in(folder / "special_tokens_map.json"))
    ids = object_in(folder / "added_tokens.json")
    for content in ids:
        is_special = content in special
        yield AddedToken(
            ids.integer(content, least=0), content, special=is_special, lstrip=False, rstrip=False,
            normalized=not is_special,
        )  # fmt: skip


def _described(token_id: int, token: JsonObject) -> AddedToken:
    """Return a token as a file describes it. Raises ``CheckpointError`` for one that the runners cannot find."""
    content = token.text("content")
    if not content:
        raise CheckpointError(f"{token.where()} is empty")
    if token.flag("single_word", False):
        raise CheckpointError(
            f"{token.where()}: {shown(content)} is only found as a whole word (single_word), which runners cannot do"
        )
    special = token.flag("special", False)
    return AddedToken(
        token_id,
        content,
        special=special,
        lstrip=token.flag("lstrip", False),
        rstrip=token.flag("rstrip", False),
        normalized=token.flag("normalized", not special),
    )


def _special_contents(*files: JsonObject) -> set[str]:
    """Return the texts of the tokens that files name as special."""
    tokens = [file.get(name) for file in files for name in NAMED_TOKENS]
    for listed in (file.get(name) for file in files for name in LISTED_TOKENS):
        tokens += _items(listed)
    return {content_of(token) for token in tokens} - {""}


def _items(listed: object) -> list[object]:
    """Return the tokens of a list, or of an object that has them by name."""
    return listed if isinstance(listed, list) else list(listed.values()) if isinstance(listed, dict) else []


def _named_tokens(names: Mapping[str, object]) -> list[object]:
    """Return the special tokens that are named, in the order in which transformers adds those without an id."""
    listed = next((names[name] for name in reversed(LISTED_TOKENS) if names.get(name) is not None), None)
    return [*(names.get(name) for name in NAMED_TOKENS), *_items(listed)]


def _with_named(
    added: tuple[AddedToken, ...], named: list[object], *, pieces: Any, vocab_size: int
) -> tuple[AddedToken, ...]:
    """Return the added tokens with those that are named but have no id yet. As in transformers they get the next ones.

    Those beyond the vocabulary are left out: no row is theirs.
    """
    ids = {piece.piece: i for i, piece in enumerate(pieces)}
    next_id = max([len(pieces), *(token.id + 1 for token in added)])
    found = {token.content: token for token in added}
    for token in named:
        content = content_of(token)
        if not content or content in found:
            continue
        token_id = ids.get(content, next_id)
        if token_id >= vocab_size or any(token_id == other.id for other in found.values()):
            continue
        next_id = max(next_id, token_id + 1)
        flags = token if isinstance(token, dict) else {}
        found[content] = AddedToken(
            token_id, content, special=True, lstrip=flags.get("lstrip") is True, rstrip=flags.get("rstrip") is True,
            normalized=flags.get("normalized") is True,
        )  # fmt: skip
    return tuple(sorted(found.values(), key=lambda token: token.id))


def _check_content(token: AddedToken) -> None:
    """Raise ``CheckpointError`` for a text that cannot be a piece. JSON can hold half a character."""
    content = token.content.encode("utf-8", "surrogatepass")
    if len(content) > PIECE_AT_MOST or b"\0" in content or content.decode("utf-8", "replace") != token.content:
        raise CheckpointError(
            f"the added token {shown(token.content)} is no text of at most {PIECE_AT_MOST} bytes without zero bytes"
        )


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


def object_in(path: Path | None) -> JsonObject:
    """Return the JSON object in a file, or an empty one if there is no such file."""
    if path is not None and path.is_file():
        return read_object(path, error=CheckpointError)
    return JsonObject({}, what=str(path), error=CheckpointError)
