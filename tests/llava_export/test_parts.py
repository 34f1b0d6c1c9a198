"""The parts of a model: the base of an adapter, what lies beside it, and projectors in files of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.parts import find_parts
from llava_export.checkpoint.prompt import find_prompt
from llava_export.cli import export
from llava_export.errors import CheckpointError, ConfigError
from tests.adapters import (
    LLAVA_CONFIG,
    change_json,
    random_projector,
    save_llama,
    save_tower,
    tensors_of,
)


def test_the_prompt_and_tokenizer_beside_an_adapter_come_first(adapted_of, tmp_path):
    adapter = shutil.copytree(adapted_of("attention").adapter, tmp_path / "adapter")
    base = adapted_of("attention").base
    assert find_parts(str(adapter)).tokenizer_folder == base
    assert open_checkpoint(str(adapter)).file("tokenizer.model") == base / "tokenizer.model"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINTS["tiny-llava"] / name, adapter)
    (adapter / "chat_template.jinja").write_text(
        (adapter / "chat_template.jinja").read_text().replace("ASSISTANT:", "HELPER:")
    )
    checkpoint = open_checkpoint(str(adapter))
    assert find_parts(str(adapter)).tokenizer_folder == adapter
    assert "HELPER:" in find_prompt(checkpoint).template.assistant


def test_the_base_is_found_where_the_adapter_names_it(adapted_of, tmp_path):
    adapted = adapted_of("attention")
    shutil.copytree(adapted.base, tmp_path / "models" / "base")
    adapter = shutil.copytree(adapted.adapter, tmp_path / "adapters" / "mine")
    change_json(adapter / "adapter_config.json", base_model_name_or_path="../../models/base")
    checkpoint = open_checkpoint(str(adapter))
    assert checkpoint.notes == (f"{adapter}: a LoRA merged into ../../models/base",)
    assert checkpoint.source == f"{adapter}; a LoRA merged into ../../models/base"
    change_json(adapter / "adapter_config.json", base_model_name_or_path="someone/of-nowhere")
    with pytest.raises(CheckpointError, match=r"adapter of someone/of-nowhere, which was not found.*--base-model"):
        open_checkpoint(str(adapter))
    assert open_checkpoint(str(adapter), base_model=str(adapted.base)).notes[0].endswith(str(adapted.base))
    with pytest.raises(CheckpointError, match="itself an adapter; --base-model takes a whole model"):
        open_checkpoint(str(adapter), base_model=str(shutil.copytree(adapted_of("original").adapter, tmp_path / "o")))


def save_projector(path: Path, *, seed: int, prefix: str = "model.mm_projector.") -> dict[str, torch.Tensor]:
    """Save a projector as LLaVA's pretraining does. Return its tensors by the names of ours."""
    projector = random_projector(seed=seed).state_dict()
    torch.save({prefix + name: tensor for name, tensor in projector.items()}, path)
    names = {"0": "linear_1", "2": "linear_2"}
    return {f"vision_encoder.projector.{names[key[0]]}{key[1:]}": tensor for key, tensor in projector.items()}


@pytest.fixture
def llama(tmp_path) -> Path:
    """The folder of a language model without vision tower and projector."""
    save_llama(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_projector_alone_goes_with_its_base(llama, tmp_path):
    folder = tmp_path / "pretrained"
    folder.mkdir()
    expected = save_projector(folder / "mm_projector.bin", seed=5)
    with pytest.raises(CheckpointError, match=r"has only a projector: name the language model .* --base-model"):
        open_checkpoint(str(folder))
    with pytest.raises(ConfigError, match=r"no config.json beside .*mm_projector.bin that names one: .*--vision-tower"):
        open_checkpoint(str(folder), base_model=str(llama))
    tower = save_tower(tmp_path / "tower")
    checkpoint = open_checkpoint(str(folder), base_model=str(llama), vision_tower=str(tower))
    (folder / "config.json").write_text(json.dumps({**LLAVA_CONFIG, "mm_vision_tower": "../tower"}))
    again = open_checkpoint(str(llama), projector=str(folder))  # the same, and its config.json is read
    for found in (tensors_of(checkpoint), tensors_of(again)):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert torch.equal(
            found["token_embedding.weight"], load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
        )


@pytest.mark.parametrize("prefix", ["mm_projector.", "model.mm_projector.", "base_model.model.model.mm_projector."])
def test_a_projector_replaces_that_of_any_layout(prefix, checkpoint_of, tmp_path):
    expected = save_projector(tmp_path / "trained.bin", seed=6, prefix=prefix)
    base = checkpoint_of("plain")
    checkpoint = open_checkpoint(str(base), projector=str(tmp_path / "trained.bin"))
    found, before = tensors_of(checkpoint), tensors_of(open_checkpoint(str(base)))
    for name, tensor in found.items():
        assert torch.equal(tensor, expected.get(name, before[name]))
    assert tmp_path / "trained.bin" in checkpoint.paths and "trained.bin" in checkpoint.source


def test_projectors_that_are_none_are_named(checkpoint_of, tmp_path):
    base = str(checkpoint_of("plain"))
    with pytest.raises(CheckpointError, match="neither an adapter nor a projector alone"):
        open_checkpoint(base, base_model="tiny-llava")
    with pytest.raises(CheckpointError, match=r"is no folder and no .bin or .safetensors file"):
        open_checkpoint(base, projector=str(tmp_path / "nothing.bin"))
    with pytest.raises(CheckpointError, match=r"has no mm_projector.bin and no mm_projector.safetensors"):
        open_checkpoint(base, projector=str(tmp_path))
    torch.save({"model.mm_projector.weight": torch.zeros(256, 128)}, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"no part of a projector that fits .* \(model.mm_projector.weight\)"):
        open_checkpoint(base, projector=str(tmp_path))
    torch.save({"mm_projector.0.weight": torch.zeros(256, 77)}, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"is \[256, 77\], config.json says \[256, 128\]"):
        open_checkpoint(base, projector=str(tmp_path))


def test_a_projector_that_is_named_replaces_what_an_adapter_changes(adapted_of, tmp_path):
    expected = save_projector(tmp_path / "mm_projector.bin", seed=7)
    found = tensors_of(open_checkpoint(str(adapted_of("grown").adapter), projector=str(tmp_path)))  # LoRA of linear_2
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_dry_run_says_what_is_merged(adapted_of, capfd):
    adapted = adapted_of("attention")
    with pytest.raises(SystemExit) as ended:
        export.main(["--model", str(adapted.adapter), "--base-model", str(adapted.base), "--dry-run"])
    out = " ".join(capfd.readouterr().out.split())
    assert not ended.value.code and f"a LoRA merged into {adapted.base}" in out and "the program" in out
