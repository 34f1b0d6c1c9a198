"""Leaves out passes of ExecuTorch's XNNPACK backend that look for what no model of this project has.

Each pass interprets a delegate's graph anew, and there are some fifty delegates. With these passes lowering takes a
quarter longer, and the program is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from executorch.backends.xnnpack import xnnpack_preprocess

# They join what PyTorch took apart: upsampling and attention, which the models spell as matrix products. They prepare
# batch norms, one-dimensional convolutions and PReLU. And they carry over annotations that nobody made.
NEEDLESS = {
    "Conv1dUnsqueezePass",
    "ConvertToSDPAPass",
    "ConvertToUpsampleBilinear2d",
    "DecomposeBatchNorm",
    "FuseBatchNormPass",
    "PReLUReshapePass",
    "PropagateCustomMetaPass",
}


@contextmanager
def needless_passes_left_out() -> Iterator[None]:
    """Let ExecuTorch lower to XNNPACK without the passes ``NEEDLESS``, inside a ``with`` block."""
    manager = xnnpack_preprocess.XNNPACKPassManager

    def without_needless(program: Any, passes: list[Any] | None = None) -> Any:
        chosen = manager(program, passes)
        chosen.passes = [it for it in chosen.passes if it.__name__ not in NEEDLESS]
        return chosen

    # ExecuTorch has no option for it, so the class is replaced for a while.
    xnnpack_preprocess.XNNPACKPassManager = without_needless
    try:
        yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = manager
