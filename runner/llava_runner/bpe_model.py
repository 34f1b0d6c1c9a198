"""What a ``tokenizer.json`` says about a byte-level BPE, checked: tokens, merges, and how text is split before them.

The format is that of the library ``tokenizers``. What it can express and this project does not have is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from llava_runner.contract import MAX_VOCAB
from llava_runner.documents import JsonObject, is_integer, shown

# The C++ runner has the same limits (runner/cpp/text).
TOKEN_AT_MOST = 1 << 12  # bytes of a token as it is spelled
MERGES_AT_MOST = 1 << 21  # Llama 3 has 280,000
PATTERN_AT_MOST = 1 << 12  # characters
MAX_STEPS = 16  # that split a text

# Bytes without which no text can be written. SmolLM2 has no tokens for others that it has not seen in training, such as
# some control characters: these are left out of a text.
NEEDED = frozenset(b"\n" + bytes(range(0x20, 0x7F)))
VERSION = "#version"  # begins a line that some files have among the merges
# The options that each part of a tokenizer has. Any other one could change tokens.
OPTIONS = {
    "NFC": (),
    "Sequence": ("normalizers", "pretokenizers", "processors", "decoders"),
    "Split": ("pattern", "behavior", "invert"),
    "Digits": ("individual_digits",),
    "ByteLevel": ("add_prefix_space", "trim_offsets", "use_regex"),
    "TemplateProcessing": ("single", "pair", "special_tokens"),
}
MODEL_OPTIONS = (
    "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges", "vocab", "merges",
)  # fmt: skip


def _alphabet() -> dict[str, int]:
    """Return the characters that spell the 256 bytes in tokens, as GPT-2 chose them: readable ones for themselves."""
    readable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(readable))
    return {chr(byte): byte for byte in readable} | {chr(256 + i): byte for i, byte in enumerate(others)}


ALPHABET = _alphabet()


def token_bytes(text: str) -> bytes:
    """Return the bytes that a token stands for. One with other characters than the alphabet's stands for its text."""
    try:
        return bytes(ALPHABET[character] for character in text)
    except KeyError:
        return text.encode()


@dataclass(frozen=True)
class Split:
    """A step that makes each match of a regular expression a part of its own, and what is between two matches."""

    pattern: str


@dataclass(frozen=True)
class Digits:
    """A step that takes digits out of words: each one, or runs of them."""

    individual: bool


@dataclass(frozen=True)
class BpeModel:
    """A byte-level BPE.

    ``vocab`` has the ids of tokens by their spelling, in characters of ``ALPHABET``. ``merges`` come best first. With
    ``ignore_merges``, a part of a text that is a token as a whole is that token. With ``is_nfc``, text is normalized.
    ``steps`` split a text one after the other, and with ``splits_as_gpt2`` GPT-2's pattern comes last. ``added`` has
    the texts of the added tokens that the file lists, by their ids.
    """

    vocab: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    ignore_merges: bool
    is_nfc: bool
    steps: tuple[Split | Digits, ...]
    splits_as_gpt2: bool
    added: Mapping[int, str]

    @cached_property
    def texts(self) -> Mapping[int, str]:
        """The spelling of each token by its id, the added ones as their text."""
        return {token_id: text for text, token_id in self.vocab.items()} | dict(self.added)


def is_byte_level(tokenizer: JsonObject) -> bool:
    """Return whether a ``tokenizer.json`` is meant as a byte-level one, whatever else it has."""
    step = tokenizer.section("pre_tokenizer", {})
    steps = [step, *step.sections("pretokenizers", [])]
    return any(step.get("type") == "ByteLevel" for step in steps)


def read_bpe(tokenizer: JsonObject) -> BpeModel:
    """Return what a ``tokenizer.json`` says. Raises its error for what is damaged, and for kinds that are not known."""
    model = tokenizer.section("model")
    _check_model(model)
    is_nfc = _is_nfc(tokenizer)
    steps, splits_as_gpt2 = _splitting(tokenizer)
    _check_decoder(tokenizer)
    vocab = _vocab(model)
    added = _added(tokenizer, vocab)
    ids = {*vocab.values(), *added}
    if len(ids) > MAX_VOCAB or max(ids) >= len(ids):
        first = next(i for i in range(len(ids) + 1) if i not in ids)
        raise tokenizer.refusal(f"{tokenizer.where()} has no token with the id {first}, but some with larger ids")
    return BpeModel(
        vocab, _merges(model, vocab), model.flag("ignore_merges", False), is_nfc, steps, splits_as_gpt2, added
    )


def begin_of_text(tokenizer: JsonObject) -> str | None:
    """Return the token that a tokenizer puts before every text, or None. Raises its error for an unknown kind of this.

    The post-processor decides about it.
    """
    found = None
    for step in _parts(tokenizer, "post_processor", "processors", ("ByteLevel", "TemplateProcessing")):
        if step["type"] == "ByteLevel":
            continue
        kinds = [next(iter(piece), "") for piece in step.sections("single")]
        tokens = [
            piece.section("SpecialToken").text("id") for piece in step.sections("single") if "Sequence" not in piece
        ]
        if kinds == ["SpecialToken", "Sequence"]:
            found = tokens[0]
        elif kinds != ["Sequence"]:
            raise step.refusal(
                f"{step.where('single')} is {shown(dict(step)['single'])}: it may put one token before a text"
            )
    return found


def _check_model(model: JsonObject) -> None:
    """Raise the document's error unless the model is a BPE without options that change tokens."""
    if model.get("type", "BPE") != "BPE":
        raise model.refusal(f"model {_name(model.get('type'))} ({model.where()}) is not supported; BPE is")
    for name in model:
        if name not in MODEL_OPTIONS:
            raise model.refusal(f"{model.where(name)} is an option that is not known here")
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        value = model.get(name)
        if value not in (None, "", 0, False) or (name == "unk_token" and value is not None):
            raise model.refusal(f"{model.where(name)} is {shown(value)}, which is not supported for byte-level BPE")


def _parts(tokenizer: JsonObject, part: str, listed: str, known: tuple[str, ...]) -> list[JsonObject]:
    """Return the steps of a part, of which there may be none. Raises the document's error for one that is not known."""
    step = tokenizer.section(part, {})
    if not step:
        return []
    steps = step.sections(listed) if step.get("type") == "Sequence" else [step]
    for it in (step, *steps):
        kind = it.get("type")
        if (kind not in known and it is not step) or kind not in (*known, "Sequence"):
            where, named = it.where() if it else tokenizer.where(part), _name(kind)
            raise it.refusal(f"{part} {named} ({where}) is not supported; {' and '.join(known)} can be used")
        for name in it:
            if name != "type" and name not in OPTIONS[str(kind)]:
                raise it.refusal(f"{it.where(name)} is an option of {part} {kind} that is not known here")
    return steps


def _is_nfc(tokenizer: JsonObject) -> bool:
    """Return whether text is brought to the normalization form C."""
    return bool(_parts(tokenizer, "normalizer", "normalizers", ("NFC",)))


def _splitting(tokenizer: JsonObject) -> tuple[tuple[Split | Digits, ...], bool]:
    """Return the steps that split a text, and whether GPT-2's pattern comes last."""
    steps = _parts(tokenizer, "pre_tokenizer", "pretokenizers", ("Split", "Digits", "ByteLevel"))
    if [step["type"] == "ByteLevel" for step in steps] != [False] * (len(steps) - 1) + [True]:
        raise tokenizer.refusal(f"{tokenizer.where('pre_tokenizer')} does not end with ByteLevel, or has several")
    if len(steps) > MAX_STEPS:
        raise tokenizer.refusal(
            f"{tokenizer.where('pre_tokenizer')} has {len(steps)} steps; at most {MAX_STEPS} are read"
        )
    last = steps[-1]
    if last.flag("add_prefix_space", True):
        raise last.refusal(f"{last.where('add_prefix_space')} is true, which is not supported for byte-level BPE")
    return tuple(map(_step, steps[:-1])), last.flag("use_regex", True)


def _step(step: JsonObject) -> Split | Digits:
    """Return a step before the last one."""
    if step["type"] == "Digits":
        return Digits(step.flag("individual_digits"))
    pattern = step.section("pattern")
    if list(pattern) != ["Regex"]:
        raise step.refusal(f"{step.where('pattern')} is {shown(dict(pattern))}; only a Regex is supported")
    if step.get("behavior") != "Isolated" or step.flag("invert", False):
        said = f"behavior {shown(step.get('behavior'))}" + (", inverted" if step.get("invert") else "")
        raise step.refusal(f"pre_tokenizer Split with {said} ({step.where()}) is not supported; Isolated is")
    text = pattern.text("Regex")
    if not _is_token(text) or len(text) > PATTERN_AT_MOST:
        raise pattern.wrong("Regex", f"a pattern of at most {PATTERN_AT_MOST} characters")
    return Split(text)


def _check_decoder(tokenizer: JsonObject) -> None:
    """Raise the document's error unless tokens are put together as their bytes."""
    if [step["type"] for step in _parts(tokenizer, "decoder", "decoders", ("ByteLevel",))] != ["ByteLevel"]:
        raise tokenizer.wrong("decoder", "ByteLevel")


def _vocab(model: JsonObject) -> dict[str, int]:
    """Return the ids of a model's tokens. Raises the document's error where they are damaged."""
    vocab = model.section("vocab")
    found: dict[str, int] = {}
    seen: set[int] = set()
    for text, token_id in vocab.items():
        if not is_integer(token_id) or not 0 <= token_id < MAX_VOCAB:
            raise vocab.refusal(f"{vocab.where()} has {shown(token_id)} for the id of {shown(text)}")
        if token_id in seen:
            raise vocab.refusal(f"{vocab.where()} has the id {token_id} twice")
        if not _is_token(text):
            raise vocab.refusal(f"{vocab.where()}: token {token_id} is no text of at most {TOKEN_AT_MOST} bytes")
        seen.add(token_id)
        found[text] = token_id
    if lacking := [byte for character, byte in ALPHABET.items() if character not in found and byte in NEEDED]:
        raise vocab.refusal(f"{vocab.where()} has no token for the byte {lacking[0]:#04x} ({len(lacking)} are missing)")
    return found


def _added(tokenizer: JsonObject, vocab: Mapping[str, int]) -> dict[int, str]:
    """Return the texts of the added tokens by their ids. Raises the document's error where they are damaged."""
    texts = {token_id: text for text, token_id in vocab.items()}
    found: dict[int, str] = {}
    for token in tokenizer.sections("added_tokens", []):
        token_id, text = token.integer("id", least=0, most=MAX_VOCAB - 1), token.text("content")
        if not _is_token(text):
            raise token.wrong("content", f"a text of at most {TOKEN_AT_MOST} bytes")
        if token_id in found or texts.get(token_id, text) != text or vocab.get(text, token_id) != token_id:
            raise token.refusal(
                f"{token.where()}: {shown(text)} has the id {token_id}, and another token has it, too, "
                "or the text has another id"
            )
        found[token_id] = text
    if len(set(found.values())) < len(found):
        raise tokenizer.refusal(f"{tokenizer.where('added_tokens')} has a text twice")
    return found


def _merges(model: JsonObject, vocab: Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    """Return the pairs that are merged. Raises the document's error for those of no tokens, or that make none."""
    found = []
    merges = model.items_of("merges")
    if len(merges) > MERGES_AT_MOST:
        raise model.refusal(f"{model.where('merges')} has {len(merges):,} pairs; at most {MERGES_AT_MOST:,} are read")
    for i, merge in enumerate(merges):
        if isinstance(merge, str) and merge.startswith(VERSION):
            continue
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise model.refusal(f"{model.where(f'merges[{i}]')} is {shown(merge)}; it must be a pair of tokens")
        first, second = pair
        if first not in vocab or second not in vocab or first + second not in vocab:
            raise model.refusal(
                f"{model.where(f'merges[{i}]')} is {shown(merge)}, whose tokens are not in the vocabulary"
            )
        found.append((first, second))
    return tuple(found)


def _name(kind: object) -> str:
    """Return the name of a kind of step, for errors."""
    return kind if isinstance(kind, str) and kind.isidentifier() and len(kind) < TOKEN_AT_MOST else shown(kind)


def _is_token(text: str) -> bool:
    """Return whether a text can be a token. JSON can hold half a character."""
    try:
        return 0 < len(text.encode()) <= TOKEN_AT_MOST
    except UnicodeEncodeError:
        return False
