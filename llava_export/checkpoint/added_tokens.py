"""The added tokens of a checkpoint: those that its files list, and the special tokens that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_export.checkpoint.documents import object_in
from llava_export.errors import CheckpointError
from llava_runner.contract import MAX_ADDED_TOKENS, AddedToken
from llava_runner.documents import JsonObject, shown
from llava_runner.tokenizer import PIECE_AT_MOST

# The keys under which tokenizer_config.json and special_tokens_map.json name special tokens: one each, or lists.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED_TOKENS = ("additional_special_tokens", "extra_special_tokens")
MAX_ID_LENGTH = 9  # digits


@dataclass(frozen=True)
class Added:
    """The added tokens of a checkpoint, by id. ``notes`` are sentences for the user about those that are left out."""

    tokens: tuple[AddedToken, ...]
    notes: tuple[str, ...]


def find_added(
    folder: Path,
    settings: JsonObject,
    tokenizer_json: JsonObject,
    *,
    own: Sequence[AddedToken],
    ids: Mapping[str, int],
    vocab_size: int,
) -> Added:
    """Return the added tokens of a checkpoint in ``folder``. Raises ``CheckpointError`` for what is damaged.

    ``own`` are those that the tokenizer's model itself marks, ``ids`` the ids of all its tokens by their text, and
    ``vocab_size`` is the number of embedding rows: special tokens beyond them are left out.
    """
    listed = _with_listed(folder, settings, tokenizer_json, own)
    named = _named_tokens({**object_in(folder / "special_tokens_map.json"), **settings})
    listed = _with_named(listed, named, ids=ids, vocab_size=vocab_size)
    added = tuple(token for token in listed if token.id < vocab_size or not token.special)
    if len(added) > MAX_ADDED_TOKENS:
        raise CheckpointError(f"{folder} has {len(added):,} added tokens; at most {MAX_ADDED_TOKENS:,} are taken")
    for token in added:
        _check(token, vocab_size=vocab_size)
    notes = tuple(
        f"the special token {shown(token.content)} is left out: the embedding has no row for its id, {token.id}"
        for token in listed
        if token not in added
    )
    return Added(added, notes)


def content_of(token: object) -> str:
    """Return the text of a token, which is text or an object with ``content``; "" for anything else."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _with_listed(
    folder: Path, settings: JsonObject, tokenizer_json: JsonObject, own: Sequence[AddedToken]
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
    for token in own:
        if token.id not in found and token.content not in id_of:
            found[token.id] = token
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
    added: tuple[AddedToken, ...], named: list[object], *, ids: Mapping[str, int], vocab_size: int
) -> tuple[AddedToken, ...]:
    """Return the added tokens with those that are named but have no id yet. As in transformers they get the next ones.

    Those beyond the vocabulary are left out: no row is theirs.
    """
    next_id = max([0, *(token_id + 1 for token_id in ids.values()), *(token.id + 1 for token in added)])
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


def _check(token: AddedToken, *, vocab_size: int) -> None:
    """Raise ``CheckpointError`` for a token beyond the vocabulary, and for a text that cannot be one.

    JSON can hold half a character.
    """
    content = token.content.encode("utf-8", "surrogatepass")
    if len(content) > PIECE_AT_MOST or b"\0" in content or content.decode("utf-8", "replace") != token.content:
        raise CheckpointError(
            f"the added token {shown(token.content)} is no text of at most {PIECE_AT_MOST} bytes without zero bytes"
        )
    if token.id >= vocab_size:
        raise CheckpointError(
            f"the added token {shown(token.content)} has the id {token.id}, and the model's vocabulary "
            f"{vocab_size} tokens"
        )
