"""A tied head is stored once with the token embedding: smaller by its bytes, and the same to every reader."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from executorch.exir import ExecutorchProgramManager, to_edge_transform_and_lower
from executorch.exir._serialize._cord import Cord, FileBackedData
from torch import nn
from torch.export import export

from llava_export.models.names import LM_HEAD, TOKEN_EMBEDDING, decoder_layer
from llava_export.pte.lower import edge_config, serialize, write, xnnpack_partitioners
from llava_export.pte.read.container import Container, layout
from llava_export.pte.read.program import read_pte
from llava_export.pte.sharing import stored_once
from llava_export.recipe import RECIPES
from llava_runner.errors import PackageError
from llava_runner.flatbuffer import Flatbuffer
from llava_runner.program import _import_runtime
from llava_runner.program_file import OFFSET, SEGMENTS, SIZE

ROWS, COLUMNS = 72, 40
ALIGNMENT = 128  # of segments


@cache
def program_of(recipe: str, *, tied: bool) -> ExecutorchProgramManager:
    """Return a program with an embedding, its head, and a linear that is stored behind the head."""
    torch.manual_seed(0)
    embedding, head, other = nn.Embedding(ROWS, COLUMNS), nn.Linear(COLUMNS, ROWS, bias=False), nn.Linear(COLUMNS, 24)
    if tied:
        head.weight = nn.Parameter(embedding.weight.detach().clone())
    modules = {TOKEN_EMBEDDING: embedding, LM_HEAD: head, f"{decoder_layer(0)}.mlp": other}
    for fqn, module in modules.items():
        RECIPES[recipe].quantize(module.requires_grad_(False).eval(), fqn=fqn)
    row = torch.randn(1, 3, COLUMNS)
    with torch.no_grad():
        methods = {
            "embedding": export(embedding, (torch.tensor([[0, 3, 71]]),)),
            "head": export(head, (row,)),
            "other": export(other, (row,)),
        }
    partitioners = xnnpack_partitioners(2, quantized=recipe != "fp32")
    return serialize(
        to_edge_transform_and_lower(
            methods,
            partitioner={"embedding": [], "head": partitioners, "other": partitioners},
            compile_config=edge_config(),
        )
    )


def contents(path: Path) -> tuple[dict[str, bytes], bytes]:
    """Return the named data of a program by key, and the constants of its methods."""
    program_size, segment_base = layout(path)
    with path.open("rb") as file:
        container = Container(file, program_size=program_size, segment_base=segment_base)
        constants = container.segments[container.program["constant_segment"]["segment_index"]]
        return {key: container.read(span) for key, span in container.named.items()}, container.read(constants)


def outputs(path: Path) -> list[torch.Tensor]:
    """Return what ExecuTorch computes with each method of a program."""
    loaded = _import_runtime()._load_program(str(path))
    row = torch.randn(1, 3, COLUMNS, generator=torch.Generator().manual_seed(1))
    inputs = {"embedding": torch.tensor([[0, 3, 71]]), "head": row, "other": row}
    return [loaded.load_method(name).call((given,))[0].clone() for name, given in inputs.items()]


@pytest.mark.parametrize("recipe", ["8da8w", "fp32"])
def test_a_tied_head_is_stored_with_the_embedding(recipe, tmp_path):
    program, (twice, once) = program_of(recipe, tied=True), (tmp_path / name for name in ("twice.pte", "once.pte"))
    write(program, twice)
    write(program, once, has_tied_head=True)
    values, scales = ROWS * COLUMNS * (1 if recipe == "8da8w" else 4), ROWS * 4 if recipe == "8da8w" else 0
    saved = twice.stat().st_size - once.stat().st_size
    assert values + scales <= saved < values + scales + 2 * ALIGNMENT
    assert contents(once) == contents(twice)
    for ours, theirs in zip(outputs(once), outputs(twice), strict=True):
        assert torch.equal(ours, theirs)

    parts, before = read_pte(once).parts, read_pte(twice).parts
    assert sum(part.bytes for part in parts) == once.stat().st_size
    (head,) = (part for part in parts if part.shape == (COLUMNS, ROWS))
    assert (head.methods, head.kind, head.times, head.bytes) == (("embedding", "head"), "linear", 1, values + scales)
    (embedding,) = (part for part in before if part.kind == "embedding")
    kept = {part for part in before if part.methods} - {embedding, replace(head, methods=("head",))}
    assert {part for part in parts if part.methods} == {head, *kept}


def test_a_program_without_a_tied_head_stays_as_it_is():
    program = program_of("8da8w", tied=False)
    assert stored_once(program._pte_data) is program._pte_data


def test_weights_that_wait_in_files_are_found_too(tmp_path):
    program = program_of("8da8w", tied=True)._pte_data
    flatbuffer, *pieces = program._buffers
    in_files = Cord(flatbuffer)
    for i, piece in enumerate(pieces):
        if len(piece) >= ROWS * COLUMNS:
            assert isinstance(piece, bytes)
            (tmp_path / str(i)).write_bytes(piece)
            piece = FileBackedData(str(tmp_path / str(i)))
        in_files.append(piece)
    assert bytes(stored_once(in_files)) == bytes(stored_once(program)) != bytes(program)


def test_a_weight_that_overlaps_others_is_refused(tmp_path):
    path = tmp_path / "once.pte"
    write(program_of("8da8w", tied=True), path, has_tied_head=True)
    content = bytearray(path.read_bytes())
    reader = Flatbuffer(bytes(content))
    segments = reader.tables(reader.follow(0), SEGMENTS)
    (weight,) = (it for it in segments if reader.number("<Q", it, SIZE) == ROWS * COLUMNS)
    struct.pack_into("<Q", content, reader.field(weight, OFFSET), reader.number("<Q", weight, OFFSET) + 16)
    path.write_bytes(content)
    with pytest.raises(PackageError, match="overlap"):
        read_pte(path)
