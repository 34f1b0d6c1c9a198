"""The contract between the exporter and the runners: methods, metadata, manifest, and the files of a package.

The exporter writes these names and the runners read them. The methods take their arguments in the order that
ExecuTorch's ``MultimodalRunner`` passes them:

- ``vision_encoder(uint8 [3, H, W])`` -> ``float32 [1, num_image_tokens, hidden_size]``; RGB, H and W from
  ``MIN_IMAGE_SIDE`` to ``image_size``. The method scales and normalizes the pixels and pads them to a square. Which
  images reach it as squares already is said in ``llava_runner.image``.
- ``token_embedding(int64 [1, T])`` -> ``float32 [1, T, hidden_size]``.
- ``text_decoder(float32 [1, T, hidden_size], int64 [1])`` -> ``float32 [1, 1, vocab_size]``: the logits of the last
  position. The second argument is the position of the first row in the context.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

MIN_IMAGE_SIDE = 2
IMAGE_PLACEHOLDER = "<image>"
SCHEMA = 2

# The files of a package. The manifest and the golden record are named after the program: llava.pte, llava.json,
# llava.golden.
MANIFEST_SUFFIX = ".json"
GOLDEN_SUFFIX = ".golden"
TOKENIZER_BIN = "tokenizer.bin"
TOKENIZER_MODEL = "tokenizer.model"
IMAGE_TENSOR = "image.pt"
IMAGE_FILE = "image.png"
ARTIFACTS = (TOKENIZER_BIN, TOKENIZER_MODEL, IMAGE_TENSOR, IMAGE_FILE)


@dataclass(frozen=True)
class PromptTemplate:
    """The text around images, questions and answers.

    A conversation is ``{system}{user}<image>{image_suffix}{question}{assistant}{answer}{eos}...``

    In LLaVA-1.5, system is ``"A chat between ... questions. "``, user ``"USER: "``, image_suffix ``"\\n"`` and
    assistant ``" ASSISTANT:"``. Each later turn begins with ``user``, after the end-of-sequence token.
    """

    system: str
    user: str
    assistant: str
    image_suffix: str


@dataclass(frozen=True)
class ModelCard:
    """Everything that a runner must know of a model. The program holds it as the constant method ``get_model_card``.

    ``image_aspect_ratio`` is ``"pad"`` (to a square, with the mean color) or ``"crop"`` (to the center square).
    ``tokenizer_vocab_size`` is smaller than ``vocab_size``, the width of the logits, if the vocabulary is padded.
    """

    family: str
    source: str
    image_size: int
    num_image_tokens: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    image_aspect_ratio: str
    prompt: PromptTemplate
    hidden_size: int
    vocab_size: int
    tokenizer_vocab_size: int
    bos_id: int
    eos_ids: tuple[int, ...]
    max_seq_len: int
    max_context_len: int
    recipe: dict[str, Any]
    executorch_version: str
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the card as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Return the card that ``to_json`` wrote. Raises ``PackageError`` if the text is not a card of this schema."""
        fields = _read_object(text, cls, "model card")
        try:
            for name in ("image_mean", "image_std", "eos_ids"):
                fields[name] = tuple(fields[name])
            return cls(**{**fields, "prompt": PromptTemplate(**fields["prompt"])})
        except TypeError as error:
            raise PackageError(f"the model card does not fit schema {SCHEMA}: {error}") from error


@dataclass(frozen=True)
class FileRecord:
    """One file of a package: its size in bytes and its SHA-256 as hex digits."""

    bytes: int
    sha256: str


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

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Return the manifest that ``to_json`` wrote. Raises ``PackageError`` if the text is not one of this schema."""
        fields = _read_object(text, cls, "manifest")
        try:
            fields["card"] = ModelCard.from_json(json.dumps(fields["card"]))
            fields["files"] = {name: FileRecord(**record) for name, record in fields["files"].items()}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise PackageError(f"the manifest does not fit schema {SCHEMA}: {error}") from error


def signatures(card: ModelCard) -> dict[str, str]:
    """Return the inputs and outputs of each method as text, with the sizes of one model."""
    side, hidden_size = f"{MIN_IMAGE_SIDE}..{card.image_size}", card.hidden_size
    tokens = f"1..{card.max_seq_len}"
    return {
        VISION_ENCODER: f"uint8 [3, {side}, {side}] -> float32 [1, {card.num_image_tokens}, {hidden_size}]",
        TOKEN_EMBEDDING: f"int64 [1, {tokens}] -> float32 [1, {tokens}, {hidden_size}]",
        TEXT_DECODER: f"float32 [1, {tokens}, {hidden_size}], int64 [1] -> float32 [1, 1, {card.vocab_size}]",
    }


def manifest_path(program: Path) -> Path:
    """Return where the manifest of a program lies."""
    return program.with_suffix(MANIFEST_SUFFIX)


def golden_path(program: Path) -> Path:
    """Return where the golden record of a program lies."""
    return program.with_suffix(GOLDEN_SUFFIX)


def _read_object(text: str | bytes, cls: type, what: str) -> dict[str, Any]:
    """Return the fields of the dataclass ``cls`` from JSON. Raises ``PackageError``, which calls the text ``what``."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise PackageError(f"the {what} is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else None
        raise PackageError(
            f"the {what} has schema {found}; this version reads schema {SCHEMA}. Export the model again."
        )
    names = {field.name for field in dataclasses.fields(cls)}
    if missing := sorted(names - fields.keys()):
        raise PackageError(f"the {what} lacks {', '.join(missing)}")
    return fields
