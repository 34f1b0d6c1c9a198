"""A checkpoint's tensors under the model's names: checked as a whole before work starts, filled in block by block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava_export.checkpoint.reader import CheckpointReader
from llava_export.config import LlavaConfig
from llava_export.errors import CheckpointError
from llava_export.families.family import Family
from llava_export.models.layers import FusedLinear

EMBEDDING = "token_embedding.weight"
HEAD = "text_decoder.lm_head.weight"
TOWER = "vision_encoder.vision_tower."
SHOWN = 4  # keys that an error names before it counts the rest


@dataclass(frozen=True)
class Need:
    """One tensor of a checkpoint, under its renamed key, that a parameter is made of."""

    fqn: str
    shape: tuple[int, ...]

    def fits(self, found: tuple[int, ...]) -> bool:
        """A checkpoint may have a 1x1 convolution where the model has a linear."""
        return found == self.shape or (len(self.shape) == 2 and found == (*self.shape, 1, 1))


class Weights:
    """The parameters of a ``LlavaModel`` of this config, read from this checkpoint."""

    def __init__(self, reader: CheckpointReader, *, family: Family, config: LlavaConfig) -> None:
        self._reader = reader
        self._family = family
        self._vision = config.vision
        self._tied = config.text.tie_word_embeddings
        self._unknown = [key for key in reader.shapes if family.rename(key) is None]
        self._key_of = {fqn: key for key in reader.shapes if (fqn := family.rename(key)) is not None}

    def check(self, model: nn.Module) -> None:
        """Every parameter has its tensors, of the right shape, and nothing is left over; else ``CheckpointError``."""
        needs = {need.fqn: need for _, _, needed in self._parameters(model, "") for need in needed}
        missing = sorted(needs.keys() - self._key_of.keys())
        spare = sorted(fqn for fqn in self._key_of.keys() - needs.keys() if not self._is_spare(fqn))
        unexpected = sorted(self._unknown) + [self._key_of[fqn] for fqn in spare]
        wrong = [
            f"{self._key_of[fqn]} is {list(found)}, config.json says {list(need.shape)}"
            for fqn, need in needs.items()
            if fqn in self._key_of and not need.fits(found := self._reader.shapes[self._key_of[fqn]])
        ]
        problems = [
            f"{len(items)} {what} ({_some(items)})"
            for what, items in (("keys missing", missing), ("unexpected keys", unexpected), ("wrong shapes", wrong))
            if items
        ]
        if problems:
            raise CheckpointError(f"{self._reader.folder} does not fit its config.json: {'; '.join(problems)}")

    def needs(self, model: nn.Module) -> list[Need]:
        """The checkpoint's tensors that a model is made of, each once, in the model's order."""
        return list(dict.fromkeys(need for _, _, needed in self._parameters(model, "") for need in needed))

    def key(self, need: Need) -> str:
        """The checkpoint's name for it."""
        return self._key_of[need.fqn]

    def dtype(self, need: Need) -> torch.dtype:
        """The checkpoint's; raises ``CheckpointError`` for one that is not a float's."""
        return self._reader.dtype(self._key_of[need.fqn])

    def read(self, need: Need) -> Tensor:
        """In the checkpoint's dtype."""
        return self.read_as_stored(need).reshape(need.shape)

    def read_as_stored(self, need: Need) -> Tensor:
        """With the checkpoint's own shape, too: a 1x1 convolution is one."""
        return self._reader.read(self._key_of[need.fqn])

    def fill(self, block: nn.Module, *, prefix: str, matrices_as_stored: bool = False) -> None:
        """Give every parameter of ``block`` its float32 values; ``prefix`` is the block's name in the model.

        With ``matrices_as_stored`` the weights of linears and embeddings keep the checkpoint's dtype.
        """
        for module, name, needed in self._parameters(block, prefix):
            tensors = [self.read(need) for need in needed]
            values = module.fuse(tensors) if isinstance(module, FusedLinear) else tensors[0]
            if not (matrices_as_stored and name == "weight" and isinstance(module, (nn.Linear, nn.Embedding))):
                values = values.to(torch.float32)
            setattr(module, name, nn.Parameter(values, requires_grad=False))

    def expect(self, block: nn.Module, *, prefix: str) -> None:
        """Have the system read the tensors of a block from disk while other work goes on; ``fill`` will take them."""
        for _, _, needed in self._parameters(block, prefix):
            for need in needed:
                self._reader.expect(self._key_of[need.fqn])

    def release(self, block: nn.Module) -> None:
        """Take the values away again and leave the shapes."""
        for module in block.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))

    def _parameters(self, block: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, list[Need]]]:
        for path, module in block.named_modules():
            fqn = ".".join(part for part in (prefix, path) if part)
            for name, parameter in module.named_parameters(recurse=False):
                yield module, name, self._needs(module, f"{fqn}.{name}", parameter)

    def _needs(self, module: nn.Module, fqn: str, parameter: Tensor) -> list[Need]:
        if self._tied and fqn == HEAD:
            fqn = EMBEDDING
        if not isinstance(module, FusedLinear):
            return [Need(fqn, tuple(parameter.shape))]
        parent, _, name = fqn.rsplit(".", 2)
        return [Need(f"{parent}.{part}.{name}", (rows, *parameter.shape[1:])) for part, rows in module.parts.items()]

    def _is_spare(self, fqn: str) -> bool:
        """A tensor that checkpoints carry and this model leaves alone."""
        if self._tied and fqn == HEAD:
            return True
        if layer := re.match(re.escape(TOWER) + r"layers\.(\d+)\.", fqn):
            return self._vision.num_used_layers <= int(layer[1]) < self._vision.num_hidden_layers
        return self._family.is_unused(fqn)


def _some(items: list[str]) -> str:
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f", and {more} more" if more > 0 else "")
