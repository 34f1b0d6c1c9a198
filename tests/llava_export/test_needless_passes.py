"""The passes that lowering leaves out: ExecuTorch has them, and without them its delegates are the same."""

from __future__ import annotations

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from llava_export.pte.lower import edge_config, xnnpack_partitioners
from llava_export.pte.needless_passes import NEEDLESS, needless_passes_left_out


class Layer(nn.Module):
    """A norm, a linear, attention of a row to itself, and a join."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.norm(x))
        return torch.cat([torch.softmax(x @ x.transpose(1, 2), -1) @ x, nn.functional.gelu(x)], -1)


def test_executorch_has_them():
    manager = XNNPACKPassManager
    names = [it.__name__ for it in manager(None).passes]  # type: ignore[arg-type]  # it only keeps the program
    with needless_passes_left_out():
        left = [it.__name__ for it in xnnpack_preprocess.XNNPACKPassManager(None).passes]  # type: ignore[arg-type]
    assert set(names) >= NEEDLESS and left == [name for name in names if name not in NEEDLESS]
    assert xnnpack_preprocess.XNNPACKPassManager is manager


def test_programs_without_them_are_the_same():
    exported = torch.export.export(Layer(), (torch.zeros(1, 4, 8),))

    def program() -> bytes:
        partitioners = xnnpack_partitioners(2, quantized=False)
        lowered = to_edge_transform_and_lower(exported, partitioner=partitioners, compile_config=edge_config())
        return bytes(lowered.to_executorch().buffer)

    whole = program()
    with needless_passes_left_out():
        assert program() == whole
