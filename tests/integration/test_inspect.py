"""What ``llava inspect`` finds in a program agrees with the checkpoint's config, the exporter and ExecuTorch."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge, to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.runtime import Runtime
from torch import nn
from torch.export import Dim, export

from llava_export.checkpoint.locate import locate
from llava_export.cli.inspect import main
from llava_export.pte.lower import constant_methods
from llava_export.pte.read.describe import card_of, linear_names, signature, to_dict
from llava_export.pte.read.program import read_pte
from llava_export.pte.read.types import Part, PteFile, TensorType
from llava_export.pte.verify import read_manifest
from llava_runner import contract
from llava_runner.errors import PackageError
from tests.commands import llava

GROUP = 32
INT4, INT8 = f"int4, groups of {GROUP}", "int8 per channel"
# The exporter reports on the graph before it is serialized. There, some operators have other names, or are several.
SERIALIZED = {
    "executorch_prim::et_view.default": ["aten.view_copy"],
    "quantized_decomposed::embedding_byte.out": ["aten.embedding", "torchao.dequantize_affine"],
}


@pytest.fixture(scope="module")
def found(tiny_package) -> PteFile:
    """Return what is in the built-in model's program."""
    return read_pte(tiny_package.program)


@pytest.fixture(scope="module")
def config(tiny_package) -> dict:
    """Return the ``config.json`` of the built-in model."""
    return json.loads((locate(tiny_package.model) / "config.json").read_text())


class Network(nn.Module):
    """A convolution in groups and a linear, and an operator that XNNPACK lacks."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(6, 8, 3, groups=2)
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convolution(x).flatten(2).transpose(1, 2)).cumsum(1)


class Counts(nn.Module):
    """A module with state: it adds up its inputs."""

    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.total.add_(x)


@pytest.fixture(scope="module")
def other_program(tmp_path_factory) -> Path:
    """Return a program of another project: two methods for XNNPACK that share a linear."""
    linear = nn.Linear(8, 4)
    with torch.no_grad():
        methods = {
            "whole": export(Network(linear), (torch.zeros(1, 6, 5, 5),)),
            "part": export(linear, (torch.zeros(3, 8),), dynamic_shapes=({0: Dim("rows", min=1, max=9)},)),
        }
        edge = to_edge_transform_and_lower(
            methods,
            partitioner={name: [XnnpackPartitioner()] for name in methods},
            constant_methods={"labels": ["cat", "x" * 100], "scale": 0.5, "table": torch.zeros(2, 3)},
        )
    path = tmp_path_factory.mktemp("other") / "other.pte"
    path.write_bytes(edge.to_executorch().buffer)
    return path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object, columns: int = 80) -> int:
    """Run ``llava inspect`` in a terminal of this width. Return its exit code."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    code = stopped.value.code or 0
    assert isinstance(code, int)
    return code


def sizes_of(parts: list[Part]) -> dict:
    """Return times and bytes of parts, by what they are."""
    return {(*part.methods, *part.shape, part.stored_as): (part.times, part.bytes) for part in parts}


def test_linears_are_those_of_the_config(found, config):
    text, vision = config["text_config"], config["vision_config"]
    hidden, intermediate, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    queries, keys = (text[f"num_{what}_heads"] * text["head_dim"] for what in ("attention", "key_value"))
    decoder: Counter[tuple[int, int]] = Counter()
    for shape in ((hidden, queries + 2 * keys), (queries, hidden), (hidden, 2 * intermediate), (intermediate, hidden)):
        decoder[shape] += layers
    size, wide = vision["hidden_size"], vision["intermediate_size"]
    tower = Counter({(size, hidden): 1, (hidden, hidden): 1})
    for shape in ((size, 3 * size), (size, size), (size, wide), (wide, size)):
        tower[shape] += vision["num_hidden_layers"] + 1 + config["vision_feature_layer"]
    expected = {  # values and scales
        ("text_decoder", rows, columns, INT4): (times, times * (rows * columns // 2 + rows // GROUP * columns * 2))
        for (rows, columns), times in decoder.items()
    } | {  # values, scales and bias
        ("vision_encoder", rows, columns, INT8): (times, times * (rows * columns + 4 * columns + 4 * columns))
        for (rows, columns), times in tower.items()
    }
    columns = text["vocab_size"]
    expected["text_decoder", hidden, columns, INT8] = (1, hidden * columns + 4 * columns)
    assert sizes_of([part for part in found.parts if part.kind == "linear"]) == expected


def test_embedding_and_convolution_are_those_of_the_config(found, config):
    rows, columns = config["text_config"]["vocab_size"], config["text_config"]["hidden_size"]
    assert sizes_of([part for part in found.parts if part.kind == "embedding"]) == {
        ("token_embedding", rows, columns, "int8 per row"): (1, rows * columns + rows * 4)
    }
    channels, side = config["vision_config"]["hidden_size"], config["vision_config"]["patch_size"]
    assert sizes_of([part for part in found.parts if part.kind == "convolution"]) == {
        ("vision_encoder", 3, channels, side, side, 1, "float32"): (1, 3 * channels * side * side * 4)
    }


@pytest.mark.parametrize("which", ["ours", "other"])
def test_parts_have_the_sizes_that_executorch_reads(which, tiny_package, other_program):
    path = tiny_package.program if which == "ours" else other_program
    content = path.read_bytes()
    parts = read_pte(path).parts
    assert sum(part.bytes for part in parts) == len(content)
    theirs = deserialize_pte_binary(content)
    payloads = {delegate.data for delegate in theirs.program.backend_delegate_data}
    weights = [part for part in parts if part.methods and part.kind in ("linear", "convolution")]
    assert sum(part.bytes for part in weights) == sum(map(len, theirs.named_data.buffers))
    sizes = {part.kind: (part.times, part.bytes) for part in parts if not part.methods}
    assert sizes["delegate payloads"] == (len(payloads), sum(map(len, payloads)))
    assert sizes["program (flatbuffer)"] == (0, int.from_bytes(content[16:24], "little"))
    constants = sum(part.bytes for part in parts if part.kind in ("constants", "embedding"))
    padded = [len(buffer.storage) for buffer in theirs.program.constant_buffer]
    assert constants <= sum(padded) < constants + 16 * len(padded)
    assert set(sizes) == {"delegate payloads", "program (flatbuffer)", "alignment"}


def test_methods_are_as_the_exporter_reports(tiny_package, found):
    reports = {report.method: report for report in tiny_package.exported.reports}
    assert {method.name for method in found.methods} == set(reports) == set(contract.METHODS)
    for method in found.methods:
        report = reports[method.name]
        assert method.delegates == ({"XnnpackBackend": report.delegates} if report.delegates else {})
        outside: Counter[str] = Counter()
        for name, count in method.outside.items():
            for reported in SERIALIZED.get(name, [name.partition(".")[0].replace("::", ".")]):
                if not reported.startswith("executorch_prim."):  # arithmetic with sizes
                    outside[reported] += count
        assert outside == report.outside - Counter({"aten._assert_scalar": report.outside["aten._assert_scalar"]})
        assert method.xnnpack["FullyConnected"] == report.delegated["aten.linear"]
        assert method.xnnpack["BatchMatrixMultiply"] == report.delegated["aten.bmm"]


def test_inputs_and_memory_are_as_executorch_reads_them(tiny_package, found):
    runtime = Runtime.get().load_program(tiny_package.program)
    theirs = deserialize_pte_binary(tiny_package.program.read_bytes()).program
    planned = {plan.name: sum(plan.non_const_buffer_sizes) for plan in theirs.execution_plan}
    for method in found.methods:
        meta = runtime.metadata(method.name)
        inputs = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
        outputs = [meta.output_tensor_meta(i) for i in range(meta.num_outputs())]
        for tensor, other in zip(method.inputs + method.outputs, inputs + outputs, strict=True):
            assert (tensor.sizes, tensor.bytes) == (other.sizes(), other.nbytes())
        assert method.planned_bytes == planned[method.name] > 0


def test_kv_cache_has_the_size_that_the_config_gives(found, config):
    text = config["text_config"]
    expected = 2 * text["num_hidden_layers"] * 768 * text["num_key_value_heads"] * text["head_dim"] * 2
    for method in found.methods:
        assert method.state == method.kv_cache
        assert sum(cache.bytes for cache in method.kv_cache) == expected * (method.name == contract.TEXT_DECODER)


def test_metadata_and_signatures_are_those_of_the_exporter(tiny_package, found):
    card = read_manifest(tiny_package.program).card
    assert found.constants == constant_methods(card)
    assert card_of(found) == card
    assert {method.name: signature(method, card) for method in found.methods} == contract.signatures(card)
    decoder = next(method for method in found.methods if method.name == contract.TEXT_DECODER)
    assert signature(decoder, None) == "float32 [1, <=768, <=256], int64 [1] -> float32 [1, <=16, <=576]"
    other = replace(card, hidden_size=card.hidden_size * 2)  # a card that is wrong is not believed
    assert signature(decoder, other) == signature(decoder, None)


def test_program_of_another_project_is_read(other_program):
    found = read_pte(other_program)
    assert found.constants["labels"] == ["cat", "x" * 100] and found.constants["scale"] == 0.5
    assert found.constants["table"] == TensorType("float32", (2, 3), "static", 24)
    assert {method.name: signature(method, None) for method in found.methods} == {
        "part": "float32 [<=9, <=8] -> float32 [<=9, <=4]",
        "whole": "float32 [1, 6, 5, 5] -> float32 [1, 9, 4]",
    }
    whole = next(method for method in found.methods if method.name == "whole")
    assert whole.outside["aten::cumsum.out"] == 1
    assert whole.xnnpack["Conv2d"] == whole.xnnpack["FullyConnected"] == 1
    assert [part for part in found.parts if part.methods] == [
        Part(("part", "whole"), "linear", (8, 4), "float32", "", 1, 8 * 4 * 4 + 4 * 4),  # once, though read twice
        Part(("whole",), "convolution", (6, 8, 3, 3, 2), "float32", "", 1, 3 * 8 * 3 * 3 * 4 + 8 * 4),
        Part(("table",), "constants", (), "float32", "the caller", 1, 24),
    ]
    assert linear_names(found, None) == {} and card_of(found) is None


def test_state_is_found_in_a_program_without_segments(tmp_path):
    edge = to_edge(export(Counts(), (torch.ones(3, 5),)))
    path = tmp_path / "counts.pte"
    path.write_bytes(edge.to_executorch().buffer)
    (method,) = read_pte(path).methods
    assert [tensor.sizes for tensor in method.state] == [(3, 5)] and method.kv_cache == ()
    assert read_pte(path).parts == (Part((), "program (flatbuffer)", (), "", "", 0, path.stat().st_size),)


def test_linears_of_the_built_in_model_are_named(found):
    names = linear_names(found, card_of(found))
    assert {part.shape: name for part, name in names.items()} == {
        (256, 768): "q/k/v and gate/up",
        (256, 256): "attention output",
        (384, 256): "down",
        (256, 576): "output head",
    }


@pytest.mark.parametrize("columns", [80, 60])
def test_tables_show_every_number_in_full(columns, tiny_package, found, monkeypatch, capsys):
    assert command(monkeypatch, tiny_package.program, columns=columns) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if str(tiny_package.program) not in line]
    assert max(map(len, lines)) <= columns and "…" not in printed
    words = Counter(re.split(r"[^\w:.,]+", re.sub(r",(\s)", r"\1", printed)))
    for part in found.parts:
        assert all(words[number] for number in (f"{part.bytes:,}", str(part.times or "0"), *map(str, part.shape[:2])))
    for method in found.methods:
        assert words[method.name] and words[f"{method.planned_bytes:,}"]
        for name, count in [*method.outside.items(), *method.xnnpack.items()]:
            assert any(re.search(rf"(^|\s){re.escape(name)} +{count}(\s|$)", line) for line in lines), name


def test_json_has_everything_that_was_found(tiny_package, found, tmp_path, monkeypatch):
    file = tmp_path / "program.json"
    assert command(monkeypatch, tiny_package.program, "--json", file) == 0
    read = json.loads(file.read_text())
    card = card_of(found)
    assert card is not None
    assert read == json.loads(json.dumps(to_dict(tiny_package.program, found, card, linear_names(found, card))))
    assert read["card"]["source"] == "tiny-llava"
    assert sum(part["bytes"] for part in read["parts"]) == read["bytes"] == tiny_package.program.stat().st_size
    decoder = read["methods"][contract.TEXT_DECODER]
    assert decoder["signature"] == contract.signatures(card)[contract.TEXT_DECODER]
    assert decoder["kv_cache_bytes"] == decoder["state_bytes"] > 0
    assert decoder["outside"]["llama::update_cache.out"] == 2 * decoder["outside"]["llama::custom_sdpa.out"]
    assert read["metadata"]["get_eos_ids"] == [2]
    assert {"methods": ["text_decoder"], "shape": [256, 576], "name": "output head"}.items() <= next(
        part for part in read["parts"] if part["name"] == "output head"
    ).items()


def test_files_that_cannot_be_read_give_one_line_and_exit_code_2(tiny_package, tmp_path, monkeypatch, capsys):
    content = tiny_package.program.read_bytes()
    cut, text, old, broken = (tmp_path / name for name in ("cut.pte", "text.pte", "old.pte", "broken.pte"))
    cut.write_bytes(content[:-5])
    text.write_text("A text that is long enough to be taken for the head of a program.")
    old.write_bytes(content[:4] + b"ET11" + content[8:])
    broken.write_bytes(b"\xff\xff\xff\x7f" + content[4:])
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nothing.pte", "does not exist"),
        (tmp_path / "empty", "has no program"),
        (cut, "is truncated"),
        (text, "is not an ExecuTorch program"),
        (old, "or of another version of ExecuTorch"),
        (broken, "is damaged"),
    ):
        assert command(monkeypatch, path) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", printed.err), printed
    assert command(monkeypatch, tiny_package.program, "--json", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_damaged_flatbuffer_is_read_or_refused(tiny_package, tmp_path):
    content, path = tiny_package.program.read_bytes(), tmp_path / "damaged.pte"
    refused = 0
    for where in range(8, 53_000, 1511):
        path.write_bytes(content[:where] + b"\xff\xff" + content[where + 2 :])
        try:
            assert sum(part.bytes for part in read_pte(path).parts) == len(content)
        except PackageError:
            refused += 1
    assert refused > 5


def test_llava_inspect_runs_as_a_command(other_program):
    done = llava("inspect", other_program, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0 and done.stderr == ""
    assert "linear 8 -> 4" in done.stdout and "convolution 6 -> 8, 3x3, 2 groups" in done.stdout
