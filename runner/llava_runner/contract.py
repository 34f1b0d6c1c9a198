"""What an exported program and whatever runs it agree on: methods, metadata, manifest, files of a package.

The exporter writes by these names and the runners read by them. The methods take their arguments in the order that
ExecuTorch's ``MultimodalRunner`` passes them:

- ``vision_encoder(uint8 [3, H, W])`` -> ``float32 [1, num_image_tokens, hidden_size]``; RGB, H and W from
  ``MIN_IMAGE_SIDE`` to ``image_size``. Scaling, normalizing and padding to a square happen inside.
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

# Constant methods of the program, by the names ExecuTorch's own runners look for.
MAX_SEQ_LEN = "get_max_seq_len"  # int: the longest T one call takes
MAX_CONTEXT_LEN = "get_max_context_len"  # int: positions the KV cache holds
BOS_ID = "get_bos_id"  # int
EOS_IDS = "get_eos_ids"  # list of int
VOCAB_SIZE = "get_vocab_size"  # int: width of the logits
USE_KV_CACHE = "use_kv_cache"  # bool
USE_SDPA_WITH_KV_CACHE = "use_sdpa_with_kv_cache"  # bool
ENABLE_DYNAMIC_SHAPE = "enable_dynamic_shape"  # bool
# And one of our own: a ModelCard as JSON, so that a program can be run with nothing but its tokenizer beside it.
MODEL_CARD = "get_model_card"  # str

MIN_IMAGE_SIDE = 2
IMAGE_PLACEHOLDER = "<image>"
SCHEMA = 1

# Files of a package. Manifest and golden record are named after the program: llava.pte, llava.json, llava.golden.
MANIFEST_SUFFIX = ".json"
GOLDEN_SUFFIX = ".golden"
TOKENIZER_BIN = "tokenizer.bin"
TOKENIZER_MODEL = "tokenizer.model"
IMAGE_TENSOR = "image.pt"
IMAGE_FILE = "image.png"
ARTIFACTS = (TOKENIZER_BIN, TOKENIZER_MODEL, IMAGE_TENSOR, IMAGE_FILE)


@dataclass(frozen=True)
class PromptTemplate:
    """How a conversation is spelled: ``{system}{user}<image>{image_suffix}{question}{assistant}{answer}{eos}...``

    For LLaVA-1.5: system ``"A chat between ... questions. "``, user ``"USER: "``, image_suffix ``"\\n"``, assistant
    ``" ASSISTANT:"``. After an answer and the end-of-sequence token the next turn begins with ``user`` again.
    """

    system: str
    user: str
    assistant: str
    image_suffix: str


@dataclass(frozen=True)
class ModelCard:
    """What a runner must know of a model; travels inside the program as the constant method ``get_model_card``.

    ``image_aspect_ratio`` is ``"pad"`` (to a square with the mean color) or ``"crop"`` (the center square);
    ``tokenizer_vocab_size`` may be smaller than ``vocab_size``, the width of the logits, in a padded vocabulary.
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
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Raises ``PackageError`` when the text is not a card of this schema."""
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
    """The JSON file beside a program: its card, what made it, and the checksum of every file of the package.

    ``methods`` tells people the signatures; programs go by the card.
    """

    program: str
    methods: dict[str, str]
    card: ModelCard
    versions: dict[str, str]
    files: dict[str, FileRecord]
    schema: int = SCHEMA

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises ``PackageError`` when the text is not a manifest of this schema."""
        fields = _read_object(text, cls, "manifest")
        try:
            fields["card"] = ModelCard.from_json(json.dumps(fields["card"]))
            fields["files"] = {name: FileRecord(**record) for name, record in fields["files"].items()}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise PackageError(f"the manifest does not fit schema {SCHEMA}: {error}") from error


def signatures(card: ModelCard) -> dict[str, str]:
    """Inputs and outputs of the methods with the sizes of one model."""
    side, hidden_size = f"{MIN_IMAGE_SIDE}..{card.image_size}", card.hidden_size
    tokens = f"1..{card.max_seq_len}"
    return {
        VISION_ENCODER: f"uint8 [3, {side}, {side}] -> float32 [1, {card.num_image_tokens}, {hidden_size}]",
        TOKEN_EMBEDDING: f"int64 [1, {tokens}] -> float32 [1, {tokens}, {hidden_size}]",
        TEXT_DECODER: f"float32 [1, {tokens}, {hidden_size}], int64 [1] -> float32 [1, 1, {card.vocab_size}]",
    }


def manifest_path(program: Path) -> Path:
    return program.with_suffix(MANIFEST_SUFFIX)


def golden_path(program: Path) -> Path:
    return program.with_suffix(GOLDEN_SUFFIX)


def _read_object(text: str, cls: type, what: str) -> dict[str, Any]:
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
