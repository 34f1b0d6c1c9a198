"""Recipes: what is quantized, and how. ``quantize`` does the arithmetic.

A linear is quantized by one of three schemes. With ``8da4w``, activations become int8 with a scale per token, chosen at
run time, and weights int4 with a scale per ``group_size`` input features. With ``8da8w``, weights are int8 with a scale
per output channel. With ``fp32`` nothing is quantized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from typing import TYPE_CHECKING, Any

from llava_export.errors import RecipeError
from llava_export.models.names import LM_HEAD, TEXT_DECODER, TOKEN_EMBEDDING, VISION_ENCODER, is_in
from llava_runner.documents import JsonObject

if TYPE_CHECKING:
    from torch import nn

    from llava_export.config import TextConfig
    from llava_export.models.llava import LlavaModel
    from llava_export.quantize.weights import CalibratedBlock

LINEAR_SCHEMES = ("8da4w", "8da8w", "fp32")  # coarsest first
# Bits of a weight by its linear's scheme, and the scheme that is as coarse as an embedding of so many bits.
SCHEME_BITS = {"8da4w": 4, "8da8w": 8, "fp32": 32}
SCHEME_OF_BITS = {bits: scheme for scheme, bits in SCHEME_BITS.items()}
EMBEDDING_BITS = (4, 8, 32)
# Algorithms that calibrate.
GPTQ, AWQ, AWQ_GPTQ = CALIBRATED = ("gptq", "awq", "awq-gptq")
CALIBRATING = f"{', '.join(CALIBRATED[:-1])} or {CALIBRATED[-1]}"  # in messages
ALGORITHMS = ("mse", "minmax", "hqq", *CALIBRATED)
# torch's names for the types of cached keys and values.
KV_CACHES = {"fp32": "float32", "bf16": "bfloat16"}
# XNNPACK's int4 kernels read a scale for each multiple of 32 input features.
GROUP_SIZE_STEP = 32
# Larger groups are read faster. A decoder of fewer parameters has no redundancy to make up for what they lose.
GROUP_SIZES, SMALL_DECODER = (128, 64, 32), 1_000_000_000
# A head of 8 bits may cost this share of a program's bytes.
HEAD_SHARE = 0.025


@dataclass(frozen=True)
class Thresholds:
    """The distance from the float model at which a program still passes ``llava verify``.

    ``cosine`` is the smallest similarity allowed, of image features and of every token's logits. ``kl`` is the largest
    Kullback-Leibler divergence of the next token allowed, in nats, as the mean over an answer.
    """

    cosine: float
    kl: float


# Thresholds by the coarsest scheme of a recipe, and those of calibrated 4 bits. Untrained models have to pass, too, and
# 4 bits change their flat logits the most. The logits of another model have a cosine near 0.
THRESHOLDS = {
    "fp32": Thresholds(cosine=0.9999, kl=1e-4),
    "8da8w": Thresholds(cosine=0.99, kl=0.05),
    "8da4w": Thresholds(cosine=0.8, kl=0.35),
}
CALIBRATED_THRESHOLDS = Thresholds(cosine=0.8, kl=0.2)


@dataclass(frozen=True)
class Recipe:
    """A recipe: how each part of a model is quantized.

    ``text``, ``head`` and ``vision`` are schemes out of ``LINEAR_SCHEMES``: of the decoder's linears, of its last one,
    which gives the logits, and of those in the vision tower and projector. ``embedding_bits`` is the size of a value of
    the token embedding, ``kv_cache`` the type of cached keys and values, and ``group_size`` the number of input
    features that share a scale. ``algorithm`` chooses the scales of 4-bit weights: ``mse`` searches for the least
    squared error, ``minmax`` takes the largest magnitude, and ``hqq`` is Half-Quadratic Quantization (Badri and Shaji,
    2023). With ``gptq``, ``awq`` and ``awq-gptq`` the decoder's layers are calibrated (see ``calibration``), and the
    rest is as with ``mse``.

    ``head`` and ``group_size`` may be None until ``fitted`` chooses them for a model. ``exceptions`` are linears with a
    scheme of their own, by their names in the model: ``text_decoder.layers.3.mlp.down_proj``.
    """

    name: str
    text: str
    vision: str
    embedding_bits: int
    kv_cache: str = "bf16"
    head: str | None = None
    group_size: int | None = None
    algorithm: str = "mse"
    exceptions: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Raise ``RecipeError`` for values that no recipe can have."""
        for what, value, allowed in (
            ("text scheme", self.text, LINEAR_SCHEMES),
            ("vision scheme", self.vision, LINEAR_SCHEMES),
            ("head scheme", self.head, (None, *LINEAR_SCHEMES)),
            ("embedding bits", self.embedding_bits, EMBEDDING_BITS),
            ("KV cache", self.kv_cache, KV_CACHES),
            ("algorithm", self.algorithm, ALGORITHMS),
            *((f"scheme of {fqn}", scheme, LINEAR_SCHEMES) for fqn, scheme in self.exceptions.items()),
        ):
            if value not in allowed:
                raise RecipeError(f"{what} {value!r} is not one of {', '.join(map(str, allowed))}")
        if LM_HEAD in self.exceptions:
            raise RecipeError(f"{LM_HEAD} is the head, which is no exception: it has a scheme of its own")
        if self.calibrates and SCHEME_BITS[self.text] != 4:
            raise RecipeError(f"{self.algorithm} chooses 4-bit weights, and the text scheme {self.text} has none")
        size = self.group_size
        if size is not None and (size < GROUP_SIZE_STEP or size % GROUP_SIZE_STEP):
            raise RecipeError(f"group size {self.group_size} is not a multiple of {GROUP_SIZE_STEP}, as XNNPACK needs")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """Return the recipe that ``to_dict`` wrote. Raises ``RecipeError`` for fields that no recipe of a model has."""
        if "head" not in fields and "text" in fields:  # before 0.2 the head was as the other linears
            fields = {**fields, "head": fields["text"]}
        recipe = JsonObject({"exceptions": {}, **fields}, what="the recipe", error=RecipeError).record(cls)
        if open_choices := [field.name for field in dataclass_fields(cls) if getattr(recipe, field.name) is None]:
            raise RecipeError(f"the recipe does not say its {' and '.join(open_choices)}")
        return recipe

    def with_changes(self, **changes: Any) -> Recipe:
        """Return the recipe with the given fields replaced. A field that is None stays as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds for the logits of a program of this recipe."""
        embedding = SCHEME_OF_BITS[self.embedding_bits]
        schemes = (self.text, self.head or self.text, self.vision, embedding, *self.exceptions.values())
        # Only the linears of the decoder's layers are calibrated.
        if self.calibrates and "8da4w" not in (self.head, self.vision, embedding):
            return CALIBRATED_THRESHOLDS
        return THRESHOLDS[min(schemes, key=LINEAR_SCHEMES.index)]

    @property
    def feature_thresholds(self) -> Thresholds:
        """The thresholds for the image features of a program of this recipe."""
        return THRESHOLDS[self.vision]

    @property
    def quantizes_layers(self) -> bool:
        """Whether any linear of the layers is quantized, of the decoder's or the vision tower's."""
        return any(scheme != "fp32" for scheme in (self.text, self.vision, *self.exceptions.values()))

    @property
    def calibrates(self) -> bool:
        """Whether the decoder's layers are quantized for the inputs that samples give them."""
        return self.algorithm in CALIBRATED

    def scheme(self, fqn: str) -> str:
        """Return the scheme of a linear, by its name in the model."""
        if fqn in self.exceptions:
            return self.exceptions[fqn]
        if fqn == LM_HEAD:
            return self.head or self.text
        return self.vision if is_in(fqn, VISION_ENCODER) else self.text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name. Where there are no exceptions, the field is left out."""
        fields = {field.name: getattr(self, field.name) for field in dataclass_fields(self)}
        exceptions = dict(fields.pop("exceptions"))
        return {**fields, "exceptions": exceptions} if exceptions else fields

    def fitted(self, model: LlavaModel) -> Recipe:
        """Return the recipe with the group size and the head's scheme chosen for ``model``, where they are None.

        Groups are as large as the layers allow, and small in a small decoder. A head of 4 bits gets 8 if they cost
        little: its rounding reaches the logits directly. If it is tied to an embedding of 8 bits, they cost nothing.
        """
        recipe = self
        if recipe.group_size is None:
            decoder = sum(parameter.numel() for parameter in model.get_submodule(TEXT_DECODER).parameters())
            sizes = GROUP_SIZES if decoder >= SMALL_DECODER else GROUP_SIZES[-1:]
            recipe = replace(recipe, group_size=next((s for s in sizes if not recipe._undivided(model, s)), sizes[-1]))
        if recipe.head is None:
            coarse, fine = replace(recipe, head=recipe.text), replace(recipe, head="8da8w")
            before, after = (sum(choice.stored_bytes(model).values()) for choice in (coarse, fine))
            is_finer = SCHEME_BITS[recipe.text] < SCHEME_BITS["8da8w"]
            recipe = fine if is_finer and after <= (1 + HEAD_SHARE) * before else coarse
        return recipe

    def check(self, model: nn.Module) -> None:
        """Raise ``RecipeError`` if the recipe does not fit the model.

        That is if the group size does not divide the input features of a layer that has groups, or if an exception is
        no linear of the model.
        """
        from torch import nn

        linears = {fqn for fqn, module in model.named_modules() if isinstance(module, nn.Linear)}
        if unknown := [fqn for fqn in self.exceptions if fqn not in linears]:
            raise RecipeError(f"the recipe has a scheme for {unknown[0]!r}, which is no linear of the model")
        bad = self._undivided(model, self._fitted_group_size)
        if not bad:
            return
        fqn, size = next(iter(bad.items()))
        fitting = [step for step in (32, 64, 128, 256) if not self._undivided(model, step)]
        advice = (
            f"--group-size {' or '.join(map(str, fitting))} fits" if fitting else "no group size of 32 or more fits"
        )
        raise RecipeError(
            f"group size {self.group_size} does not divide the {size} input features of {fqn}"
            + (f" ({len(bad)} such layers)" if len(bad) > 1 else "")
            + f"; {advice}"
        )

    def cache_bytes(self, config: TextConfig) -> int:
        """Return the bytes that one position takes in the KV cache."""
        import torch

        per_layer = 2 * config.num_key_value_heads * config.head_dim
        return config.num_hidden_layers * per_layer * getattr(torch, KV_CACHES[self.kv_cache]).itemsize

    def stored_bytes(self, model: LlavaModel) -> dict[str, int]:
        """Return the bytes that each parameter takes in a program, by name: its values and their scales.

        A tied head of as many bits as the embedding takes none: the two are stored once.
        """
        sizes = {}
        for fqn, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                bits = self._bits(fqn, module) if name == "weight" else 32
                scales = 0
                if bits < 32:
                    per_scale = self._fitted_group_size if bits == 4 else parameter.shape[1]
                    # XNNPACK reads scales of int4 as bfloat16, and all others as float32.
                    scales = parameter.numel() // per_scale * (2 if bits == 4 and fqn != TOKEN_EMBEDDING else 4)
                sizes[f"{fqn}.{name}"] = parameter.numel() * bits // 8 + scales
        head_bits = self._bits(LM_HEAD, model.get_submodule(LM_HEAD))
        if model.has_tied_head and head_bits == self.embedding_bits and head_bits != 4:  # 4 bits have two layouts
            sizes[f"{LM_HEAD}.weight"] = 0
        return sizes

    def quantize(self, block: nn.Module, *, fqn: str, calibrated: CalibratedBlock | None = None) -> None:
        """Replace the weights of ``block`` by quantized ones. ``fqn`` is its name in the model, and decides the scheme.

        The weights may be of any float type. Those of linears and embeddings that are not quantized become float32.
        ``calibrated`` has what was calibrated before, and is used as it is.
        """
        import torch
        from torch import nn

        from llava_export.quantize.weights import int4_weight, quantized

        for path, module in list(block.named_modules()):
            name = ".".join(part for part in (fqn, path) if part)
            bits = self._bits(name, module)
            if calibrated and path in calibrated.norms:
                weight = calibrated.norms[path].to(module.weight.device)
                module.weight = nn.Parameter(weight, requires_grad=False)
            elif calibrated and path in calibrated.linears:
                integers, scales = (tensor.to(module.weight.device) for tensor in calibrated.linears[path])
                module.weight = int4_weight(integers, scales, rounds_inputs=True)
            elif bits < 32:
                module.weight = quantized(
                    module.weight,
                    bits=bits,
                    group_size=self._fitted_group_size if bits == 4 else None,
                    algorithm="mse" if self.calibrates else self.algorithm,
                    rounds_inputs=isinstance(module, nn.Linear),
                )
            elif isinstance(module, (nn.Linear, nn.Embedding)):
                module.to(torch.float32)

    @property
    def _fitted_group_size(self) -> int:
        """The group size of a recipe that is fitted to a model."""
        assert self.group_size is not None, "the recipe was not fitted to a model"
        return self.group_size

    def _undivided(self, model: nn.Module, group_size: int) -> dict[str, int]:
        """Return the input features of the layers with groups that a group size does not divide, by name."""
        return {
            fqn: module.weight.shape[1]
            for fqn, module in model.named_modules()
            if self._bits(fqn, module) == 4 and module.weight.shape[1] % group_size
        }

    def _bits(self, fqn: str, module: nn.Module) -> int:
        """Return the bits of a value of a module's weight: 32 where it is not quantized.

        4-bit weights have a scale per group, and 8-bit ones a scale per row.
        """
        from torch import nn

        if isinstance(module, nn.Linear):
            return SCHEME_BITS[self.scheme(fqn)]
        return self.embedding_bits if fqn == TOKEN_EMBEDDING else 32


def recipe_text(fields: Mapping[str, Any], *, has_vision: bool = True) -> str:
    """Return the fields of a recipe, as ``to_dict`` returns them, as text: "8da4w: text 8da4w, vision 8da8w".

    A model without a vision tower has no scheme for it.
    """
    exceptions = fields.get("exceptions")
    schemes = Counter(exceptions.values() if isinstance(exceptions, Mapping) else ())
    unnamed = ("name", "exceptions", *(() if has_vision else ("vision",)))
    words = [f"{name} {value}" for name, value in fields.items() if name not in unnamed]
    words += [f"{count} linears {scheme}" for scheme, count in sorted(schemes.items())]
    return f"{fields.get('name')}: {', '.join(words)}"


# Recipes by the names that --recipe accepts.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("8da4w", text="8da4w", vision="8da8w", embedding_bits=8),
        Recipe("8da8w", text="8da8w", vision="8da8w", embedding_bits=8),
        Recipe("fp32", text="fp32", vision="fp32", embedding_bits=32, kv_cache="fp32"),
    )
}
DEFAULT_RECIPE = "8da4w"
