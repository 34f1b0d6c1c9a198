"""Checkpoints: every layout gives the same parameters, and every kind of damage is named in the error."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.errors import CheckpointError
from tests.checkpoints import SHAPES, random_llava, save_checkpoint


def parameters(folder) -> dict[str, torch.Tensor]:
    """Return the parameters of the model in a folder, by name."""
    checkpoint = open_checkpoint(str(folder))
    model = checkpoint.build_model(max_context_len=1)
    checkpoint.weights.fill(model, prefix="")
    return dict(model.named_parameters())


@pytest.fixture
def folder(checkpoint_of, tmp_path):
    """The folder of a copy that a test may damage."""
    return shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")


@pytest.fixture
def edit(folder):
    """A function ``edit(change)``: it applies ``change`` to the dictionary of tensors in ``folder``."""

    def apply(change) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def as_bin(folder) -> None:
    """Rewrite the weights as one ``.bin`` file."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_legacy_bin(folder) -> None:
    """Rewrite the weights as torch before 1.6 did."""
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()


def as_sharded_bin(folder) -> None:
    """Rewrite the weights as two ``.bin`` files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        torch.save({name: tensors[name] for name in part}, folder / f"pytorch_model-{i}.bin")
        weight_map.update(dict.fromkeys(part, f"pytorch_model-{i}.bin"))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def as_module_names(folder) -> None:
    """Rename the tensors as transformers 5 names its modules, which is not how it saves them."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        )
        if name.startswith(("vision_tower", "multi_modal_projector")):
            name = "model." + name.replace("vision_model.", "")
        renamed[name] = tensor
    save_file(renamed, folder / "model.safetensors")


@pytest.mark.parametrize("layout", [as_bin, as_legacy_bin, as_sharded_bin, as_module_names])
def test_every_layout_gives_the_same_parameters(layout, folder, checkpoint_of):
    layout(folder)
    expected = parameters(checkpoint_of("plain"))
    found = parameters(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sharded_safetensors_give_the_same_parameters(tmp_path, checkpoint_of):
    sharded = save_checkpoint(random_llava(SHAPES["plain"]), tmp_path / "sharded", max_shard_size="1MB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    expected = parameters(checkpoint_of("plain"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parameters(sharded).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(dtype, folder, edit):
    edit(lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert {parameter.dtype for parameter in parameters(folder).values()} == {torch.float32}


def test_filled_blocks_can_be_released(checkpoint_of):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    model = checkpoint.build_model(max_context_len=1)
    checkpoint.weights.fill(model, prefix="")
    checkpoint.weights.release(model)
    assert all(parameter.is_meta for parameter in model.parameters())


Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


def test_what_was_read_does_not_stay_in_memory(folder):
    """Check that not even pages of a mapped file stay."""
    checkpoint = open_checkpoint(str(folder))
    embedding = checkpoint.build_model(max_context_len=1).token_embedding
    checkpoint.weights.fill(embedding, prefix="token_embedding")
    assert embedding.weight.abs().sum() > 0
    checkpoint.weights.release(embedding)
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_missing_keys_are_named(folder, edit):
    edit(lambda tensors: tensors.pop(Q_PROJ))
    with pytest.raises(CheckpointError, match=r"1 keys missing \(text_decoder.layers.0.self_attn.q_proj.weight\)"):
        open_checkpoint(str(folder))


def test_unexpected_keys_are_named(folder, edit):
    edit(lambda tensors: tensors.update({"model.mm_projector.0.weight": torch.zeros(1), Q_PROJ + "_x": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"2 unexpected keys \(model.mm_projector.0.weight, language_model.*_x\)"):
        open_checkpoint(str(folder))


def test_wrong_shapes_are_named(folder, edit):
    edit(lambda tensors: tensors.update({Q_PROJ: torch.zeros(7, 256)}))
    with pytest.raises(CheckpointError, match=r"1 wrong shapes \(.*q_proj.weight is \[7, 256\].* says \[256, 256\]\)"):
        open_checkpoint(str(folder))


def test_vision_layers_beyond_the_config_are_unexpected(folder, edit):
    key = "vision_tower.vision_model.encoder.layers.{}.layer_norm1.bias"
    edit(lambda tensors: tensors.update({key.format(9): torch.zeros(128)}))
    with pytest.raises(CheckpointError, match="1 unexpected keys"):
        open_checkpoint(str(folder))


def test_integer_weights_are_refused(folder, edit):
    edit(lambda tensors: tensors.update({Q_PROJ: torch.zeros(256, 256, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match="is I8; only float16"):
        parameters(folder)


@pytest.mark.parametrize("size", [0, 100, -1000])
def test_truncated_safetensors_are_damaged(size, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or incomplete"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("size", [0, 100, -1000])
def test_truncated_bins_are_damaged(size, folder):
    as_bin(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin .*damaged"):
        open_checkpoint(str(folder))


class Payload:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        """Return the function that unpickling calls."""
        return (print, ("code in a pickle was run",))


def test_pickles_with_code_are_refused(folder, capsys):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        open_checkpoint(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(CheckpointError):
        open_checkpoint(str(folder))
    assert capsys.readouterr().out == ""


def test_a_missing_shard_is_named(tmp_path):
    sharded = save_checkpoint(random_llava(SHAPES["plain"]), tmp_path / "sharded", max_shard_size="1MB")
    victim = sorted(sharded.glob("*.safetensors"))[0]
    victim.unlink()
    with pytest.raises(CheckpointError, match=f"shard {victim.name} is named by the index but missing"):
        open_checkpoint(str(sharded))


def test_a_damaged_index_is_named(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match=r"weight_map in .*index.json is 3; it must be an object"):
        open_checkpoint(str(folder))


def test_a_folder_without_weights_says_what_it_looked_for(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights in .*model.safetensors, pytorch_model.bin"):
        open_checkpoint(str(folder))
