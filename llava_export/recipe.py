"""What is quantized, and how: a named recipe, perhaps with a part of it changed. torchao does the arithmetic.

Terms: ``8da4w`` is int8 dynamic activations (scaled per token at run time) with int4 weights scaled per group of
``group_size`` input features; ``8da8w`` the same with int8 weights scaled per output channel.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from llava_export.errors import RecipeError
from llava_export.models.names import TOKEN_EMBEDDING, VISION_ENCODER, is_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llava_export.config import TextConfig

LINEAR_SCHEMES = ("8da4w", "8da8w", "fp32")  # coarsest first
EMBEDDING_BITS = (4, 8, 32)
ALGORITHMS = ("minmax", "hqq")
# Types of the cached keys and values, and torch's names of them.
KV_CACHES = {"fp32": "float32", "bf16": "bfloat16"}
# XNNPACK's int4 kernels read scales once for a multiple of 32 input features.
GROUP_SIZE_STEP = 32
# Quantized at a time: what is computed on the way then stays in the processor's cache, which is several times faster.
ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Thresholds:
    """How far a program may be from the float model and still be called the same, as ``test_pte`` measures it.

    The cosine is the least allowed, of image features and of every token's logits; ``kl`` the most, in nats.
    """

    cosine: float
    kl: float


# By the coarsest scheme in use. Trained models stay far inside; 4 bits move the flat logits of an untrained one the
# most, and those are to pass too. Another model's logits have a cosine near 0.
THRESHOLDS = {
    "fp32": Thresholds(cosine=0.9999, kl=1e-4),
    "8da8w": Thresholds(cosine=0.99, kl=0.05),
    "8da4w": Thresholds(cosine=0.8, kl=0.5),
}


@dataclass(frozen=True)
class Recipe:
    """Schemes of text and vision linears, bits of the token embedding, type of the KV cache, how scales are chosen."""

    name: str
    text: str
    vision: str
    embedding_bits: int
    kv_cache: str = "bf16"
    group_size: int = 128
    algorithm: str = "minmax"

    def __post_init__(self) -> None:
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

    def with_changes(self, **changes: Any) -> Recipe:
        """The recipe with the given fields replaced; None leaves a field as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @property
    def thresholds(self) -> Thresholds:
        embedding = {4: "8da4w", 8: "8da8w", 32: "fp32"}[self.embedding_bits]
        return THRESHOLDS[min(self.text, self.vision, embedding, key=LINEAR_SCHEMES.index)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, model: nn.Module) -> None:
        """Raises ``RecipeError`` when the group size does not divide the input features of a layer it applies to."""
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
        """What each parameter of a model takes in a program, by its name: its values and their scales."""
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
        """Replace the weights of ``block`` in place; ``fqn`` is its name in the model and decides the scheme.

        They may be of any float dtype; the ones that are not quantized become float32.
        """
        import torch
        from torch import nn

        for path, module in list(block.named_modules()):
            name = ".".join(part for part in (fqn, path) if part)
            config = self._torchao_config(name, module)
            if config is not None:
                # HQQ stops when the error of all rows no longer falls, so it has to see them all.
                rows = ROWS_AT_ONCE if self.algorithm == "minmax" else module.weight.shape[0]
                module.weight = _quantized(module.weight, config, rows=rows)
            elif isinstance(module, (nn.Linear, nn.Embedding)):
                module.to(torch.float32)

    def _scheme(self, fqn: str) -> str:
        return self.vision if is_in(fqn, VISION_ENCODER) else self.text

    def _bits(self, fqn: str, module: nn.Module) -> int:
        """Of the weight of a module."""
        from torch import nn

        if isinstance(module, nn.Linear):
            return {"8da4w": 4, "8da8w": 8, "fp32": 32}[self._scheme(fqn)]
        return self.embedding_bits if fqn == TOKEN_EMBEDDING else 32

    def _is_grouped(self, fqn: str, module: nn.Module) -> bool:
        """Whether a weight has a scale for every ``group_size`` input features, and not one for a whole row."""
        bits = self._bits(fqn, module)
        return bits == 4 or (bits == 8 and fqn == TOKEN_EMBEDDING)

    def _torchao_config(self, fqn: str, module: nn.Module) -> Any:
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
    """A weight quantized some rows at a time. No scale spans two rows, so this changes nothing but the time."""
    import torch
    from torch import nn
    from torchao.quantization import quantize_

    slices: list[Any] = []
    for part in weight.split(rows):
        holder = nn.Linear(part.shape[1], part.shape[0], bias=False, device="meta")
        holder.weight = nn.Parameter(part.to(torch.float32), requires_grad=False)
        quantize_(holder, config)
        slices.append(holder.weight)
        del holder.weight  # torchao has given the holder a method of its own, so it is a cycle and stays for a while
    first = slices[0]
    tensors = [torch.cat([getattr(part, name) for part in slices]) for name in first.tensor_data_names]
    attributes = [getattr(first, name) for name in first.tensor_attribute_names]
    return nn.Parameter(type(first)(*tensors, *attributes), requires_grad=False)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("8da4w", text="8da4w", vision="8da8w", embedding_bits=8),
        Recipe("8da8w", text="8da8w", vision="8da8w", embedding_bits=8),
        Recipe("fp32", text="fp32", vision="fp32", embedding_bits=32, kv_cache="fp32"),
    )
}
DEFAULT_RECIPE = "8da4w"
