"""Calibration of a decoder: its order of work, what it depends on, and that it goes on after it was stopped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llava_export.calibration.calibrate import LINEARS, LayerReader, calibrate, calibration_key
from llava_export.calibration.store import LayerStore
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.evaluate.text import evaluate_recipe
from llava_export.recipe import RECIPES, Recipe
from llava_export.streams import DecoderBlocks, Stream

LENGTH = 24


@pytest.fixture(params=["grouped_query", "biases"])
def checkpoint(request, checkpoint_of) -> Checkpoint:
    return open_checkpoint(str(checkpoint_of(request.param)))


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    return RECIPES["8da4w"].with_changes(algorithm="gptq").fitted(checkpoint.build_model(max_context_len=1))


def windows_of(checkpoint: Checkpoint, count: int, *, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(checkpoint.config.text.vocab_size, (LENGTH - i % 3,), generator=generator) for i in range(count)
    ]


def rows_of(checkpoint: Checkpoint, count: int = 6, *, seed: int = 0) -> list[torch.Tensor]:
    return DecoderBlocks(checkpoint, max_len=LENGTH).embed(windows_of(checkpoint, count, seed=seed))


def test_a_layer_read_linear_by_linear_is_the_layer(checkpoint):
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
            reader.add(name)
        for name in LINEARS:
            layer.get_submodule(name).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        whole.advance(layer)
    in_order = [inputs[name][i] for i in range(len(rows)) for name in LINEARS]
    for found, expected in zip([*in_order, *stream.rows], [*read, *whole.rows], strict=True):
        torch.testing.assert_close(found, expected)


def test_calibrated_decoders_are_nearer_to_the_float_model(checkpoint, tmp_path):
    recipe = recipe_of(checkpoint)
    store = LayerStore(tmp_path / "store", key="a")
    calibrate(checkpoint, recipe, rows_of(checkpoint, 60), store=store)
    held_out = [ids[:20] for ids in windows_of(checkpoint, 6, seed=9)]
    calibrated = evaluate_recipe(checkpoint, recipe, held_out, calibrated=store.load)
    searched = evaluate_recipe(checkpoint, recipe.with_changes(algorithm="mse"), held_out)
    assert calibrated.kl.value < 0.8 * searched.kl.value


def test_a_calibration_that_was_stopped_goes_on(checkpoint, tmp_path):
    recipe, rows = recipe_of(checkpoint), rows_of(checkpoint)
    whole = LayerStore(tmp_path / "whole", key="a")
    calibrate(checkpoint, recipe, rows, store=whole)
    folder = tmp_path / "stopped"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(checkpoint, recipe, rows, store=LayerStore(folder, key="a"), on_step=stop)
    (first,) = folder.glob("*.safetensors")
    written = first.stat().st_mtime_ns
    resumed = LayerStore(folder, key="a")
    calibrate(checkpoint, recipe, rows, store=resumed)
    assert first.stat().st_mtime_ns == written
    for fqn in DecoderBlocks(checkpoint, max_len=1).layers:
        expected, found = whole.load(fqn), resumed.load(fqn)
        assert expected and found and set(found) == set(LINEARS) == set(expected)
        for name in LINEARS:
            assert all(map(torch.equal, found[name], expected[name]))


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


def test_the_key_stands_for_checkpoint_recipe_and_samples(checkpoint_of):
    checkpoint, twin = (open_checkpoint(str(checkpoint_of(shape))) for shape in ("plain", "plain_twin"))
    recipe, rows = recipe_of(checkpoint), rows_of(checkpoint)
    keys = {
        calibration_key(checkpoint, recipe, rows),
        calibration_key(twin, recipe, rows),
        calibration_key(checkpoint, recipe.with_changes(head="fp32"), rows),
        calibration_key(checkpoint, recipe, rows[1:]),
        calibration_key(checkpoint, recipe, [*rows[1:], rows[0]]),
        calibration_key(checkpoint, recipe, [rows[0] + 1e-3, *rows[1:]]),
    }
    assert len(keys) == 6 and calibration_key(checkpoint, recipe, rows) in keys
