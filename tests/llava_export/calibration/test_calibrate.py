"""Calibration of a decoder: its order of work, what it depends on, and that it goes on after it was stopped."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from llava_export.calibration import calibrate as calibrate_module
from llava_export.calibration.calibrate import LINEARS, NORMS, LayerReader, calibrate, calibration_key
from llava_export.calibration.samples import Sample
from llava_export.calibration.store import LayerStore
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import CalibrationError, ExportError
from llava_export.evaluate.text import evaluate_recipe
from llava_export.pte.source import ModelSource
from llava_export.quantize.weights import dequantized
from llava_export.recipe import CALIBRATED, RECIPES, Recipe
from llava_export.streams import DecoderBlocks, Stream

LENGTH = 24


@pytest.fixture(params=["grouped_query", "biases"])
def checkpoint(request, checkpoint_of) -> Checkpoint:
    return open_checkpoint(str(checkpoint_of(request.param)))


def recipe_of(checkpoint: Checkpoint, algorithm: str = "gptq") -> Recipe:
    return RECIPES["8da4w"].with_changes(algorithm=algorithm).fitted(checkpoint.build_model(max_context_len=1))


def windows_of(checkpoint: Checkpoint, count: int, *, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(checkpoint.config.text.vocab_size, (LENGTH - i % 3,), generator=generator) for i in range(count)
    ]


def rows_of(checkpoint: Checkpoint, count: int = 6, *, seed: int = 0) -> list[torch.Tensor]:
    return DecoderBlocks(checkpoint, max_len=LENGTH).embed(windows_of(checkpoint, count, seed=seed))


@pytest.mark.parametrize("kept", [2, 1, 0])  # sequences of which the last linear's inputs are kept
def test_a_layer_read_linear_by_linear_is_the_layer(kept, checkpoint, monkeypatch):
    monkeypatch.setattr(calibrate_module, "KEPT_BYTES", kept * LENGTH * checkpoint.config.text.intermediate_size * 4)
    blocks = DecoderBlocks(checkpoint, max_len=LENGTH)
    rows = rows_of(checkpoint, 2)
    whole, stream = (Stream(rows, decoder=blocks.decoder) for _ in range(2))
    read: list[torch.Tensor] = []
    layer: Any = blocks.decoder.layers[1]
    with blocks.loaded(blocks.layers[1]), torch.no_grad():
        reader = LayerReader(layer, stream)
        inputs = {}
        for name in LINEARS:
            inputs[name] = list(reader.inputs(name))
            assert name != "mlp.down_proj" or len(reader._read) == kept
            reader.add(name)
        for name in LINEARS:
            layer.get_submodule(name).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        whole.advance(layer)
    in_order = [inputs[name][i] for i in range(len(rows)) for name in LINEARS]
    for found, expected in zip([*in_order, *stream.rows], [*read, *whole.rows], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("algorithm", CALIBRATED)
def test_calibrated_decoders_are_nearer_to_the_float_model(checkpoint, algorithm, tmp_path):
    recipe = recipe_of(checkpoint, algorithm)
    store = LayerStore(tmp_path / "store", key="a")
    calibrate(checkpoint, recipe, rows_of(checkpoint, 60), store=store)
    held_out = [ids[:20] for ids in windows_of(checkpoint, 6, seed=9)]
    calibrated = evaluate_recipe(checkpoint, recipe, held_out, calibrated=store.load)
    searched = evaluate_recipe(checkpoint, recipe.with_changes(algorithm="mse"), held_out)
    # Random weights read inputs of about one size, and AWQ has little to gain.
    most = {"gptq": 0.8, "awq": 0.95, "awq-gptq": 0.8}[algorithm]
    assert calibrated.kl.value < most * searched.kl.value


def test_factors_of_inputs_change_nothing_but_the_rounding(checkpoint, tmp_path):
    """The norm before a linear takes over what the linear's weights are multiplied by."""
    fqn, store = "text_decoder.layers.0", LayerStore(tmp_path / "store", key="a")
    calibrate(checkpoint, recipe_of(checkpoint, "awq"), rows_of(checkpoint), store=store)
    found = store.load(fqn)
    blocks = DecoderBlocks(checkpoint, max_len=LENGTH)
    assert found and set(found.norms) == set(NORMS.values())
    with blocks.loaded(fqn) as layer:
        for name, norm in NORMS.items():
            weight = {it: layer.get_submodule(it).get_parameter("weight") for it in (name, norm)}
            factors = weight[norm] / found.norms[norm]
            assert factors.max() > 1.01 * factors.min() > 0
            unscaled = dequantized(*found.linears[name]) / factors
            error = (unscaled - weight[name]).square().mean() / weight[name].square().mean()
            assert error < 0.02


def test_linears_of_8_bits_are_rounded_by_rows_and_seen_by_those_behind(checkpoint, tmp_path):
    fqn, eight = "text_decoder.layers.0", ("self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj")
    recipe = recipe_of(checkpoint).with_changes(exceptions={f"{fqn}.{name}": "8da8w" for name in eight})
    stores = {}
    for name, chosen in (("mixed", recipe), ("four", recipe_of(checkpoint))):
        stores[name] = LayerStore(tmp_path / name, key=name)
        for _ in range(2):  # the second time they are there
            calibrate(checkpoint, chosen, rows_of(checkpoint), store=stores[name])
    mixed, four = (stores[name].load(fqn) for name in ("mixed", "four"))
    assert mixed and four and set(mixed.linears) == set(LINEARS) - set(eight)
    assert not torch.equal(
        mixed.linears["self_attn.o_proj"][0], four.linears["self_attn.o_proj"][0]
    )  # it has other inputs
    blocks = DecoderBlocks(checkpoint, max_len=LENGTH, recipe=recipe, calibrated=stores["mixed"].load)
    linears: dict[str, Any] = {name: blocks.decoder.get_submodule(f"layers.0.{name}") for name in LINEARS}
    with blocks.loaded(fqn):
        bits = {name: str(linear.weight.target_dtype) for name, linear in linears.items()}
    assert bits == {name: "torch.int8" if name in eight else "torch.int4" for name in LINEARS}


def test_inputs_that_are_no_numbers_are_told_with_the_linear(checkpoint, tmp_path):
    rows = rows_of(checkpoint, 2)
    rows[1][0, 3] = torch.nan
    with pytest.raises(CalibrationError, match=r"text_decoder\.layers\.0\.self_attn\.qkv_proj reads NaN"):
        calibrate(checkpoint, recipe_of(checkpoint), rows, store=LayerStore(tmp_path / "store", key="a"))


def test_a_calibration_that_was_stopped_goes_on(checkpoint, tmp_path):
    recipe, rows = recipe_of(checkpoint), rows_of(checkpoint)
    whole = LayerStore(tmp_path / "whole", key="a")
    calibrate(checkpoint, recipe, list(rows), store=whole)
    folder = tmp_path / "stopped"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(checkpoint, recipe, list(rows), store=LayerStore(folder, key="a"), on_step=stop)
    (first,) = folder.glob("*.safetensors")
    written = first.stat().st_mtime_ns
    resumed = LayerStore(folder, key="a")
    calibrate(checkpoint, recipe, rows, store=resumed)
    assert first.stat().st_mtime_ns == written
    for fqn in DecoderBlocks(checkpoint, max_len=1).layers:
        expected, found = whole.load(fqn), resumed.load(fqn)
        assert expected and found and set(found.linears) == set(LINEARS) == set(expected.linears)
        for name in LINEARS:
            assert all(map(torch.equal, found.linears[name], expected.linears[name]))


def test_layers_that_are_damaged_or_of_another_calibration_are_made_anew(checkpoint, tmp_path):
    recipe, rows = recipe_of(checkpoint), rows_of(checkpoint)
    store = LayerStore(tmp_path / "store", key="a")
    calibrate(checkpoint, recipe, rows, store=store)
    fqn = "text_decoder.layers.1"
    path = tmp_path / "store" / f"{fqn}.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert store.load(fqn) is None and store.load("text_decoder.layers.0") is not None
    assert LayerStore(tmp_path / "store", key="b").load("text_decoder.layers.0") is None
    store.remove()
    assert not (tmp_path / "store").exists()


def key_of(checkpoint: Checkpoint, samples: list[Sample], **changes: Any) -> str:
    given = {"recipe": recipe_of(checkpoint), "prompt": find_prompt(checkpoint), "max_len": LENGTH, "limit": None}
    return calibration_key(checkpoint, samples=samples, **{**given, "device": "cpu", **changes})


def test_the_key_stands_for_checkpoint_recipe_and_samples(checkpoint_of, tmp_path):
    checkpoint, twin = (open_checkpoint(str(checkpoint_of(shape))) for shape in ("plain", "plain_twin"))
    image = tmp_path / "image.png"
    image.write_bytes(b"one")
    asked = Sample(image, "What?", "That.")
    texts = [Sample(None, "", "", ids=torch.tensor(ids)) for ids in ([1, 2], [3], [1], [2, 3])]
    samples = [asked, *texts[:2]]
    arguments: list[tuple[Checkpoint, list[Sample], dict[str, Any]]] = [
        (checkpoint, samples, {}),
        (twin, samples, {}),
        (checkpoint, samples, {"recipe": recipe_of(checkpoint).with_changes(head="fp32")}),
        (checkpoint, samples, {"prompt": find_prompt(checkpoint, given="qwen")}),
        (checkpoint, samples, {"max_len": LENGTH + 1}),
        (checkpoint, samples, {"limit": 2}),
        (checkpoint, samples, {"device": "cuda"}),
        (checkpoint, samples[1:], {}),
        (checkpoint, [asked, *texts[2:]], {}),  # the same ids, divided in another way
        (checkpoint, [*texts[:2], asked], {}),
        (checkpoint, [replace(asked, question="Who?"), *texts[:2]], {}),
        (checkpoint, [replace(asked, answer="This."), *texts[:2]], {}),
        (checkpoint, [replace(asked, image=None), *texts[:2]], {}),
    ]
    keys = [key_of(it, its_samples, **changes) for it, its_samples, changes in arguments]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key_of(checkpoint, samples)
    image.write_bytes(b"another")
    assert keys[0] != key_of(checkpoint, samples)


def test_an_export_into_the_checkpoints_folder_goes_on(checkpoint_of, tmp_path):
    copy = shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")
    checkpoint = open_checkpoint(str(copy))
    samples = [Sample(None, "", "A text.")]
    before = key_of(checkpoint, samples)
    LayerStore(copy / "package" / ".llava.calibration", key=before)
    assert key_of(checkpoint, samples) == before
    (copy / "more.json").write_text("{}")
    assert key_of(checkpoint, samples) != before


def test_a_folder_that_no_calibration_made_stays_as_it_is(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    LayerStore(folder, key="a").remove()
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(ExportError, match="no earlier export made it"):
        LayerStore(folder, key="a")
    assert (folder / "letter.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="no earlier export made it"):
        LayerStore(tmp_path / "file", key="a")


def test_a_key_that_was_cut_begins_anew(tmp_path):
    LayerStore(tmp_path / "store", key="abc")
    (tmp_path / "store" / "key.txt").write_bytes(b"\xff")
    LayerStore(tmp_path / "store", key="abc")
    assert (tmp_path / "store" / "key.txt").read_text() == "abc"


def test_a_program_has_the_layers_of_its_calibration(checkpoint_of, tmp_path):
    """And none is rounded in another way if its file is gone."""
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    recipe, store = recipe_of(checkpoint), LayerStore(tmp_path / "store", key="a")
    calibrate(checkpoint, recipe, rows_of(checkpoint), store=store)
    source = ModelSource(checkpoint, recipe, 8, calibrated=store)
    num_layers = 0
    for fqn, block in source.quantized_blocks(source.build()):
        if expected := store.load(fqn):
            num_layers += 1
            for name in LINEARS:
                found: Any = block.get_submodule(name).weight
                assert all(map(torch.equal, (found.qdata, found.scale), expected.linears[name]))
    assert num_layers == checkpoint.config.text.num_hidden_layers
    (tmp_path / "store" / "text_decoder.layers.1.safetensors").unlink()
    with pytest.raises(ExportError, match=r"layers\.1\.safetensors is gone or damaged"):
        list(source.quantized_blocks(source.build()))
