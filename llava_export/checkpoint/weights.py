"""A checkpoint's tensors under the model's names: checked as a whole before work starts, then loaded block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor, nn

from llava_export.checkpoint.lora import Correction, LoraUpdate
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.config import LlavaConfig
from llava_export.errors import CheckpointError, first_of
from llava_export.families.family import Family
from llava_export.models.layers import FusedLinear
from llava_export.models.names import LM_HEAD, TOKEN_EMBEDDING, decoder_layer, tower_layer

EMBEDDING_WEIGHT = f"{TOKEN_EMBEDDING}.weight"
HEAD_WEIGHT = f"{LM_HEAD}.weight"
FEW_LAYERS = 48  # the language models of published checkpoints have 24 to 40


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor of a checkpoint that a parameter of the model is made of.

    ``fqn`` is its key, renamed by the family. ``shape`` is what the model expects.
    """

    fqn: str
    shape: tuple[int, ...]

    def fits(self, found: tuple[int, ...]) -> bool:
        """Return whether a stored shape can be used. A checkpoint may store a linear as a 1x1 convolution."""
        return found == self.shape or (len(self.shape) == 2 and found == (*self.shape, 1, 1))


class Weights:
    """The parameters of a ``LlavaModel`` of this config, read from this checkpoint.

    ``updates`` are changes that adapters make in weights, by the model's names. What is read has them merged.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        *,
        family: Family,
        config: LlavaConfig,
        updates: Mapping[str, LoraUpdate] | None = None,
    ) -> None:
        self._reader = reader
        self._updates = updates or {}
        self._family = family
        self._vision, self._num_vision_layers = config.vision, config.num_vision_layers
        self._num_decoder_layers = config.text.num_hidden_layers
        self._tied = config.text.tie_word_embeddings
        self._unknown = [key for key in reader.shapes if family.rename(key) is None]
        self._largest: dict[tuple[str, bool], float] = {}  # by key, and whether updates are merged
        self._row_factors: dict[str, Tensor | None] = {}  # they take as long as merging, so they are kept
        self._key_of = {fqn: key for key in reader.shapes if (fqn := family.rename(key)) is not None}
        if self._tied and EMBEDDING_WEIGHT not in self._key_of and HEAD_WEIGHT in self._key_of:
            self._key_of[EMBEDDING_WEIGHT] = self._key_of[HEAD_WEIGHT]  # either of the two may be stored

    def check_depth(self) -> None:
        """Raise ``CheckpointError`` if the config has many layers of which there are no weights.

        ``check`` says more, but needs the model, and to build one of a hundred layers takes seconds.
        """
        for what, layer, needed in (
            ("vision tower", tower_layer(r"(\d+)"), self._num_vision_layers),
            ("language model", decoder_layer(r"(\d+)"), self._num_decoder_layers),
        ):
            if needed <= FEW_LAYERS:
                continue
            found = {int(match[1]) for fqn in self._key_of if (match := re.match(layer + r"\.", fqn))}
            if missing := sorted(set(range(needed)) - found):
                raise CheckpointError(
                    f"{self._reader.folder} does not fit its config.json, which has {needed} layers of the {what} that "
                    f"are used: there are no weights of layer {missing[0]}"
                    + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                )

    def check(self, model: nn.Module) -> None:
        """Raise ``CheckpointError`` unless all parameters have tensors of the right shape and none is left over."""
        tensors = {tensor.fqn: tensor for tensor in self.tensors(model)}
        missing = sorted(tensors.keys() - self._key_of.keys())
        left_over = sorted(fqn for fqn in self._key_of.keys() - tensors.keys() if not self._is_ignored(fqn))
        unexpected = sorted(self._unknown) + [self._key_of[fqn] for fqn in left_over]
        wrong = [
            f"{self._key_of[fqn]} is {list(found)}, config.json says {list(tensor.shape)}"
            for fqn, tensor in tensors.items()
            if fqn in self._key_of and not tensor.fits(found := self._reader.shapes[self._key_of[fqn]])
        ]
        problems = [
            f"{len(items)} {what} ({first_of(items)})"
            for what, items in (("keys missing", missing), ("unexpected keys", unexpected), ("wrong shapes", wrong))
            if items
        ]
        if problems:
            raise CheckpointError(f"{self._reader.folder} does not fit its config.json: {'; '.join(problems)}")

    def tensors(self, model: nn.Module) -> list[CheckpointTensor]:
        """Return the checkpoint's tensors that a model is made of, each once, in the model's order."""
        return list(dict.fromkeys(tensor for _, _, tensors in self._parameters(model, "") for tensor in tensors))

    def key(self, tensor: CheckpointTensor) -> str:
        """Return the checkpoint's own name of a tensor."""
        return self._key_of[tensor.fqn]

    def file_of(self, tensor: CheckpointTensor) -> Path:
        """Return the file that a tensor is read from, without what adapters change."""
        return self._reader.file_of(self._key_of[tensor.fqn])

    def dtype(self, tensor: CheckpointTensor) -> torch.dtype:
        """Return the checkpoint's type of a tensor. Raises ``CheckpointError`` if it is not a float type."""
        return self._reader.dtype(self._key_of[tensor.fqn])

    def read(self, tensor: CheckpointTensor) -> Tensor:
        """Return a tensor's values in the checkpoint's type and the model's shape."""
        return self.read_as_stored(tensor).reshape(tensor.shape)

    def read_as_stored(self, tensor: CheckpointTensor) -> Tensor:
        """Return a tensor's values in the checkpoint's type and shape, for example of a 1x1 convolution.

        Raises ``CheckpointError`` for NaN and infinity.
        """
        update = self._updates.get(tensor.fqn)
        values = self._reader.read(self._key_of[tensor.fqn])
        if update is not None:
            values = update.read().merged(values)
        self._check_values(tensor, values, update)
        return values

    def _check_values(self, tensor: CheckpointTensor, values: Tensor, update: LoraUpdate | None) -> None:
        """Raise ``CheckpointError`` for NaN and infinity in what was read, the first time that it is read.

        ``update`` is what was merged into it, or None.
        """
        key, merged = self._key_of[tensor.fqn], update is not None
        if (key, merged) in self._largest:
            return
        low, high = values.aminmax() if values.numel() else (torch.zeros(()), torch.zeros(()))
        self._largest[key, merged] = max(abs(float(low)), abs(float(high)))  # NaN if one value is
        if not math.isfinite(self._largest[key, merged]) or math.isnan(float(high)):
            count = int(values.numel() - values.isfinite().sum())
            what = f"{key} in {self._reader.file_of(key).parent}"
            if update is not None:
                what += f", with {update.shard.path} merged into it,"
            raise CheckpointError(
                f"{what} has NaN or infinity in {count:,} of {values.numel():,} values: the checkpoint is damaged, or "
                "training failed"
            )

    def largest(self, tensor: CheckpointTensor) -> float:
        """Return the largest magnitude in a tensor that has been read."""
        return self._largest[self._key_of[tensor.fqn], tensor.fqn in self._updates]

    def fill(
        self, block: nn.Module, *, prefix: str, matrices_as_stored: bool = False, updates_apart: bool = False
    ) -> None:
        """Give every parameter of ``block`` its float32 values. ``prefix`` is the block's name in the model.

        With ``matrices_as_stored`` the weights of linears and embeddings keep the checkpoint's type. With
        ``updates_apart`` nothing is merged into the weights of linears: what adapters change there is a ``Correction``,
        the parameter's attribute ``correction``.
        """
        for module, name, sources in self._parameters(block, prefix):
            is_linear = name == "weight" and isinstance(module, nn.Linear)
            apart = updates_apart and is_linear and any(source.fqn in self._updates for source in sources)
            tensors = [self._read_base(source) if apart else self.read(source) for source in sources]
            fuse = module.fuse if isinstance(module, FusedLinear) else itemgetter(0)
            values = fuse(tensors)
            if not (matrices_as_stored and (is_linear or isinstance(module, nn.Embedding))):
                values = values.to(torch.float32)
            parameter = nn.Parameter(values, requires_grad=False)
            if apart:
                parameter.correction = self._correction(sources, tensors, fuse)  # type: ignore[attr-defined]
            setattr(module, name, parameter)

    def _read_base(self, source: CheckpointTensor) -> Tensor:
        """Return a tensor's values without what adapters change."""
        values = self._reader.read(self._key_of[source.fqn])
        self._check_values(source, values, None)
        return values.reshape(source.shape)

    def _correction(
        self, sources: list[CheckpointTensor], tensors: list[Tensor], fuse: Callable[[Sequence[Tensor]], Tensor]
    ) -> Correction:
        """Return what adapters change in a linear whose weight ``fuse`` makes of these tensors."""
        changes, factors, indices, start = [], [], [], 0
        for source, tensor in zip(sources, tensors, strict=True):
            rows = slice(start, start + len(tensor))
            factor = None
            if source.fqn in self._updates:
                change = self._updates[source.fqn].read()
                if source.fqn not in self._row_factors:
                    self._row_factors[source.fqn] = change.row_factors(tensor)
                factor = self._row_factors[source.fqn]
                changes.append((rows, change))
            factors.append(torch.ones(len(tensor)) if factor is None else factor)
            indices.append(torch.arange(rows.start, rows.stop))
            start = rows.stop
        scaled = any(self._row_factors.get(source.fqn) is not None for source in sources)
        return Correction(changes, fuse(indices), torch.cat(factors) if scaled else None)

    def prefetch(self, block: nn.Module, *, prefix: str) -> None:
        """Ask the system to read a block's tensors from disk, without waiting. A later ``fill`` finds them ready."""
        for _, _, tensors in self._parameters(block, prefix):
            for tensor in tensors:
                self._reader.prefetch(self._key_of[tensor.fqn])
                if tensor.fqn in self._updates:
                    self._updates[tensor.fqn].prefetch()

    def release(self, block: nn.Module) -> None:
        """Drop the values of a block's parameters and keep their shapes."""
        for module in block.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))

    def _parameters(self, block: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, list[CheckpointTensor]]]:
        """Yield each parameter's module, its name there, and the tensors it is made of."""
        for path, module in block.named_modules():
            fqn = ".".join(part for part in (prefix, path) if part)
            for name, parameter in module.named_parameters(recurse=False):
                yield module, name, self._sources(module, f"{fqn}.{name}", parameter)

    def _sources(self, module: nn.Module, fqn: str, parameter: Tensor) -> list[CheckpointTensor]:
        """Return the tensors that a parameter is made of: one, or one for each part of a fused linear."""
        if self._tied and fqn == HEAD_WEIGHT:
            fqn = EMBEDDING_WEIGHT
        if not isinstance(module, FusedLinear):
            return [CheckpointTensor(fqn, tuple(parameter.shape))]
        parent, _, name = fqn.rsplit(".", 2)
        return [
            CheckpointTensor(f"{parent}.{part}.{name}", (rows, *parameter.shape[1:]))
            for part, rows in module.parts.items()
        ]

    def _is_ignored(self, fqn: str) -> bool:
        """Return whether a checkpoint may have a tensor that this model does not use."""
        if self._tied and fqn == HEAD_WEIGHT:
            return True
        if self._vision and (layer := re.match(tower_layer(r"(\d+)") + r"\.", fqn)):
            return self._num_vision_layers <= int(layer[1]) < self._vision.num_hidden_layers
        return self._family.is_unused(fqn)
