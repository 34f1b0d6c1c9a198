"""The float model, run from the checkpoint one block at a time, so that only one block's weights are in memory.

A small one may also have all its weights in memory, which is faster. ``float_model`` chooses.

Matrices keep the checkpoint's type, which is half precision mostly. When they are multiplied, some rows at a time
become float32, and these never leave the processor's cache. So a token takes little longer than reading the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.weights import Weights
from llava_export.models.llava import LlavaModel
from llava_export.models.names import (
    DECODER_NORM,
    LM_HEAD,
    PROJECTOR,
    TOKEN_EMBEDDING,
    VISION_TOWER,
    decoder_layer,
    tower_layer,
)
from llava_runner.model import Model

ROWS_AT_ONCE = 512  # of a matrix, converted to float32
SMALL = 1 << 26  # parameters of a model that is held in memory: at most 256 MiB in float32


def float_model(checkpoint: Checkpoint, *, max_context_len: int) -> Model:
    """Return the float model of a checkpoint: a small one with its weights in memory, a larger one block by block."""
    model = checkpoint.build_model(max_context_len=max_context_len)
    if sum(weight.numel() for weight in model.parameters()) > SMALL:
        return FloatReference(model, weights=checkpoint.weights)
    checkpoint.weights.fill(model, prefix="")
    return FloatModel(model)


@dataclass
class FloatModel:
    """A ``llava_runner.model.Model`` that torch computes. The weights of ``modules`` must be filled."""

    modules: LlavaModel

    @torch.no_grad()
    def encode_image(self, pixels: np.ndarray) -> Tensor:
        """Return the features ``float32 [1, num_image_tokens, hidden_size]`` of an RGB image ``uint8 [3, H, W]``."""
        return self.modules.vision_encoder(torch.from_numpy(pixels))

    @torch.no_grad()
    def embed(self, input_ids: list[int]) -> Tensor:
        """Return the rows ``float32 [1, T, hidden_size]`` of T token ids."""
        return self.modules.token_embedding(torch.tensor([input_ids]))

    @torch.no_grad()
    def decode(self, inputs_embeds: Tensor, *, position: int) -> Tensor:
        """Read rows ``float32 [1, T, hidden_size]`` from ``position`` on. Return the last logits ``[vocab_size]``."""
        return self.modules.text_decoder(inputs_embeds, torch.tensor([position]))[0, -1]

    @torch.no_grad()
    def verify(self, inputs_embeds: Tensor, *, position: int) -> Tensor:
        """Read rows as ``decode`` does. Return the logits ``[T, vocab_size]`` after each of them."""
        decoder = self.modules.text_decoder
        x_1TD = inputs_embeds
        start, cos_T1e, sin_T1e = decoder.positions(torch.tensor([position]), x_1TD.shape[1])
        for layer in decoder.layers:
            x_1TD = layer(x_1TD, cos_T1e, sin_T1e, start)
        return decoder.logits(x_1TD)[0]


class FloatReference:
    """The model of a checkpoint in float32, with the methods of ``llava_runner.model.Model``.

    ``model`` is on the meta device and stays there. ``on_block`` is called after each block.
    """

    def __init__(self, model: LlavaModel, *, weights: Weights, on_block: Callable[[], None] = lambda: None) -> None:
        self._model = model
        self._weights = weights
        self._on_block = on_block
        # From each block to the one that runs next. For each token the decoder's blocks run again.
        names = [fqn for fqn, _ in model.blocks()]
        self._following = dict(pairwise(names)) | {names[-1]: TOKEN_EMBEDDING}

    def encode_image(self, pixels: np.ndarray) -> Tensor:
        """Return the features ``float32 [1, num_image_tokens, hidden_size]`` of an RGB image ``uint8 [3, H, W]``."""
        (features,) = self.encode_images([pixels])
        return features

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """Return the features of each image, as ``encode_image`` does.

        Each block is read once for all images. Of an image, the states that are still needed are in memory.
        """
        tower = self._model.vision_encoder.vision_tower
        xs = [self._model.vision_encoder.pixel_values(torch.from_numpy(pixels)) for pixels in images]
        for name in tower.stem:
            with self._filled(f"{VISION_TOWER}.{name}") as block:
                xs = [block(x) for x in xs]
        hidden_states = [[x] for x in xs]
        for i in range(len(tower.layers)):
            with self._filled(tower_layer(i)) as layer:
                for states in hidden_states:
                    states.append(layer(states[-1]))
                    if i not in tower.feature_layers:
                        states[i] = torch.empty(0)
        with self._filled(PROJECTOR) as projector:
            return [projector(tower.features(states)) for states in hidden_states]

    @torch.no_grad()
    def embed(self, input_ids: list[int]) -> Tensor:
        """Return the rows ``float32 [1, T, hidden_size]`` of T token ids."""
        with self._filled(TOKEN_EMBEDDING) as token_embedding:
            return token_embedding(torch.tensor([input_ids])).to(torch.float32)

    @torch.no_grad()
    def decode(self, inputs_embeds: Tensor, *, position: int) -> Tensor:
        """Read rows ``float32 [1, T, hidden_size]`` from ``position`` on. Return the last logits ``[vocab_size]``.

        The model's KV cache keeps what was read.
        """
        return self._logits(inputs_embeds, position=position, kept=1)[0]

    @torch.no_grad()
    def verify(self, inputs_embeds: Tensor, *, position: int) -> Tensor:
        """Read rows as ``decode`` does. Return the logits ``[T, vocab_size]`` after each of them."""
        return self._logits(inputs_embeds, position=position, kept=inputs_embeds.shape[1])

    def _logits(self, inputs_embeds: Tensor, *, position: int, kept: int) -> Tensor:
        """Read rows. Return the logits ``[kept, vocab_size]`` of the last of them."""
        decoder = self._model.text_decoder
        x_1TD = inputs_embeds
        start, cos_T1e, sin_T1e = decoder.positions(torch.tensor([position]), x_1TD.shape[1])
        for i in range(len(decoder.layers)):
            with self._filled(decoder_layer(i)) as layer:
                x_1TD = layer(x_1TD, cos_T1e, sin_T1e, start)
        with self._filled(DECODER_NORM) as norm:
            x_1TD = norm(x_1TD[:, -kept:])
        with self._filled(LM_HEAD) as lm_head:
            return lm_head(x_1TD)[0]

    @contextmanager
    def _filled(self, fqn: str) -> Iterator[Any]:
        """Yield a block with its weights, and ask the system to read the next one's from disk meanwhile."""
        block = self._model.get_submodule(fqn)
        # What adapters change is multiplied apart: to merge it takes a second a layer, and each token reads all layers.
        self._weights.fill(block, prefix=fqn, matrices_as_stored=True, updates_apart=True)
        following = self._following[fqn]
        self._weights.prefetch(self._model.get_submodule(following), prefix=following)
        try:
            with _Float32Linears():
                yield block
        finally:
            self._weights.release(block)
            self._on_block()


class _Float32Linears(TorchFunctionMode):
    """A context in which linears of float32 rows accept weights of any float type, and multiply in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the result of a torch function, with ``F.linear`` replaced."""
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what ``F.linear`` returns, with some rows of the weight converted at a time."""
    y = torch.cat([_product(x, rows.to(x.dtype)) for rows in weight.split(ROWS_AT_ONCE)], dim=-1)
    if (correction := getattr(weight, "correction", None)) is not None:
        y = correction.apply(y, x)
    return y if bias is None else y + bias


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x`` times the transposed weight, by the faster of two libraries."""
    if x.shape[-2] == 1 or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight)
    # On some processors, AMD's among them, oneDNN multiplies float32 twice as fast as the library that torch uses.
    return F.linear(x.to_mkldnn(), weight.to_mkldnn()).to_dense()
