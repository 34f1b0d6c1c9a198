"""The sizes of a model, complete and checked when built. Modules are constructed from these alone, without I/O."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from llava_export.errors import ConfigError
from llava_runner.contract import MAX_CONTEXT, MAX_IMAGE_SIDE, MAX_VOCAB, MAX_WIDTH
from llava_runner.documents import shown

# How many layers of each stack are lowered when the others are stamped: the first, the last, and one between to copy.
TEMPLATE_LAYERS = 3
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
# Vision towers by their model_type in config.json, and whether the first of their rows is a class token.
VISION_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}
# The largest sizes that are taken seriously, more than published models have. Beyond them it would take long to find
# out that the weights do not fit. The contract has those that a runner must know.
MAX_LAYERS = 128
MAX_HEADS = 1 << 10
NONE = -1  # in place of the id of a token


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision transformer. Sizes have the names that ``CLIPVisionConfig`` of transformers gives them.

    ``type`` names its class, an entry of ``models.vision_towers.VISION_TOWERS``. ``image_size`` and ``patch_size`` are
    sides in pixels; pixels beyond the last whole patch are not read. ``feature_layers`` are indices into the hidden
    states: 0 is the input of the first layer, ``n`` the output of layer ``n``. Several are concatenated along the last
    dimension. With ``keep_first_row``, llava-hf's select strategy "full", all rows are features. Otherwise the first
    one is dropped: a class token where the tower has one, and a patch in SigLIP, as in transformers.
    """

    type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    hidden_act: str
    feature_layers: tuple[int, ...]
    keep_first_row: bool

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for sizes that do not fit each other."""
        _check_sizes(
            self, hidden_size=MAX_WIDTH, intermediate_size=MAX_WIDTH, num_hidden_layers=MAX_LAYERS,
            num_attention_heads=MAX_HEADS, image_size=MAX_IMAGE_SIDE, patch_size=MAX_IMAGE_SIDE,
        )  # fmt: skip
        _check_epsilon("vision_config", "layer_norm_eps", self.layer_norm_eps)
        _check_divides(
            "vision_config", "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
        )
        if self.patch_size > self.image_size:
            raise ConfigError(
                f"vision_config: patch_size {self.patch_size} is larger than image_size {self.image_size}"
            )
        checked_choice("vision_config.model_type", self.type, VISION_TOWERS)
        checked_choice("vision_config.hidden_act", self.hidden_act, ACTIVATIONS)
        if not self.feature_layers:
            raise ConfigError("vision_feature_layer is an empty list; the projector reads at least one layer")
        for layer in self.feature_layers:
            if not 0 <= layer <= self.num_hidden_layers:
                raise ConfigError(
                    f"vision_feature_layer {layer} is outside the vision tower's {self.num_hidden_layers} layers"
                )

    @property
    def num_patches(self) -> int:
        """The number of patches that an image is cut into."""
        return self.grid_side**2

    @property
    def grid_side(self) -> int:
        """The number of patches in a row or column of the image."""
        return self.image_size // self.patch_size

    @property
    def num_rows(self) -> int:
        """The number of rows of a hidden state: the patches, and the class token if there is one."""
        return self.num_patches + VISION_TOWERS[self.type]

    @property
    def num_features(self) -> int:
        """The number of rows that the projector reads from the vision tower."""
        return self.num_rows - (not self.keep_first_row)

    @property
    def num_used_layers(self) -> int:
        """The number of layers that the features need. Those above are neither loaded nor exported."""
        return max(self.feature_layers)

    @property
    def feature_size(self) -> int:
        """The width of a row that the projector reads."""
        return self.hidden_size * len(self.feature_layers)


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """A projector: it turns the vision tower's features into rows that the decoder reads.

    ``type`` names its class, an entry of ``models.projectors.PROJECTORS``: ``mlp`` and ``linear`` keep the number of
    rows, ``ldp`` and ``ldpv2`` halve both sides of their grid. ``grid_side`` is the number of patches in a row or
    column.
    """

    type: str
    in_features: int
    out_features: int
    hidden_act: str
    bias: bool
    grid_side: int

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for an unknown activation or a grid that cannot be halved."""
        checked_choice("projector_hidden_act", self.hidden_act, ACTIVATIONS)
        if self.halves_grid and self.grid_side % 2:
            raise ConfigError(
                f"projector {self.type} halves the grid of patches, and {self.grid_side} a side cannot be halved"
            )

    @property
    def halves_grid(self) -> bool:
        """Return whether the projector makes a quarter as many rows as it reads."""
        return self.type in ("ldp", "ldpv2")


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Rotary embedding whose frequencies are all divided by ``factor``."""

    factor: float

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for a factor that shortens the context, or that no model needs."""
        _check_factor("linear", self.factor)


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Rotary embedding as in Llama 3.1: the lower a frequency, the more it is divided, by ``factor`` at most.

    ``models.rotary`` explains the other values, which have their names in ``config.json``.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for values that do not fit each other."""
        _check_factor("llama3", self.factor)
        low, high = self.low_freq_factor, self.high_freq_factor
        if not 0 < low < high:
            raise ConfigError(
                f"rotary embedding of type llama3: low_freq_factor {low} must be above 0 and below high_freq_factor, "
                f"{high}"
            )
        _check_sizes(self, original_max_position_embeddings=MAX_CONTEXT)


RopeScaling = LinearScaling | Llama3Scaling


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A decoder of Llama's kind. Sizes have the names that ``LlamaConfig`` of transformers gives them.

    ``model_type`` names it, an entry of ``families.language_models.LANGUAGE_MODELS``. With ``tie_word_embeddings`` the
    head has the weights of the token embedding. ``max_position_embeddings`` counts the positions that ``rope_scaling``,
    if there is any, makes room for. With a ``sliding_window``, attention of some layers sees so many positions, its own
    among them; None if all layers see all. Queries, keys and values have biases with ``qkv_bias``, and attention's
    output with ``output_bias``.
    """

    model_type: str = "llama"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool
    sliding_window: int | None = None
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool

    @property
    def max_context_len(self) -> int:
        """The most positions that a program may have: those trained for, and no more than attention sees."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for sizes that do not fit each other."""
        _check_sizes(
            self, hidden_size=MAX_WIDTH, intermediate_size=MAX_WIDTH, num_hidden_layers=MAX_LAYERS,
            num_attention_heads=MAX_HEADS, num_key_value_heads=MAX_HEADS, head_dim=MAX_WIDTH,
            vocab_size=MAX_VOCAB, max_position_embeddings=MAX_CONTEXT,
        )  # fmt: skip
        if self.sliding_window is not None:
            _check_sizes(self, sliding_window=MAX_CONTEXT)
        _check_epsilon("text_config", "rms_norm_eps", self.rms_norm_eps)
        if not (math.isfinite(self.rope_theta) and self.rope_theta >= 1):
            raise ConfigError(f"text_config: rope_theta {self.rope_theta} must be a number of at least 1")
        _check_divides(
            "text_config",
            "num_key_value_heads",
            self.num_key_value_heads,
            "num_attention_heads",
            self.num_attention_heads,
        )
        if self.head_dim % 2:
            raise ConfigError(f"text_config.head_dim {self.head_dim} is odd; rotary embedding needs pairs")


@dataclass(frozen=True, kw_only=True)
class LlavaConfig:
    """A whole model, or a language model alone: then ``vision`` and ``projector`` are None.

    ``bos_id`` is the token that every prompt begins with, and any of ``eos_ids`` ends an answer. All are in the
    vocabulary. ``around_image`` are the texts of two tokens between which an image stands, or None.
    """

    vision: VisionConfig | None
    projector: ProjectorConfig | None
    text: TextConfig
    bos_id: int
    eos_ids: tuple[int, ...]
    around_image: tuple[str, str] | None = None

    @property
    def num_image_tokens(self) -> int:
        """The number of positions that an image takes in the decoder; 0 if the model sees none."""
        if self.vision is None or self.projector is None:
            return 0
        return self.vision.num_patches // 4 if self.projector.halves_grid else self.vision.num_features

    @property
    def num_vision_layers(self) -> int:
        """The number of layers of the vision tower that the features need."""
        return self.vision.num_used_layers if self.vision else 0

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for parts that do not fit each other."""
        if self.vision is not None and self.projector is not None:
            self._check_vision(self.vision, self.projector)
        for name, ids in (("bos_token_id", {self.bos_id} - {NONE}), ("eos_token_id", self.eos_ids)):
            if ids:
                check_token_ids(name, *ids, vocab_size=self.text.vocab_size)

    def _check_vision(self, vision: VisionConfig, projector: ProjectorConfig) -> None:
        """Raise ``ConfigError`` for a projector that does not fit what is before and behind it."""
        if projector.in_features != vision.feature_size:
            raise ConfigError(
                f"the projector reads {projector.in_features} features, the vision tower gives {vision.feature_size}"
            )
        if projector.halves_grid and vision.num_features != vision.num_patches:
            raise ConfigError(
                f"projector {projector.type} reads a grid of {vision.num_patches} patches, and the vision "
                f"tower gives {vision.num_features} rows"
            )
        if projector.out_features != self.text.hidden_size:
            raise ConfigError(
                f"the projector writes {projector.out_features} features, the decoder reads {self.text.hidden_size}"
            )


def check_token_ids(name: str, *ids: int, vocab_size: int) -> None:
    """Raise ``ConfigError`` unless there are ids and all are whole numbers in the vocabulary. ``name`` says which."""
    if not ids:
        raise ConfigError(f"{name} is an empty list; an answer needs a token that ends it")
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise ConfigError(f"{name} {token_id!r} is not in the vocabulary, whose ids are 0 to {vocab_size - 1}")


def checked_choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return ``value``, which ``config.json`` has under ``name``. Raise ``ConfigError`` unless it is in ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name} {shown(value)} is not supported; choose from {', '.join(allowed)}")
    return value


def _check_sizes(config: object, **limits: int) -> None:
    """Raise ``ConfigError`` unless the named fields are whole numbers from 1 to their limits."""
    for name, limit in limits.items():
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{type(config).__name__}.{name} must be a positive integer, not {shown(value)}")
        if value > limit:
            raise ConfigError(f"{type(config).__name__}.{name} {shown(value)} is above {limit}, which no model needs")


def _check_factor(kind: str, factor: float) -> None:
    """Raise ``ConfigError`` unless rotary embedding can be scaled by ``factor``."""
    if not 1 <= factor <= MAX_CONTEXT:
        raise ConfigError(f"rotary embedding of type {kind}: factor {factor} must be a number from 1 to {MAX_CONTEXT}")


def _check_epsilon(section: str, name: str, value: float) -> None:
    """Raise ``ConfigError`` unless ``value`` can be what a norm adds to a variance: above 0, and small."""
    if not 0 < value < 1:
        raise ConfigError(f"{section}: {name} {value} must be a number between 0 and 1")


def _check_divides(section: str, name: str, divisor: int, of: str, value: int) -> None:
    """Raise ``ConfigError`` unless ``divisor`` divides ``value``. The names are what ``config.json`` calls them."""
    if value % divisor:
        raise ConfigError(f"{section}: {name} {divisor} does not divide {of} {value}")
