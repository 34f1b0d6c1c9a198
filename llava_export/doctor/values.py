"""Looks at all values of a checkpoint: NaN, infinity, weights of zeros, and tokens that were never trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.weights import EMBEDDING_WEIGHT
from llava_export.doctor.findings import Finding, broken, doubtful
from llava_export.errors import CheckpointError

MAX_NAMED = 4  # tokens in a finding, before it counts the rest


def check_values(checkpoint: Checkpoint, *, on_tensor: Callable[[str], None]) -> Iterator[Finding]:
    """Yield what is wrong with the values of a checkpoint's tensors. ``on_tensor`` is called with the key of each."""
    weights = checkpoint.weights
    for tensor in weights.tensors(checkpoint.build_model(max_context_len=1)):
        key = weights.key(tensor)
        on_tensor(key)
        try:
            values = weights.read(tensor)
        except CheckpointError as error:
            yield broken(str(error), "Download or save the checkpoint again, or take one from earlier in the training.")
            continue
        if values.dim() > 1 and weights.largest(tensor) == 0:
            yield doubtful(
                f"{key} is nothing but zeros", "Take a checkpoint in which it was saved; zeros compute nothing."
            )
        elif tensor.fqn == EMBEDDING_WEIGHT:
            yield from _check_rows(checkpoint, values)


def _check_rows(checkpoint: Checkpoint, values: Tensor) -> Iterator[Finding]:
    """Yield the added tokens whose rows of the embedding say nothing."""
    is_zero = ~values.to(torch.bool).any(dim=1)
    tokens = [token.content for token in checkpoint.tokenizer.rules.added_tokens if is_zero[token.id]]
    if tokens:
        more = len(tokens) - MAX_NAMED
        named = ", ".join(tokens[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
        yield doubtful(
            f"the embedding has rows of zeros for {named}: the model was not trained with what is added there",
            "Save the embedding with the fine-tune (modules_to_save of peft), or do not use these tokens.",
        )
