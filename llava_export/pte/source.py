"""Where a program's model and weights come from: built as often as needed, loaded and quantized block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from torch import nn

from llava_export.calibration.store import LayerStore
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.config import LlavaConfig
from llava_export.models.llava import LlavaModel
from llava_export.pte.llama_ops import LlamaOpsAttention, cache_dtype
from llava_export.recipe import Recipe
from llava_export.system import return_free_memory


@dataclass(frozen=True)
class ModelSource:
    """Builds models of one checkpoint that ExecuTorch can export, and gives them quantized weights.

    ``max_context_len`` is in positions, and ``logits_to_keep`` the number of last tokens whose logits are computed.
    ``calibrated`` has the decoder's layers if the recipe's algorithm calibrates them.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    max_context_len: int
    logits_to_keep: int = 1
    calibrated: LayerStore | None = None

    def build(self, config: LlavaConfig | None = None, *, max_context_len: int | None = None) -> LlavaModel:
        """Return a model on the meta device with ExecuTorch's attention: shapes, no weights.

        ``config`` and ``max_context_len`` replace the source's own.
        """
        attention = partial(LlamaOpsAttention, cache_dtype=cache_dtype(self.recipe.kv_cache))
        return self.checkpoint.build_model(
            config,
            max_context_len=max_context_len or self.max_context_len,
            logits_to_keep=self.logits_to_keep,
            cached_attention=attention,
        )

    def quantized_blocks(self, model: LlavaModel) -> Iterator[tuple[str, nn.Module]]:
        """Load and quantize one block of ``model`` after the other. Yields each with its name, ready to use.

        The caller may ``release`` a block before it asks for the next one. So float weights never pile up.
        """
        blocks = list(model.blocks())
        for (fqn, block), following in zip_longest(blocks, blocks[1:]):
            self.checkpoint.weights.fill(block, prefix=fqn, matrices_as_stored=True)
            if following:
                self.checkpoint.weights.prefetch(following[1], prefix=following[0])
            calibrated = self.calibrated.layer(fqn) if self.calibrated else None
            self.recipe.quantize(block, fqn=fqn, calibrated=calibrated)
            return_free_memory()
            yield fqn, block

    def release(self, block: nn.Module) -> None:
        """Drop the weights of a block and keep their shapes."""
        self.checkpoint.weights.release(block)
