"""The float model, run one block at a time from the checkpoint: memory never holds more than one block's weights.

Matrices stay as the checkpoint has them, in half precision mostly, and are converted some rows at a time as they are
multiplied: the float32 rows never leave the processor's cache. A step of the answer then costs little more than reading
the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llava_export.checkpoint.weights import Weights
from llava_export.models.llava import LlavaModel

ROWS_AT_ONCE = 512


class FloatReference:
    """Answers as the checkpoint does in float32. ``model`` is on the meta device and stays there.

    ``on_block`` is called after each block.
    """

    def __init__(self, model: LlavaModel, *, weights: Weights, on_block: Callable[[], None] = lambda: None) -> None:
        self._model = model
        self._weights = weights
        self._on_block = on_block
        # Blocks run in this order, the decoder's again for each token.
        names = [fqn for fqn, _ in model.blocks()]
        self._following = dict(pairwise(names)) | {names[-1]: "token_embedding"}

    @torch.no_grad()
    def encode_image(self, image_3HW: Tensor) -> Tensor:
        """``uint8 [3, H, W]`` to features ``[1, num_image_tokens, hidden_size]``."""
        tower = "vision_encoder.vision_tower"
        with self._filled(f"{tower}.embeddings") as embeddings:
            x_BND = embeddings(self._model.vision_encoder.pixel_values(image_3HW))
        with self._filled(f"{tower}.pre_layrnorm") as pre_layrnorm:
            hidden_states = [pre_layrnorm(x_BND)]
        for i in range(len(self._model.vision_encoder.vision_tower.layers)):
            with self._filled(f"{tower}.layers.{i}") as layer:
                hidden_states.append(layer(hidden_states[-1]))
        with self._filled("vision_encoder.projector") as projector:
            return projector(self._model.vision_encoder.vision_tower.features(hidden_states))

    @torch.no_grad()
    def embed(self, ids: list[int]) -> Tensor:
        """Token ids to ``[1, T, hidden_size]``."""
        with self._filled("token_embedding") as token_embedding:
            return token_embedding(torch.tensor([ids])).to(torch.float32)

    @torch.no_grad()
    def decode(self, inputs_embeds_1TD: Tensor, position: int) -> Tensor:
        """Rows from ``position`` on to the last one's logits ``[vocab_size]``; the model's own cache remembers."""
        decoder = self._model.text_decoder
        x_1TD = inputs_embeds_1TD
        start, cos_T1e, sin_T1e = decoder.positions(torch.tensor([position]), x_1TD.shape[1])
        for i in range(len(decoder.layers)):
            with self._filled(f"text_decoder.layers.{i}") as layer:
                x_1TD = layer(x_1TD, cos_T1e, sin_T1e, start)
        with self._filled("text_decoder.norm"), self._filled("text_decoder.lm_head"):
            return decoder.logits(x_1TD).flatten()

    @contextmanager
    def _filled(self, fqn: str) -> Iterator[Any]:
        block = self._model.get_submodule(fqn)
        self._weights.fill(block, prefix=fqn, matrices_as_stored=True)
        following = self._following[fqn]
        self._weights.expect(self._model.get_submodule(following), prefix=following)
        try:
            with _Float32Linears():
                yield block
        finally:
            self._weights.release(block)
            self._on_block()


class _Float32Linears(TorchFunctionMode):
    """Inside it, linears of float32 rows take weights of any type, and multiply in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = torch.cat([_product(x, rows.to(x.dtype)) for rows in weight.split(ROWS_AT_ONCE)], dim=-1)
    return y if bias is None else y + bias


def _product(x: Tensor, weight: Tensor) -> Tensor:
    if x.shape[-2] == 1 or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight)
    # On some processors, AMD's among them, oneDNN multiplies float32 twice as fast as the library torch would take.
    return F.linear(x.to_mkldnn(), weight.to_mkldnn()).to_dense()
