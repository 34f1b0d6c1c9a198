"""What a LoRA changes in one weight: added to it some rows at a time, or kept apart as two small matrices.

LoRA (Hu et al., 2021) adds a product of two small matrices to a weight. DoRA (Liu et al., 2024) then also gives each
row of the sum a length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_export.checkpoint.shards import LoadedShard, Shard
from llava_export.errors import CheckpointError

ROWS_AT_ONCE = 1024  # of a weight, in float32


@dataclass(frozen=True)
class LowRank:
    """A change of a weight ``[rows, columns]``, in float32.

    The changed weight is ``weight + scale * left @ right``, with ``left`` ``[rows, rank]`` and ``right`` ``[rank,
    columns]``. With ``lengths`` ``[rows]`` its rows are then scaled to these lengths.
    """

    left: Tensor
    right: Tensor
    scale: float
    lengths: Tensor | None = None

    def merged(self, weight: Tensor) -> Tensor:
        """Return the changed weight in the type and shape of ``weight``. More dimensions count as columns."""
        merged = torch.empty(weight.shape, dtype=weight.dtype)
        self._changed(weight, into=merged.flatten(1))
        return merged

    def row_factors(self, weight: Tensor) -> Tensor | None:
        """Return what the rows are multiplied with after the addition, or None if they are not."""
        return None if self.lengths is None else self._changed(weight)

    def product(self, x: Tensor) -> Tensor:
        """Return what is added to the products of rows ``x`` and the weight, ``[..., rows]``."""
        return F.linear(F.linear(x, self.right) * self.scale, self.left)

    def _changed(self, weight: Tensor, *, into: Tensor | None = None) -> Tensor:
        """Return the factors of the rows, and write the changed rows."""
        factors = torch.ones(len(weight))
        buffer = torch.empty(ROWS_AT_ONCE, self.right.shape[1])  # one for all rows: new memory takes time to clear
        for start in range(0, len(weight), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            changed = buffer[: len(weight) - start]
            changed.copy_(weight[rows].flatten(1)).addmm_(self.left[rows], self.right, alpha=self.scale)
            if self.lengths is not None:
                factors[rows] = self.lengths[rows] / changed.norm(dim=1)
                changed *= factors[rows, None]
            if into is not None:
                into[rows] = changed
        return factors


@dataclass(frozen=True)
class Correction:
    """The changes of the weights that one linear is made of, to be applied to what it makes without them.

    ``changes`` has the rows of each changed weight before the weights were fused, and ``order`` which of these rows
    each row of the linear is. ``factors`` ``[rows]`` scale the outputs, or are None.
    """

    changes: Sequence[tuple[slice, LowRank]]
    order: Tensor
    factors: Tensor | None

    def apply(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the outputs of the changed linear, given those without the changes, ``y``, and its inputs."""
        added = torch.zeros_like(y)
        for rows, change in self.changes:
            added[..., rows] = change.product(x)
        y = y + added[..., self.order]
        return y if self.factors is None else y * self.factors[self.order]


@dataclass(frozen=True)
class LoraUpdate:
    """What an adapter changes in one weight, in its file.

    ``a`` and ``b`` are the keys of ``lora_A`` and ``lora_B``, and ``magnitude`` that of DoRA's lengths or None. The
    matrices of an embedding are those of its transpose.
    """

    shard: Shard | LoadedShard
    a: str
    b: str
    scale: float
    magnitude: str | None = None
    is_embedding: bool = False

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Return the shapes in words if they do not fit a weight of this shape, or None if they do."""
        shapes = self.shard.shapes
        a, b = shapes[self.a], shapes[self.b]
        wide = _flat(shape)
        rows, columns = reversed(wide) if self.is_embedding else wide
        fits = len(shape) >= 2 and _flat(a)[1:] == (columns,) and _flat(b) == (rows, a[0])
        if self.magnitude is not None:
            fits = fits and len(shape) == 2 and shapes[self.magnitude] == (rows,)
        return None if fits else f"{list(a)} and {list(b)} for a weight of {list(shape)}"

    def read(self) -> LowRank:
        """Return the change. Raises ``CheckpointError`` for values that are no numbers."""
        a, b = self._read(self.a).flatten(1), self._read(self.b).flatten(1)
        if self.is_embedding:
            return LowRank(a.T, b.T, self.scale)
        return LowRank(b, a, self.scale, self._read(self.magnitude) if self.magnitude is not None else None)

    def of_parts(self, rows: Mapping[str, int]) -> dict[str, LoraUpdate]:
        """Return what is changed in the parts of a fused weight, by their names. ``rows`` are theirs, in order."""
        for key in (self.b, *((self.magnitude,) if self.magnitude else ())):
            self.shard.divide(key, {f"{key}[{name}]": count for name, count in rows.items()})
        return {
            name: replace(self, b=f"{self.b}[{name}]", magnitude=self.magnitude and f"{self.magnitude}[{name}]")
            for name in rows
        }

    def prefetch(self) -> None:
        """Ask the system to read the matrices from disk, without waiting."""
        for key in (self.a, self.b):
            self.shard.prefetch(key)

    def _read(self, key: str) -> Tensor:
        values = self.shard.read(key).to(torch.float32)
        if not values.sum().isfinite() and not values.isfinite().all():  # the sum is a quick sign
            raise CheckpointError(f"{key} in {self.shard.path} has NaN or infinity: it is damaged, or training failed")
        return values


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with all dimensions after the first as one."""
    columns = 1
    for size in shape[1:]:
        columns *= size
    return (*shape[:1], columns)
