"""The sizes of a model, complete and checked when built. Constructors of modules take these and do no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from llava_export.errors import ConfigError

# Layers of a stack that are lowered when the others are to be stamped: the first, the last, one between them to copy.
TEMPLATE_LAYERS = 3
ACTIVATIONS = ("gelu", "quick_gelu", "relu", "silu")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A CLIP vision transformer.

    ``feature_layers`` are indices into its hidden states: 0 is the input of the first layer, ``n`` the output of layer
    ``n``. Several are concatenated along the last dimension. ``keep_class_token`` is llava-hf's select strategy "full".
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    hidden_act: str
    feature_layers: tuple[int, ...]
    keep_class_token: bool

    def __post_init__(self) -> None:
        _check_positive(self, "hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
        _check_divides(
            "vision_config", "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
        )
        _check_divides("vision_config", "patch_size", self.patch_size, "image_size", self.image_size)
        _check_activation("vision_config.hidden_act", self.hidden_act)
        for layer in self.feature_layers:
            if not 0 <= layer <= self.num_hidden_layers:
                raise ConfigError(
                    f"vision_feature_layer {layer} is outside the vision tower's {self.num_hidden_layers} layers"
                )

    @property
    def num_patches(self) -> int:
        return self.grid_side**2

    @property
    def grid_side(self) -> int:
        """Patches in a row or column."""
        return self.image_size // self.patch_size

    @property
    def num_features(self) -> int:
        """Rows that the tower hands to the projector."""
        return self.num_patches + self.keep_class_token

    @property
    def num_used_layers(self) -> int:
        """Layers that the features need; those above are neither loaded nor exported."""
        return max(self.feature_layers)

    @property
    def feature_size(self) -> int:
        return self.hidden_size * len(self.feature_layers)


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """What turns the tower's features into rows the decoder reads.

    ``type`` names the class: ``mlp`` keeps the number of rows, ``ldp`` and ``ldpv2`` halve their grid, whose side is
    ``grid_side``.
    """

    type: str
    in_features: int
    out_features: int
    hidden_act: str
    bias: bool
    grid_side: int

    def __post_init__(self) -> None:
        _check_activation("projector_hidden_act", self.hidden_act)
        if self.halves_grid and self.grid_side % 2:
            raise ConfigError(
                f"projector {self.type} halves the grid of patches, and {self.grid_side} a side cannot be halved"
            )

    @property
    def halves_grid(self) -> bool:
        return self.type in ("ldp", "ldpv2")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A Llama decoder."""

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
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool

    def __post_init__(self) -> None:
        _check_positive(
            self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
        )  # fmt: skip
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
    """A whole model, and the ids its prompts are made with."""

    vision: VisionConfig
    projector: ProjectorConfig
    text: TextConfig
    bos_id: int
    eos_ids: tuple[int, ...]

    @property
    def num_image_tokens(self) -> int:
        """Positions that an image takes in the decoder."""
        return self.vision.num_patches // 4 if self.projector.halves_grid else self.vision.num_features

    def __post_init__(self) -> None:
        if self.projector.in_features != self.vision.feature_size:
            raise ConfigError(
                f"the projector reads {self.projector.in_features} features, the vision tower gives "
                f"{self.vision.feature_size}"
            )
        if self.projector.halves_grid and self.vision.keep_class_token:
            raise ConfigError(f"projector {self.projector.type} reads a grid of patches, without the class token")
        if self.projector.out_features != self.text.hidden_size:
            raise ConfigError(
                f"the projector writes {self.projector.out_features} features, "
                f"the decoder reads {self.text.hidden_size}"
            )


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{type(config).__name__}.{name} must be a positive integer, not {value!r}")


def _check_divides(section: str, name: str, divisor: int, of: str, value: int) -> None:
    if value % divisor:
        raise ConfigError(f"{section}: {name} {divisor} does not divide {of} {value}")


def _check_activation(name: str, value: str) -> None:
    if value not in ACTIVATIONS:
        raise ConfigError(f"{name} {value!r} is not supported; choose from {', '.join(ACTIVATIONS)}")
