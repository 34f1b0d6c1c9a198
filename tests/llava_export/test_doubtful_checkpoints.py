"""Checkpoints that are refused for what they are: by name, with all reasons at once, and before any weight is read."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.errors import CheckpointError, ConfigError, SeveralReasons
from llava_runner.errors import UserError
from tests.checkpoints import TINY_LLAVA
from tests.commands import llava_here
from tests.llava_export.test_mobilevlm import original_llava

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 13476937\n".format("4d7a" * 16)
BYTE_LEVEL = {
    "model": {"type": "BPE", "byte_fallback": False, "vocab": {"a": 0, "b": 1}, "merges": []},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
}


@pytest.fixture
def folder(checkpoint_of, tmp_path) -> Path:
    """The folder of a copy that a test may change."""
    copy: Path = shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")
    return copy


@pytest.fixture
def original(checkpoint_of, tmp_path) -> Path:
    """The folder of a checkpoint in the layout of LLaVA's authors."""
    return original_llava(checkpoint_of("plain"), tmp_path)[0]


def change_config(folder: Path, **changes: Any) -> None:
    """Change values in ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Apply ``change`` to the dictionary of stored tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path) -> UserError:
    """Return the error with which a checkpoint is refused."""
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        open_checkpoint(str(folder))
    return refused.value


def only_reason(folder: Path) -> str:
    """Return the one line of the only reason why a checkpoint is refused."""
    (line,) = refusal(folder).lines
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, 4 bits"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 64}, "gptq, 3 bits"),
        ({"quant_method": "awq", "version": "gemm"}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ("hqq", "'hqq'"),
        ({"quant_method": ["x" * 999]}, "['xxxxx"),
    ],
)
@pytest.mark.parametrize("where", [None, "text_config"])
def test_a_config_of_a_quantized_model_is_refused_by_its_method(where, config, method, folder):
    section = json.loads((folder / "config.json").read_text())["text_config"]
    changes = {"quantization_config": config}
    change_config(folder, **(changes if where is None else {where: {**section, **changes}}))
    reason = only_reason(folder)
    assert f"quantized already (quantization_config says {method}" in reason and "export the float model" in reason
    assert "delete that entry" in reason and len(reason) < 300


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_config_that_quantizes_nothing_is_passed_over(nothing, folder):
    change_config(folder, quantization_config=nothing)
    open_checkpoint(str(folder))


Q = "language_model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    "added",
    [
        {f"{Q}.qweight": torch.int32, f"{Q}.qzeros": torch.int32, f"{Q}.scales": torch.float16},
        {f"{Q}.weight": torch.uint8, f"{Q}.weight.absmax": torch.uint8, f"{Q}.weight.quant_map": torch.float32},
        {f"{Q}.weight": torch.int8, f"{Q}.SCB": torch.float32},
        {f"{Q}.weight": torch.float8_e4m3fn, f"{Q}.weight_scale": torch.float32},
        {f"{Q}.weight_packed": torch.int32, f"{Q}.weight_shape": torch.int64},
    ],
)
def test_keys_of_a_quantized_model_are_refused_without_a_list_of_them(added, folder):
    def quantize(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{Q}.weight"]
        tensors.update({key: torch.ones(8, 4).to(dtype) for key, dtype in added.items()})

    edit(folder, quantize)
    reason = only_reason(folder)
    assert f"quantized already (it has the weight {Q}." in reason
    assert "keys" not in reason and "delete" not in reason


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        ({"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type 'spatial'"),
        ({"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "pad"}, "mm_patch_merge_type 'spatial_unpad'"),
        ({"model_type": "llava_next"}, "model_type llava_next"),
    ],
)
def test_llava_16_is_refused_with_and_without_its_weight(changes, evidence, original):
    change_config(original, **changes)
    assert f"LLaVA-1.6 or one of its kin, which cut an image into tiles ({evidence})" in only_reason(original)
    edit(original, lambda tensors: tensors.update({"model.image_newline": torch.zeros(256)}))
    assert f"({evidence}, the weight model.image_newline)" in only_reason(original)


def test_the_weight_of_llava_16_alone_is_enough(folder):
    edit(folder, lambda tensors: tensors.update({"model.image_newline": torch.zeros(256)}))
    assert "(the weight model.image_newline)" in only_reason(folder)


def test_what_llava_15_says_of_tiles_is_passed_over(original):
    change_config(original, mm_patch_merge_type="flat", image_grid_pinpoints=[[336, 672]], image_aspect_ratio="pad")
    open_checkpoint(str(original))


@pytest.mark.parametrize("said", ["linear", None, "nothing"])
def test_weights_of_another_projector_than_llava_1s_are_named(said, original):
    config = json.loads((original / "config.json").read_text())
    config["mm_projector_type"] = said
    if said == "nothing":
        del config["mm_projector_type"]
    (original / "config.json").write_text(json.dumps(config))
    reasons = refusal(original).lines
    named = None if said == "nothing" else said
    assert any(f"has mm_projector_type {named}, but the weights are those of mlp2x_gelu" in it for it in reasons)


def test_the_weights_of_a_single_linear_are_named(original):
    def single(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "mm_projector" in key]:
            del tensors[key]
        tensors["model.mm_projector.weight"] = torch.ones(256, 128)

    edit(original, single)
    reasons = refusal(original).lines
    assert any("mlp2x_gelu, but the weights are those of linear" in reason for reason in reasons)


def test_all_reasons_are_told_at_once(original):
    change_config(
        original,
        mm_patch_merge_type="spatial_unpad",
        rope_scaling={"type": "dynamic", "factor": 2.0},
        sliding_window=0,
        hidden_act="gelu",
        mm_use_im_start_end="yes",
        quantization_config={"quant_method": "gptq", "bits": 4},
    )
    (original / "tokenizer.model").unlink()
    (original / "tokenizer.json").write_text(json.dumps(BYTE_LEVEL))
    (original / "preprocessor_config.json").write_text(json.dumps({"image_std": [0, 0, 0]}))
    refused = refusal(original)
    assert isinstance(refused, SeveralReasons)
    assert pickle.loads(pickle.dumps(refused)).lines == refused.lines  # it may come from another process
    first, *reasons = refused.lines
    assert first == "the checkpoint is refused for 8 reasons:" and len(reasons) == 8
    for sign in (
        "quantized already (quantization_config says gptq, 4 bits)", "LLaVA-1.6", "type 'dynamic'", "sliding_window",
        "hidden_act 'gelu'", "mm_use_im_start_end", "image_std [0.0, 0.0, 0.0]", "lacks decoder",
    ):  # fmt: skip
        assert [line.startswith("- ") for line in reasons if sign in line] == [True], sign
    done = llava_here("export", "--model", original, "--dry-run")
    assert done.returncode == 2 and done.stderr.splitlines()[1:] == reasons


def test_reasons_that_follow_from_others_are_not_told(folder):
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            if "q_proj" in key:
                tensors[key] = torch.ones(3, dtype=torch.uint8)

    edit(folder, damage)
    change_config(folder, quantization_config={"quant_method": "awq"})
    assert "awq" in only_reason(folder)


def test_types_keys_and_tokenizer_are_told_together(folder):
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].double()
        del tensors["language_model.model.norm.weight"]

    edit(folder, damage)
    (folder / "tokenizer.model").unlink()
    lines = refusal(folder).lines
    assert len(lines) == 4
    for sign in ("is F64; only", "1 keys missing (text_decoder.norm.weight)", "has no tokenizer.model"):
        assert sum(sign in line for line in lines) == 1


@pytest.mark.parametrize("content", ["", "{}"])
def test_an_empty_config_is_refused_as_empty(content, folder):
    (folder / "config.json").write_text(content)
    assert "config.json is empty; copy" in only_reason(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["model.safetensors"],
        ["config.json"],
        ["tokenizer.model"],
        ["preprocessor_config.json", "model.safetensors"],
        ["config.json", "model.safetensors", "tokenizer.model"],
    ],
)
def test_pointers_of_git_lfs_are_named(names, folder):
    for name in names:
        (folder / name).write_text(LFS)
    reason = only_reason(folder)
    assert "pointers of Git LFS" in reason and "git lfs pull" in reason
    assert all(name in reason for name in names)


def test_pointers_of_every_shard_and_of_the_index_are_counted(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(LFS)
    for i in range(1, 8):
        (folder / f"model-0000{i}-of-00007.safetensors").write_text(LFS)
    assert "and 4 more: run git lfs pull there" in only_reason(folder)


def test_pointers_in_place_of_files_that_are_not_read_do_not_matter(folder):
    for name in ("pytorch_model.bin", "training_args.bin", "trainer_state.json", "flax_model.msgpack"):
        (folder / name).write_text(LFS)
    open_checkpoint(str(folder))


def test_pointers_do_not_hide_what_the_config_says(folder):
    (folder / "model.safetensors").write_text(LFS)
    change_config(folder, quantization_config={"quant_method": "gptq"}, vision_feature_layer=-77)
    lines = refusal(folder).lines
    assert [
        sum(sign in line for line in lines) for sign in ("git lfs pull", "gptq", "is outside the vision tower's")
    ] == [1, 1, 1]


PARTS = [
    (["adapter_config.json", "adapter_model.safetensors"], "is an adapter that does not name its base model"),
    (["adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin", "config.json"], "is an adapter that"),
    (["adapter_model.safetensors"], "has the weights of an adapter (LoRA) without its adapter_config.json"),
    (["non_lora_trainables.bin", "config.json"], "has the weights of an adapter (LoRA) without"),
    (["mm_projector.bin"], "has only a projector: name the language model it belongs to with --base-model"),
    (["mm_projector.bin", "config.json", "trainer_state.json"], "has only a projector"),
    (["projector.safetensors"], "has a projector alone"),
    (["llm/config.json", "visual_encoder/config.json", "projector/config.json"], "is in xtuner's own layout"),
    (["llm_adapter/adapter_config.json", "projector/model.safetensors", "xtuner_config.py"], "is in xtuner's own"),
    (["llava-q4_k.gguf", "mmproj-f16.GGUF"], "has GGUF files, which are exported already"),
    (["model-q8_0.gguf", "config.json"], "has GGUF files"),
    (["checkpoint-500/config.json", "checkpoint-1000/config.json"], "has checkpoints of a training run in folders"),
]


@pytest.mark.parametrize(("names", "message"), PARTS)
def test_folders_with_parts_of_a_model_are_named_as_what_they_are(names, message, tmp_path):
    for name in names:
        path = tmp_path / "part" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((TINY_LLAVA / "config.json").read_bytes() if path.name == "config.json" else b"{}")
    reason = only_reason(tmp_path / "part")
    assert reason.startswith(f"{tmp_path / 'part'} {message}")


def test_a_whole_model_may_have_parts_beside_it(folder):
    for name in ("mm_projector.bin", "model-q4_0.gguf", "checkpoint-9", "adapter.md"):
        (folder / name).write_bytes(b"")
    open_checkpoint(str(folder))
