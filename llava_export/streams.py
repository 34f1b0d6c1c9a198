"""Many sequences on their way through the text decoder, all of them through one layer before the next one is read.

So a model of any depth takes the memory of one layer, and each weight is read once for all sequences. What is measured
over a text is computed this way, and so is what a layer's weights are calibrated with.

Shapes: T positions of a sequence, D hidden size, V vocabulary, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.models.llama import LlamaDecoder
from llava_export.models.names import DECODER_NORM, LM_HEAD, TOKEN_EMBEDDING, decoder_layer
from llava_export.quantize.weights import CalibratedBlock
from llava_export.recipe import KV_CACHES, Recipe


class WholeSequenceAttention(nn.Module):
    """Causal attention among the positions of one call, which are a whole sequence. Nothing is kept.

    ``models.llama.CachedAttention`` has the same arguments. Queries, keys and values are rounded to ``cache_dtype``, as
    an exported program rounds them where its KV cache is of that type.
    """

    def __init__(
        self,
        *,
        max_context_len: int,
        num_key_value_heads: int,
        head_dim: int,
        cache_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.cache_dtype = cache_dtype

    def forward(self, q_1THE: Tensor, k_1TKE: Tensor, v_1TKE: Tensor, start: int) -> Tensor:
        """Return values ``[1, T, H, E]`` for queries, keys and values of the positions from 0 on."""
        assert start == 0, "a sequence is read by one call"
        q_1HTE, k_1KTE, v_1KTE = (
            heads.to(self.cache_dtype).to(heads.dtype).transpose(1, 2) for heads in (q_1THE, k_1TKE, v_1TKE)
        )
        y_1HTE = F.scaled_dot_product_attention(q_1HTE, k_1KTE, v_1KTE, is_causal=True, enable_gqa=True)
        return y_1HTE.to(self.cache_dtype).to(y_1HTE.dtype).transpose(1, 2)


class DecoderBlocks:
    """The token embedding and the text decoder of a checkpoint, loaded block by block, quantized by a recipe or not.

    No sequence may be longer than ``max_len``. ``device`` is torch's name of what computes. ``calibrated`` returns
    what was calibrated of a layer before, as ``Recipe.quantize`` takes it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_len: int,
        recipe: Recipe | None = None,
        device: str = "cpu",
        calibrated: Callable[[str], CalibratedBlock | None] = lambda fqn: None,
    ) -> None:
        kv_cache = KV_CACHES[recipe.kv_cache] if recipe else "float32"
        attention = partial(WholeSequenceAttention, cache_dtype=getattr(torch, kv_cache))
        self._model = checkpoint.build_model(max_context_len=max_len, cached_attention=attention)
        self._weights = checkpoint.weights
        self._recipe = recipe
        self._device = device
        self._calibrated = calibrated

    @property
    def decoder(self) -> LlamaDecoder:
        """The text decoder. Of its parameters, only those of loaded blocks have values."""
        return self._model.text_decoder

    @property
    def layers(self) -> list[str]:
        """The names of the decoder's layers, in order."""
        return [decoder_layer(i) for i in range(len(self.decoder.layers))]

    @contextmanager
    def loaded(self, fqn: str) -> Iterator[nn.Module]:
        """Yield a block with its weights, ready to use, and drop them afterwards."""
        block = self._model.get_submodule(fqn)
        self._weights.fill(block, prefix=fqn)
        block.to(self._device)
        if self._recipe:
            self._recipe.quantize(block, fqn=fqn, calibrated=self._calibrated(fqn))
        try:
            yield block
        finally:
            self._weights.release(block)

    @torch.no_grad()
    def embed(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows ``float32 [1, T, D]`` of each sequence of token ids ``[T]``."""
        with self.loaded(TOKEN_EMBEDDING) as embedding:
            return [embedding(ids[None].to(self._device)).to(torch.float32) for ids in sequences]

    @contextmanager
    def head(self) -> Iterator[Head]:
        """Yield what turns the rows that the last layer returned into logits."""
        with self.loaded(DECODER_NORM) as norm, self.loaded(LM_HEAD) as lm_head:
            yield Head(norm, lm_head)


class Head:
    """The end of the decoder: the norm after its last layer, and the head."""

    def __init__(self, norm: nn.Module, lm_head: nn.Module) -> None:
        self._norm = norm
        self._lm_head = lm_head

    @torch.no_grad()
    def logits(self, x_1TD: Tensor) -> Tensor:
        """Return the logits ``float32 [T, V]`` of all rows ``[1, T, D]`` of a sequence."""
        return self._lm_head(self._norm(x_1TD))[0]


class Stream:
    """The hidden states of many sequences. ``rows`` has those of each, ``float32 [1, T, D]``.

    The sequences may have different lengths, and rows that are no tokens', such as those of an image.
    """

    def __init__(self, rows: Sequence[Tensor], *, decoder: LlamaDecoder) -> None:
        self.rows = list(rows)
        self._decoder = decoder

    @torch.no_grad()
    def advance(self, layer: nn.Module) -> None:
        """Replace the rows by what a layer of the decoder, loaded, returns for them."""
        for i, x_1TD in enumerate(self.rows):
            self.rows[i] = layer(x_1TD, *self.positions(x_1TD))

    def positions(self, x_1TD: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return what a layer takes behind these rows: the rotations of their positions, and the first position."""
        start, cos_T1e, sin_T1e = self._decoder.positions(torch.tensor([0]), x_1TD.shape[1])
        return cos_T1e.to(x_1TD.device), sin_T1e.to(x_1TD.device), start
