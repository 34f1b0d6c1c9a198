"""Adapters: what is exported is what peft merges."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import CheckpointError
from llava_export.gguf.export import export_gguf
from llava_export.gguf.tensors import PART_KEYS, SOURCE
from llava_export.gguf.verify import check
from llava_export.reference import FloatReference
from llava_export.stages import Stages
from tests.adapters import (
    KINDS,
    NEW_TOKENS,
    opened,
    tensors_of,
)
from tests.checkpoints import SHAPES, VOCAB_SIZE, random_llava, save_checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_peft_merges(kind, adapted_of):
    checkpoint, merged = opened(adapted_of(kind)), open_checkpoint(str(adapted_of(kind).merged))
    assert checkpoint.config == merged.config
    found, expected = tensors_of(checkpoint), tensors_of(merged)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        # peft rounds what is added to the type of the weight, and then rounds the sum.
        rounding = 2 * torch.finfo(tensor.dtype).eps * float(expected[name].abs().max())
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=rounding, msg=name)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "original"])  # whose base is no whole model
def test_the_adapters_of_these_tests_change_weights(kind, adapted_of):
    found, base = tensors_of(opened(adapted_of(kind))), tensors_of(open_checkpoint(str(adapted_of(kind).base)))
    changed = {name for name in found if not torch.equal(found[name], base[name])}
    assert 2 <= len(changed) < len(found)


def test_an_adapter_of_other_rows_than_the_fused_ones_is_refused(adapted_of, tmp_path):
    folder = Path(shutil.copytree(adapted_of("fused").adapter, tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(key for key in tensors if "layers.1.mlp.gate_up_proj.lora_B" in key)
    save_file({**tensors, key: tensors[key][:-1].contiguous()}, folder / "adapter_model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"gate_up_proj has \[6, 384\] and \[1023, 6\] for a weight of \[1024, 384\]"
    ):
        open_checkpoint(str(folder))


def test_the_vocabulary_grows_with_the_saved_embedding(adapted_of):
    config = opened(adapted_of("grown")).config
    assert config.text.vocab_size == VOCAB_SIZE + NEW_TOKENS
    assert open_checkpoint(str(adapted_of("grown").base)).config.text.vocab_size == VOCAB_SIZE


def answers(checkpoint: Checkpoint) -> list[torch.Tensor]:
    """Return the float model's features of an image, and its logits of a prompt and of one more token."""
    reference = FloatReference(checkpoint.build_model(max_context_len=64), weights=checkpoint.weights)
    features = reference.encode_image(np.random.default_rng(0).integers(0, 256, (3, 50, 40), dtype=np.uint8))
    rows = torch.cat([reference.embed([1, 5]), features, reference.embed([7])], dim=1)
    first = reference.decode(rows, position=0)
    return [features, first, reference.decode(reference.embed([9]), position=rows.shape[1])]


@pytest.mark.parametrize("kind", ["original", "dora", "embedding", "fused_dora"])
def test_the_float_model_answers_as_the_merged_one(kind, adapted_of):
    for found, expected in zip(
        answers(opened(adapted_of(kind))), answers(open_checkpoint(str(adapted_of(kind).merged))), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_what_another_process_opens_is_the_same(adapted_of):
    checkpoint = opened(adapted_of("original"))
    again = pickle.loads(pickle.dumps(checkpoint.reopen))()
    found, expected = tensors_of(again), tensors_of(checkpoint)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_gguf_files_are_those_of_the_merged_checkpoint(adapted_of, tmp_path):
    folders = {}
    for name, checkpoint in (
        ("adapter", opened(adapted_of("original"))),
        ("merged", open_checkpoint(str(adapted_of("original").merged))),
    ):
        prompt = find_prompt(checkpoint)
        files = export_gguf(
            checkpoint,
            quantization="f16",
            mmproj_type="f16",
            prompt=prompt,
            output_dir=tmp_path / name,
            stages=Stages(),
        )
        folders[name] = {file: GGUFReader(tmp_path / name / file) for file in files}
    for file, found in folders["adapter"].items():
        expected = folders["merged"][file]
        named = {"general.name", SOURCE, *PART_KEYS.values()}
        assert found.fields.keys() - named == expected.fields.keys() - named
        for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
            assert (ours.name, ours.tensor_type, list(ours.shape)) == (
                theirs.name,
                theirs.tensor_type,
                list(theirs.shape),
            )
            np.testing.assert_allclose(
                dequantize(ours.data, ours.tensor_type),
                dequantize(theirs.data, theirs.tensor_type),
                rtol=2e-3,
                atol=1e-6,
            )
    assert [failure for comparison in check(tmp_path / "adapter") for failure in comparison.failures] == []


def test_an_adapter_of_a_whole_llava_may_be_in_the_original_layout(adapted_of, tmp_path):
    base = save_checkpoint(random_llava(SHAPES["plain"]), tmp_path / "base")
    found = tensors_of(open_checkpoint(str(adapted_of("original").adapter), base_model=str(base)))
    before = tensors_of(open_checkpoint(str(base)))
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert {name for name in found if "_proj.weight" in name and name.startswith("text_decoder")} <= changed
    assert not any(name.startswith("vision_encoder.vision_tower") for name in changed)
