"""Recipes: what is quantized, and how. torchao does the arithmetic.

A linear is quantized by one of three schemes. With ``8da4w``, activations become int8 with a scale per token, chosen at
run time, and weights int4 with a scale per ``group_size`` input features. With ``8da8w``, weights are int8 with a scale
per output channel. With ``fp32`` nothing is quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from llava_export.errors import RecipeError
from llava_export.models.names import TOKEN_EMBEDDING, VISION_ENCODER, is_in
from llava_runner.documents import JsonObject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llava_export.config import TextConfig

LINEAR_SCHEMES = ("8da4w", "8da8w", "fp32")  # coarsest first
# Bits of a weight by its linear's scheme, and the scheme that is as coarse as an embedding of so many bits.
SCHEME_BITS = {"8da4w": 4, "8da8w": 8, "fp32": 32}
SCHEME_OF_BITS = {bits: scheme for scheme, bits in SCHEME_BITS.items()}
EMBEDDING_BITS = (4, 8, 32)
ALGORITHMS = ("minmax", "hqq")
# torch's names for the types of cached keys and values.
KV_CACHES = {"fp32": "float32", "bf16": "bfloat16"}
# XNNPACK's int4 kernels read a scale for each multiple of 32 input features.
GROUP_SIZE_STEP = 32
# How many rows of a weight are quantized at a time. Intermediate results then stay in the processor's cache, which is
# several times faster.
ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Thresholds:
    """The distance from the float model at which a program still passes ``llava verify``.

    ``cosine`` is the smallest similarity allowed, of image features and of every token's logits. ``kl`` is the largest
    Kullback-Leibler divergence of the next token allowed, in nats.
    """

    cosine: float
    kl: float


# Thresholds by the coarsest scheme of a recipe. Trained models stay far inside. Untrained ones have to pass, too, and 4
# bits change their flat logits the most. The logits of another model have a cosine near 0.
THRESHOLDS = {
    "fp32": Thresholds(cosine=0.9999, kl=1e-4),
    "8da8w": Thresholds(cosine=0.99, kl=0.05),
    "8da4w": Thresholds(cosine=0.8, kl=0.5),
}


@dataclass(frozen=True)
class Recipe:
    """A recipe: how each part of a model is quantized.

    ``text`` and ``vision`` are schemes out of ``LINEAR_SCHEMES``: of the decoder's linears, and of those in the vision
    tower and projector. ``embedding_bits`` is the size of a value of the token embedding, ``kv_cache`` the type of
    cached keys and values, and ``group_size`` the number of input features that share a scale. ``algorithm`` chooses
    the scales: ``minmax`` from the largest magnitude, or ``hqq``, which minimizes the error (Badri and Shaji, 2023).
    """

    name: str
    text: str
    vision: str
    embedding_bits: int
    kv_cache: str = "bf16"
    group_size: int = 128
    algorithm: str = "minmax"

    def __post_init__(self) -> None:
        """Raise ``RecipeError`` for values that no recipe can have."""
        for what, value, allowed in (
            ("text scheme", self.text, LINEAR_SCHEMES),
            ("vision scheme", self.vision, LINEAR_SCHEMES),
            ("embedding bits", self.embedding_bits, EMBEDDING_BITS),
            ("KV cache", self.kv_cache, KV_CACHES),
            ("algorithm", self.algorithm, ALGORITHMS),
        ):
            if value not in allowed:
                raise RecipeError(f"{what} {value!r} is not one of {', '.join(map(str, allowed))}")
        if self.group_size < GROUP_SIZE_STEP or self.group_size % GROUP_SIZE_STEP:
            raise RecipeError(f"group size {self.group_size} is not a multiple of {GROUP_SIZE_STEP}, as XNNPACK needs")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """Return the recipe that ``to_dict`` wrote. Raises ``RecipeError`` for fields that no recipe has."""
        return JsonObject(fields, what="the recipe", error=RecipeError).record(cls)

    def with_changes(self, **changes: Any) -> Recipe:
        """Return the recipe with the given fields replaced. A field that is None stays as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds for a program of this recipe."""
        embedding = SCHEME_OF_BITS[self.embedding_bits]
        return THRESHOLDS[min(self.text, self.vision, embedding, key=LINEAR_SCHEMES.index)]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def check(self, model: nn.Module) -> None:
        """Raise ``RecipeError`` if the group size does not divide the input features of a layer that has groups."""
        grouped = {
            fqn: module.weight.shape[1] for fqn, module in model.named_modules() if self._is_grouped(fqn, module)
        }
        bad = {fqn: size for fqn, size in grouped.items() if size % self.group_size}
        if not bad:
            return
        fqn, size = next(iter(bad.items()))
        fitting = [step for step in (32, 64, 128, 256) if all(features % step == 0 for features in grouped.values())]
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

    def stored_bytes(self, model: nn.Module) -> dict[str, int]:
        """Return the bytes that each parameter takes in a program, by name: its values and their scales."""
        sizes = {}
        for fqn, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                bits = self._bits(fqn, module) if name == "weight" else 32
                scales = 0
                if bits < 32:
                    per_scale = self.group_size if self._is_grouped(fqn, module) else parameter.shape[1]
                    # XNNPACK reads scales of int4 as bfloat16, and all others as float32.
                    scales = parameter.numel() // per_scale * (2 if bits == 4 and fqn != TOKEN_EMBEDDING else 4)
                sizes[f"{fqn}.{name}"] = parameter.numel() * bits // 8 + scales
        return sizes

    def quantize(self, block: nn.Module, *, fqn: str) -> None:
        """Replace the weights of ``block`` by quantized ones. ``fqn`` is its name in the model, and decides the scheme.

        The weights may be of any float type. Those of linears and embeddings that are not quantized become float32.
        """
        import torch
        from torch import nn

        for path, module in list(block.named_modules()):
            name = ".".join(part for part in (fqn, path) if part)
            config = self._torchao_config(name, module)
            if config is not None:
                # HQQ stops when the error of all rows together no longer falls, so it has to see all of them.
                rows = ROWS_AT_ONCE if self.algorithm == "minmax" else module.weight.shape[0]
                module.weight = _quantized(module.weight, config, rows=rows)
            elif isinstance(module, (nn.Linear, nn.Embedding)):
                module.to(torch.float32)

    def _scheme(self, fqn: str) -> str:
        """Return the scheme of a linear."""
        return self.vision if is_in(fqn, VISION_ENCODER) else self.text

    def _bits(self, fqn: str, module: nn.Module) -> int:
        """Return the bits of a value of a module's weight."""
        from torch import nn

        if isinstance(module, nn.Linear):
            return SCHEME_BITS[self._scheme(fqn)]
        return self.embedding_bits if fqn == TOKEN_EMBEDDING else 32

    def _is_grouped(self, fqn: str, module: nn.Module) -> bool:
        """Return whether a weight has a scale per ``group_size`` input features, and not one per row."""
        bits = self._bits(fqn, module)
        return bits == 4 or (bits == 8 and fqn == TOKEN_EMBEDDING)

    def _torchao_config(self, fqn: str, module: nn.Module) -> Any:
        """Return what torchao has to do with a module's weight, or None if it is not quantized."""
        import torch
        from torchao.quantization.granularity import PerAxis, PerGroup
        from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig
        from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

        bits = self._bits(fqn, module)
        if bits == 32:
            return None
        dtype = {4: torch.int4, 8: torch.int8}[bits]  # type: ignore[attr-defined]  # torch's stubs lack int4
        granularity = PerGroup(self.group_size) if self._is_grouped(fqn, module) else PerAxis(0)
        algorithm = {
            "minmax": IntxChooseQParamsAlgorithm.AFFINE,
            "hqq": IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
        }[self.algorithm]
        if fqn == TOKEN_EMBEDDING:
            return IntxWeightOnlyConfig(
                weight_dtype=dtype, granularity=granularity, intx_choose_qparams_algorithm=algorithm
            )
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=dtype, weight_granularity=granularity, intx_choose_qparams_algorithm=algorithm
        )


def _quantized(weight: Tensor, config: Any, *, rows: int) -> nn.Parameter:
    """Return a weight quantized ``rows`` rows at a time. No scale spans two rows, so this changes only the time."""
    import torch
    from torch import nn
    from torchao.quantization import quantize_

    slices: list[Any] = []
    for part in weight.split(rows):
        holder = nn.Linear(part.shape[1], part.shape[0], bias=False, device="meta")
        holder.weight = nn.Parameter(part.to(torch.float32), requires_grad=False)
        quantize_(holder, config)
        slices.append(holder.weight)
        # torchao gave the holder a method that refers to it, so it is freed late. Its weight must not wait for that.
        del holder.weight
    first = slices[0]
    tensors = [torch.cat([getattr(part, name) for part in slices]) for name in first.tensor_data_names]
    attributes = [getattr(first, name) for name in first.tensor_attribute_names]
    return nn.Parameter(type(first)(*tensors, *attributes), requires_grad=False)


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
