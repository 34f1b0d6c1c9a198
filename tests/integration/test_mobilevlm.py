"""MobileVLM's programs: float ones equal the eager model, and quantized ones answer like it."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNDepthwiseConv2d, XNNStaticTranspose
from executorch.exir.delegate import executorch_call_delegate

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.config import ProjectorConfig
from llava_export.models.projectors import build_projector
from llava_export.pte.golden import GoldenRecord
from llava_export.pte.lower import edge_config, to_edge_transform_and_lower, xnnpack_partitioners
from llava_export.pte.transposes import transposes_cancelled
from llava_export.pte.verify import compare, judge, read_manifest
from llava_export.recipe import RECIPES
from llava_runner import contract
from llava_runner.program import Program
from tests.integration.parity import assert_same_answers

TINY = ("tiny-mobilevlm", "tiny-mobilevlm-v2")


@pytest.mark.parametrize("name", ["mobilevlm", "mobilevlm_v2_head_dim_80"])
@torch.no_grad()
def test_float_program_equals_the_eager_model(name, package_of):
    package = package_of(name, "fp32")
    checkpoint = open_checkpoint(package.model)
    eager = checkpoint.build_model(max_context_len=64)
    checkpoint.weights.fill(eager, prefix="")
    program = Program.open(package.program)
    golden = GoldenRecord.load(contract.golden_path(package.program))
    features = program.encode_image(golden.image.numpy())
    assert features.shape == (1, 4, program.card.hidden_size)
    torch.testing.assert_close(features, eager.vision_encoder(golden.image), rtol=1e-3, atol=1e-3)
    rows, position = torch.cat([program.embed([1, 5, 9]), features, program.embed([17, 40])], dim=1), 0
    for token in (7, 11, 13):
        found = program.decode(rows, position=position)
        expected = eager.text_decoder(rows, torch.tensor([position])).flatten()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        position += rows.shape[1]
        rows = program.embed([token])


@pytest.mark.parametrize("name", TINY)
def test_four_bit_programs_are_verified(name, package_of):
    package = package_of(name)
    manifest = read_manifest(package.program)
    assert (manifest.card.family, manifest.card.num_image_tokens) == ("mobilevlm", 16)
    assert judge(compare(package.program, manifest), manifest) == []
    for report in package.exported.reports:
        assert report.unexplained == []


@pytest.mark.parametrize("name", TINY)
def test_both_runners_give_the_same_answers(name, llava_main, package_of, tmp_path):
    assert_same_answers([llava_main], package_of(name).program, scenes=8, folder=tmp_path)


@pytest.mark.parametrize("scheme", ["fp32", "8da4w"])
@pytest.mark.parametrize("kind", ["ldp", "ldpv2"])
@torch.no_grad()
def test_projectors_stay_within_xnnpack_and_copy_nothing(kind, scheme, monkeypatch):
    """XNNPACK runs every operation, and no transpose is left around the convolutions."""
    torch.manual_seed(0)
    config = ProjectorConfig(type=kind, in_features=64, out_features=128, hidden_act="gelu", bias=True, grid_side=8)
    projector = build_projector(config).eval().requires_grad_(False)
    RECIPES[scheme].with_changes(group_size=64).quantize(projector, fqn="vision_encoder.projector")
    serialize = xnnpack_preprocess.serialize_xnnpack_binary
    operations: list[type] = []

    def record(graph, constants):
        operations.extend(type(node.xnode_union) for node in graph.xnodes)
        return serialize(graph, constants)

    def lower():
        operations.clear()
        exported = torch.export.export(projector, (torch.randn(1, 64, 64),), strict=False)
        return to_edge_transform_and_lower(
            copy.deepcopy(exported),
            partitioner=xnnpack_partitioners(2, quantized=scheme != "fp32"),
            compile_config=edge_config(),
        )

    monkeypatch.setattr(xnnpack_preprocess, "serialize_xnnpack_binary", record)
    lower()
    assert operations.count(XNNStaticTranspose) >= 4  # what ExecuTorch alone does
    with transposes_cancelled():
        lowered = lower()
    assert XNNStaticTranspose not in operations
    assert operations.count(XNNDepthwiseConv2d) == {"ldp": 2, "ldpv2": 1}[kind]
    calls = lowered.exported_program().graph.find_nodes(op="call_function", target=executorch_call_delegate)
    others = [node for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    assert {node.target for node in others if node not in calls} <= {operator.getitem}
