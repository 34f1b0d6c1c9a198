"""Packed parameters are the bytes that ExecuTorch's lowering puts into XNNPACK's delegates."""

from __future__ import annotations

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import nn

from llava_export.pte.lower import edge_config, xnnpack_partitioners
from llava_export.pte.stamp.packing import pack, two_to_a_byte
from llava_export.recipe import RECIPES


def delegated(module: nn.Module, example: torch.Tensor) -> dict[str, bytes]:
    """Lower a module. Return all bytes that its delegates hold, by key."""
    exported = torch.export.export(module, (example,), strict=False)
    lowered = to_edge_transform_and_lower(
        exported, partitioner=xnnpack_partitioners(2, quantized=True), compile_config=edge_config()
    )
    graph_module = lowered.exported_program().graph_module
    stores = [child.named_data_store_output for _, child in graph_module.named_children()]
    return {key: store.buffers[entry.buffer_index] for store in stores for key, entry in store.pte_data.items()}


@pytest.mark.parametrize(
    ("scheme", "algorithm"),
    [("8da4w", "mse"), ("8da4w", "minmax"), ("8da4w", "hqq"), ("8da8w", "mse"), ("fp32", "mse")],
)
@torch.no_grad()
def test_linears_are_packed_as_executorch_does(scheme, algorithm):
    torch.manual_seed(0)
    module = nn.Linear(128, 24).eval().requires_grad_(False)
    RECIPES[scheme].with_changes(group_size=32, algorithm=algorithm).quantize(module, fqn="text_decoder.o_proj")
    blobs = [*pack(module.weight), *pack(module.bias)]
    assert delegated(module, torch.randn(1, 3, 128)) == {blob.key: blob.data for blob in blobs}


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(3, 16, kernel_size=14, stride=14, bias=False), nn.Conv2d(3, 3, kernel_size=3, groups=3, bias=False)],
    ids=["patches", "depthwise"],
)
@torch.no_grad()
def test_convolutions_are_packed_as_executorch_does(module):
    module = module.eval().requires_grad_(False)
    (blob,) = pack(module.weight)
    assert delegated(module, torch.randn(1, 3, 56, 56)) == {blob.key: blob.data}


def test_even_positions_are_in_the_low_half_of_a_byte():
    packed = two_to_a_byte(torch.tensor([[-8, 7], [0, -1]], dtype=torch.int8))
    assert packed.tolist() == [0xF0, 0x78]
