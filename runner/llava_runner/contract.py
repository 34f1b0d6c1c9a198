"""The contract between the exporter and the runners: methods, metadata, manifest, and the files of a package.

The exporter writes these names and the runners read them. The methods take their arguments in the order that
ExecuTorch's ``MultimodalRunner`` passes them:

- ``vision_encoder(uint8 [3, H, W])`` -> ``float32 [1, num_image_tokens, hidden_size]``; RGB, H and W from
  ``MIN_IMAGE_SIDE`` to ``image_size``. The method scales and normalizes the pixels and pads them to a square. Which
  images reach it as squares already is said in ``llava_runner.image``.
- ``token_embedding(int64 [1, T])`` -> ``float32 [1, T, hidden_size]``.
- ``text_decoder(float32 [1, T, hidden_size], int64 [1])`` -> ``float32 [1, K, vocab_size]``: the logits of the last
  positions, the smaller of T and ``logits_to_keep``. The second argument is the position of the first row in the
  context.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from llava_runner.documents import OPTIONAL, JsonObject, fields_of, parse_object, shown
from llava_runner.errors import PackageError

VISION_ENCODER = "vision_encoder"
TOKEN_EMBEDDING = "token_embedding"
TEXT_DECODER = "text_decoder"
METHODS = (VISION_ENCODER, TOKEN_EMBEDDING, TEXT_DECODER)

# Constant methods of the program. ExecuTorch's own runners look for these names.
MAX_SEQ_LEN = "get_max_seq_len"  # int: the largest T that one call takes
MAX_CONTEXT_LEN = "get_max_context_len"  # int: the positions of the KV cache
BOS_ID = "get_bos_id"  # int
EOS_IDS = "get_eos_ids"  # list of int
VOCAB_SIZE = "get_vocab_size"  # int: the width of the logits
USE_KV_CACHE = "use_kv_cache"  # bool
USE_SDPA_WITH_KV_CACHE = "use_sdpa_with_kv_cache"  # bool
ENABLE_DYNAMIC_SHAPE = "enable_dynamic_shape"  # bool
# This one is our own: a ModelCard as JSON. With it, a program needs no other file than its tokenizer.
MODEL_CARD = "get_model_card"  # str

MIN_IMAGE_SIDE = 2  # pixels
MAX_IMAGE_SIDE = 2048  # of what a vision encoder takes. Image files may be larger: they are resized
IMAGE_ASPECT_RATIOS = ("pad", "crop", "stretch")
RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's, by its numbers
IMAGE_PLACEHOLDER = "<image>"
SCHEMA = 3

# The ranges of a model card's numbers. A runner computes with them, and a card may be damaged. The C++ runner has the
# same (runner/cpp/package/model_card.cpp).
MAX_VOCAB = 1 << 20  # far more than any model has
MAX_WIDTH = 1 << 16  # of a matrix, and of image tokens
MAX_CONTEXT = 1 << 24  # positions
MAX_LOGITS_TO_KEEP = 16  # tokens: more rows in a call of the decoder cost nearly as much as calls of their own
MAX_EOS_IDS = 64
MAX_ADDED_TOKENS = 1 << 14  # Llama 3 has 256, and some fine-tunes one for each of thousands of places in an image
MAX_TEMPERATURE = 100.0
MAX_PENALTY = 100.0
PREPEND_SCHEMES = ("first", "always", "never", "prepend")
MAX_STD = 10.0  # fractions of 1, of which the largest real standard deviation is 0.5

# The files of a package. The manifest and the golden record are named after the program: llava.pte, llava.json,
# llava.golden.
MANIFEST_SUFFIX = ".json"
GOLDEN_SUFFIX = ".golden"
TOKENIZER_BIN = "tokenizer.bin"
TOKENIZER_MODEL = "tokenizer.model"
TOKENIZER_JSON = "tokenizer.json"
# A package has the first two, or the last for a byte-level BPE. Runners look for them in this order.
TOKENIZERS = (TOKENIZER_MODEL, TOKENIZER_BIN, TOKENIZER_JSON)
IMAGE_TENSOR = "image.pt"
IMAGE_FILE = "image.png"
ARTIFACTS = (*TOKENIZERS, IMAGE_TENSOR, IMAGE_FILE)


@dataclass(frozen=True)
class PromptTemplate:
    """The text around images, questions and answers. Special tokens are spelled out in it, as in a chat template.

    A conversation is ``{system}{user}<image>{image_separator}{question}{assistant}{answer}{answer_end}{user}...`` With
    ``image_last``, an image comes after its question: ``{user}{question}{image_separator}<image>{assistant}``. Around
    every ``<image>`` stand ``image_start`` and ``image_end``. With ``trims``, spaces and line ends around a question
    are dropped.

    In LLaVA-1.5, system is ``"A chat between ... questions. "``, user ``"USER: "``, image_separator ``"\\n"``,
    assistant ``" ASSISTANT:"`` and answer_end ``"</s>"``.
    """

    system: str
    user: str
    assistant: str
    image_separator: str = "\n"
    image_start: str = ""
    image_end: str = ""
    answer_end: str = "</s>"
    image_last: bool = False
    trims: bool = False


@dataclass(frozen=True)
class AddedToken:
    """A text that is one token as a whole, whatever stands around it. The names are those of ``tokenizers.AddedToken``.

    A ``special`` one marks structure: it is recognized in a template but not in a user's text, and not shown in an
    answer. ``lstrip`` and ``rstrip`` make it take the spaces beside it. A ``normalized`` one is looked for after all
    others, in what they leave.
    """

    id: int
    content: str
    special: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


@dataclass(frozen=True)
class TokenizerRules:
    """What the tokenizer's files do not say: how text becomes the pieces that they list.

    Added tokens cut a text into segments. ``prepend_scheme`` says which of them get a space before their first word:
    the ``"first"`` of the whole text, ``"always"`` each, or ``"never"`` one; none gets a second space. With
    ``"prepend"`` each gets one, even if it begins with a space. With ``image_begins_text``, what follows an image is a
    text of its own. With ``adds_bos``, a conversation begins with the card's ``bos_id``, if its text does not.
    """

    prepend_scheme: str
    image_begins_text: bool
    adds_bos: bool
    added_tokens: tuple[AddedToken, ...]


@dataclass(frozen=True)
class GenerationDefaults:
    """How the model's authors sample answers; ``Sampler`` explains it.

    ``max_new_tokens`` is 0 where only the context limits an answer. A card need not have the last three fields.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    top_k: int = field(default=0, metadata=OPTIONAL)
    min_p: float = field(default=0.0, metadata=OPTIONAL)
    repetition_penalty: float = field(default=1.0, metadata=OPTIONAL)


@dataclass(frozen=True)
class ModelCard:
    """Everything that a runner must know of a model. The program holds it as the constant method ``get_model_card``.

    ``image_aspect_ratio`` is ``"pad"`` (to a square, with the mean color), ``"crop"`` (to the center square) or
    ``"stretch"`` (both sides, whatever the image's aspect ratio). An image is resized to ``image_resize`` pixels (its
    shorter side, if it is cropped) by ``image_resample``, one of ``RESAMPLES``, and the center of ``image_size`` pixels
    is kept.
    ``prompt_source`` says for people where the prompt comes from.
    ``tokenizer_vocab_size`` is smaller than ``vocab_size``, the width of the logits, if the vocabulary is padded.
    ``generation`` is what the library does unless it is told otherwise; the commands take the likeliest token.
    ``logits_to_keep`` is the number of last tokens whose logits a call of the decoder gives, if it reads so many.
    ``num_image_tokens`` is 0 for a language model alone: what else is said of images then means nothing.
    """

    family: str
    source: str
    image_size: int
    num_image_tokens: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    image_aspect_ratio: str
    image_resize: int
    image_resample: str
    prompt: PromptTemplate
    prompt_source: str
    tokenizer: TokenizerRules
    generation: GenerationDefaults
    hidden_size: int
    vocab_size: int
    tokenizer_vocab_size: int
    bos_id: int
    eos_ids: tuple[int, ...]
    max_seq_len: int
    max_context_len: int
    recipe: dict[str, str | int | dict[str, str]]
    executorch_version: str
    logits_to_keep: int = field(default=1, metadata=OPTIONAL)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Raise ``PackageError`` for a value that no model has."""
        _check_card(self)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of the program. A language model alone has no vision encoder."""
        return METHODS if self.num_image_tokens else METHODS[1:]

    def to_json(self) -> str:
        """Return the card as one line of JSON."""
        return json.dumps(fields_of(self))

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Return the card that ``to_json`` wrote. Raises ``PackageError`` if the text is not a card of this schema."""
        return _of_this_schema(parse_object(text, what="the model card", error=PackageError)).record(cls)


@dataclass(frozen=True)
class FileRecord:
    """One file of a package: its size in bytes and its SHA-256 as hex digits."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Raise ``PackageError`` for what is no size or no SHA-256."""
        if self.bytes < 0 or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise PackageError("the manifest has a size or a SHA-256 that cannot be one")


@dataclass(frozen=True)
class Manifest:
    """The JSON file of a package: the card, the versions that made it, and the checksum of every file.

    ``methods`` holds the signatures for people to read. Runners use the card. ``structure_sha256`` covers what
    ExecuTorch interprets of the program: see ``llava_runner.program_file.structure_sha256``.
    """

    program: str
    methods: dict[str, str]
    card: ModelCard
    versions: dict[str, str]
    files: dict[str, FileRecord]
    structure_sha256: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Raise ``PackageError`` for names that are not those of files in the package, and for a program that is none.

        A name with a folder in it would reach files elsewhere.
        """
        for name in self.files:
            if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                raise PackageError(f"{name!r} in the manifest is not the name of a file in the package")
        if self.program not in self.files:
            raise PackageError(f"the manifest has no record of its program, {self.program!r}")

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps(fields_of(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Return the manifest that ``to_json`` wrote. Raises ``PackageError`` if the text is not one of this schema."""
        manifest = _of_this_schema(parse_object(text, what="the manifest", error=PackageError))
        _of_this_schema(manifest.section("card"))
        return manifest.record(cls)


def signatures(card: ModelCard) -> dict[str, str]:
    """Return the inputs and outputs of each method as text, with the sizes of one model."""
    side, hidden_size = f"{MIN_IMAGE_SIDE}..{card.image_size}", card.hidden_size
    tokens = f"1..{card.max_seq_len}"
    kept = f"1..{card.logits_to_keep}" if card.logits_to_keep > 1 else "1"
    all_methods = {
        VISION_ENCODER: f"uint8 [3, {side}, {side}] -> float32 [1, {card.num_image_tokens}, {hidden_size}]",
        TOKEN_EMBEDDING: f"int64 [1, {tokens}] -> float32 [1, {tokens}, {hidden_size}]",
        TEXT_DECODER: f"float32 [1, {tokens}, {hidden_size}], int64 [1] -> float32 [1, {kept}, {card.vocab_size}]",
    }
    return {name: all_methods[name] for name in card.methods}


def manifest_path(program: Path) -> Path:
    """Return where the manifest of a program lies."""
    return program.with_suffix(MANIFEST_SUFFIX)


def golden_path(program: Path) -> Path:
    """Return where the golden record of a program lies."""
    return program.with_suffix(GOLDEN_SUFFIX)


def _check_card(card: ModelCard) -> None:
    """Raise ``PackageError`` for a value that no model has."""
    _whole("vocab_size", card.vocab_size, 1, MAX_VOCAB)
    _whole("max_context_len", card.max_context_len, 1, MAX_CONTEXT)
    _whole("image_size", card.image_size, MIN_IMAGE_SIDE, MAX_IMAGE_SIDE)
    _whole("num_image_tokens", card.num_image_tokens, 0, MAX_WIDTH)
    if not _are_three(card.image_mean, 0, 1):
        _refuse("image_mean", "three numbers from 0 to 1")
    if not _are_three(card.image_std, 0, MAX_STD) or not all(card.image_std):
        _refuse("image_std", f"three numbers above 0, at most {MAX_STD}")
    for name, choices in (("image_aspect_ratio", IMAGE_ASPECT_RATIOS), ("image_resample", RESAMPLES)):
        if getattr(card, name) not in choices:
            _refuse(name, f"one of {', '.join(choices)}")
    _whole("image_resize", card.image_resize, card.image_size, MAX_IMAGE_SIDE)
    _whole("tokenizer_vocab_size", card.tokenizer_vocab_size, 1, card.vocab_size)
    rules = card.tokenizer
    if rules.prepend_scheme not in PREPEND_SCHEMES:
        _refuse("prepend_scheme", ", ".join(PREPEND_SCHEMES))
    contents = [token.content for token in rules.added_tokens]
    if not all(contents) or len(set(contents)) < len(contents) or len(contents) > MAX_ADDED_TOKENS:
        _refuse("added_tokens", f"at most {MAX_ADDED_TOKENS} tokens with different contents")
    for token in rules.added_tokens:
        _whole("id of an added token", token.id, 0, card.tokenizer_vocab_size - 1)
    generation = card.generation
    if not 0 <= generation.temperature <= MAX_TEMPERATURE or not 0 < generation.top_p <= 1:
        _refuse("generation", f"a temperature from 0 to {MAX_TEMPERATURE:g} and a top_p above 0, at most 1")
    _whole("max_new_tokens", generation.max_new_tokens, 0, MAX_CONTEXT)
    _whole("top_k", generation.top_k, 0, MAX_VOCAB)
    if not 0 <= generation.min_p <= 1 or not 0 < generation.repetition_penalty <= MAX_PENALTY:
        _refuse("generation", f"a min_p from 0 to 1 and a repetition_penalty above 0, at most {MAX_PENALTY:g}")
    _whole("hidden_size", card.hidden_size, 1, MAX_WIDTH)
    _whole("bos_id", card.bos_id, 0, card.vocab_size - 1)
    ids = card.eos_ids
    if not 1 <= len(ids) <= MAX_EOS_IDS or not all(_is_within(number, 0, card.vocab_size - 1) for number in ids):
        _refuse("eos_ids", f"a list of 1 to {MAX_EOS_IDS} whole numbers from 0 to {card.vocab_size - 1}")
    _whole("max_seq_len", card.max_seq_len, 1, card.max_context_len)
    _whole("logits_to_keep", card.logits_to_keep, 1, min(MAX_LOGITS_TO_KEEP, card.max_seq_len))


def _are_three(numbers: tuple[float, ...], least: float, most: float) -> bool:
    """Return True for three numbers in a range."""
    return len(numbers) == 3 and all(type(number) in (int, float) and least <= number <= most for number in numbers)


def _whole(name: str, value: Any, least: int, most: int) -> None:
    """Raise ``PackageError`` unless the value is a whole number in a range."""
    if not _is_within(value, least, most):
        _refuse(name, f"a whole number from {least} to {most}")


def _is_within(value: Any, least: int, most: int) -> bool:
    """Return True for a whole number, which True is not, in a range."""
    return type(value) is int and least <= value <= most


def _refuse(name: str, rule: str) -> NoReturn:
    """Raise ``PackageError`` for a value that breaks a rule."""
    raise PackageError(f"the model card: {name} must be {rule}")


def _of_this_schema(document: JsonObject) -> JsonObject:
    """Return the document, a card or a manifest. Raises ``PackageError`` if it is of another schema."""
    found = document.get("schema")
    if type(found) is not int or found != SCHEMA:
        raise PackageError(
            f"{document.where()} has schema {shown(found)}; this version reads schema {SCHEMA}. Export the model again."
        )
    return document
