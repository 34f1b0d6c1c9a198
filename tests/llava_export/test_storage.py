"""Which stored tensor becomes which parameter: tied heads, indexes, several files, two names, and types."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.errors import CheckpointError
from tests.commands import llava_here

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
NORM = "language_model.model.norm.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(checkpoint_of, tmp_path) -> Path:
    """The folder of a copy that a test may change. Its head has weights of its own."""
    return shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")


def change_config(folder: Path, *, text: dict[str, Any] | None = None, **changes: Any) -> None:
    """Change values in a ``config.json``, and in its ``text_config``."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text or {}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Apply ``change`` to the dictionary of stored tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def split_in_two(folder: Path) -> dict[str, str]:
    """Store the tensors in two shards with an index. Return the shard of each tensor."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shard_of: dict[str, str] = {}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"part{i}.safetensors", metadata={"format": "pt"})
        shard_of |= dict.fromkeys(part, f"part{i}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": shard_of}))
    return shard_of


def ends(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token embedding's weights and the head's."""
    model = checkpoint.build_model(max_context_len=1)
    checkpoint.weights.fill(model, prefix="")
    return model.token_embedding.weight, model.text_decoder.lm_head.weight


def head_alone(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[EMBEDDING]


def embedding_alone(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[HEAD]


def both_alike(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def both_unlike(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD][-1, -1] += 1


@pytest.mark.parametrize(
    ("whole", "text", "stored"),
    [
        *((False, True, stored) for stored in (head_alone, embedding_alone, both_alike, both_unlike)),
        (True, False, embedding_alone),
        (None, True, embedding_alone),
        (True, None, both_unlike),
    ],
)
def test_a_head_is_tied_as_in_transformers(whole, text, stored, folder):
    change_config(folder, tie_word_embeddings=whole, text={"tie_word_embeddings": text})
    edit(folder, stored)
    checkpoint = open_checkpoint(str(folder))
    embedding, head = ends(checkpoint)
    change_config(folder, tie_word_embeddings=bool(whole), text={"tie_word_embeddings": bool(text)})
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(embedding, theirs.get_input_embeddings().weight)
    assert torch.equal(head, theirs.get_output_embeddings().weight)
    assert checkpoint.config.text.tie_word_embeddings == (stored is not both_unlike)
    assert ["a head of its own" in note for note in checkpoint.notes] == [True] * (stored is both_unlike)


def test_a_head_that_is_not_tied_must_be_stored(folder):
    edit(folder, embedding_alone)
    with pytest.raises(CheckpointError, match=r"1 keys missing \(text_decoder.lm_head.weight\)"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("is_zip", [True, False])
def test_tied_weights_may_share_their_place_in_a_torch_file(is_zip, folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors[HEAD] = tensors[EMBEDDING]
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    change_config(folder, text={"tie_word_embeddings": True})
    assert open_checkpoint(str(folder)).config.text.tie_word_embeddings


@pytest.mark.parametrize("other", ["lm_head.weight", "model.language_model.norm.weight"])
def test_two_names_of_one_weight_are_refused(other, folder):
    key = HEAD if "head" in other else NORM
    edit(folder, lambda tensors: tensors.update({other: tensors[key] + 1}))
    with pytest.raises(CheckpointError, match="two names of one weight") as refused:
        open_checkpoint(str(folder))
    assert key in str(refused.value) and f"{other} " in str(refused.value)


@pytest.mark.parametrize("named", ["part0.safetensors", "part1.safetensors"])
def test_a_tensor_in_two_shards_is_refused(named, folder):
    shard_of = split_in_two(folder)
    path = folder / f"part{1 - int(shard_of[NORM][4])}.safetensors"
    save_file({**load_file(path), NORM: torch.ones(256)}, path, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": {**shard_of, NORM: named}}))
    with pytest.raises(CheckpointError, match=f"{NORM} is both in .*part0.safetensors and in .*part1.safetensors"):
        open_checkpoint(str(folder))


def test_shards_that_the_index_does_not_name_are_not_read(folder):
    expected = ends(open_checkpoint(str(folder)))
    split_in_two(folder)
    save_file({EMBEDDING: torch.zeros(576, 256)}, folder / "model-00001-of-00009.safetensors")
    found = ends(open_checkpoint(str(folder)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_tensor_that_is_not_where_the_index_says_is_named(folder):
    shard_of = split_in_two(folder)
    path = folder / shard_of[NORM]
    tensors = load_file(path)
    del tensors[NORM]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"says that {NORM} is in {path.name}, which lacks it"):
        open_checkpoint(str(folder))


def test_tables_that_an_index_names_and_no_model_uses_may_be_missing(folder):
    shard_of = split_in_two(folder)
    table = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    (folder / INDEX).write_text(json.dumps({"weight_map": {**shard_of, table: "part0.safetensors"}}))
    open_checkpoint(str(folder))


def test_notes_are_printed_by_both_exports(folder, tmp_path):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "model-1-of-1.safetensors"}}))
    (note,) = open_checkpoint(str(folder)).notes
    for command in (["gguf", "--output-dir", tmp_path / "out"], ["export", "--dry-run"]):
        done = llava_here(*command, "--model", folder)
        assert done.returncode == 0 and f"note: {note}" in done.stdout


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("missing", [["a.safetensors", "b.safetensors"], ["model-00002-of-00002.safetensors"]])
def test_a_stale_index_beside_a_whole_file_is_passed_over(missing, form, folder):
    expected = ends(open_checkpoint(str(folder)))
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    save_file({"x": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")
    named = {"x": "model-00001-of-00002.safetensors", **{f"{i}": name for i, name in enumerate(missing)}}
    (folder / INDEX).write_text(json.dumps({"weight_map": named}))
    checkpoint = open_checkpoint(str(folder))
    assert all(torch.equal(one, other) for one, other in zip(ends(checkpoint), expected, strict=True))
    (note,) = checkpoint.notes
    whole = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    assert note.startswith(f"{whole} is read: {INDEX} names {len(missing)} shard") and missing[0] in note


def test_of_a_whole_file_and_whole_shards_the_file_is_read_as_in_transformers(folder):
    whole = shutil.copy(folder / "model.safetensors", folder.parent / "whole")
    edit(folder, lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING] * 2}))
    split_in_two(folder)
    shutil.copy(whole, folder / "model.safetensors")
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    assert torch.equal(ends(checkpoint)[0], model.get_input_embeddings().weight)
    assert "model.safetensors is read, as transformers does" in checkpoint.notes[0]


FC1 = "vision_tower.encoder.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({NORM: torch.float64}, f"{NORM} in .* is F64; only float16.*save the float64 model in one of these"),
        ({FC1: torch.int8}, f"{FC1} in .* is I8; only float16.*, not ones quantized already"),
        ({NORM: torch.float64, FC1: torch.uint8}, "is F64.* is U8; only|is U8.* is F64; only"),
        ({NORM: torch.float8_e4m3fn, FC1: torch.float8_e5m2}, r"F8_E4M3.*F8_E5M2|F8_E5M2.*F8_E4M3"),
        (torch.float64, r"and \d\d more are of such types; only float16"),
    ],
    ids=str,
)
def test_types_that_cannot_be_read_are_found_when_a_checkpoint_is_opened(types, message, folder):
    tensors = load_file(folder / "model.safetensors")
    changes = types if isinstance(types, dict) else dict.fromkeys(tensors, types)
    edit(folder, lambda tensors: tensors.update({key: tensors[key].to(dtype) for key, dtype in changes.items()}))
    with pytest.raises(CheckpointError, match=message) as refused:
        open_checkpoint(str(folder))
    assert "\n" not in str(refused.value)


def test_types_of_tensors_that_are_not_used_do_not_matter(folder):
    key = "vision_tower.embeddings.position_ids"
    edit(folder, lambda tensors: tensors.update({key: torch.arange(17)}))
    open_checkpoint(str(folder))


@pytest.mark.parametrize("changes", [{"sliding_window": None}, {"sliding_window": 512}, {"sliding_window": 4096}])
def test_a_window_that_holds_the_context_changes_nothing(changes, folder):
    change_config(folder, text={"max_position_embeddings": 512, **changes})
    assert open_checkpoint(str(folder)).config.text.max_context_len == 512


def test_a_window_smaller_than_the_context_limits_programs(folder):
    change_config(folder, text={"max_position_embeddings": 512, "sliding_window": 511})
    assert open_checkpoint(str(folder)).config.text.max_context_len == 511
    change_config(folder, text={"use_sliding_window": False})
    assert open_checkpoint(str(folder)).config.text.max_context_len == 512
