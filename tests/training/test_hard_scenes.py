"""Scenes that are difficult for the models: still clear, of no training, and the plain ones stay what they were."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.scenes import write_scenes
from tests.training.test_scenes import HUES, color_masks
from training import questions, scenes
from training.scenes import HARD, PLAIN

HELD_OUT = range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + 200)
# SHA-256 of the layouts and questions of 100 plain scenes, before there were others.
PLAIN_SHA256 = "6f85aae6526c699ec4e29de66ff7aa529696898804ccc12df09e9e4777029e8b"
# Mean and standard deviation of all pixels of the scenes 0 to 2. They tell the noise, too.
PLAIN_PIXELS = [(138.3137, 31.9963), (127.9328, 40.3943), (69.9231, 19.0716)]


def test_plain_scenes_are_those_of_the_training():
    digest = hashlib.sha256()
    for seed in [*range(50), *HELD_OUT[:50]]:
        layout = scenes.make_layout(seed)
        drawn = [(it.color, it.shape, it.x, it.y, it.radius, it.rotation, it.rgb) for it in layout.objects]
        digest.update(repr((layout.width, layout.height, drawn, questions.ask(layout))).encode())
    assert digest.hexdigest() == PLAIN_SHA256
    pixels = [np.asarray(questions.render_scene(seed).image, dtype=float) for seed in range(3)]
    assert [it.mean() for it in pixels] == pytest.approx([mean for mean, _ in PLAIN_PIXELS], abs=1e-3)
    assert [it.std() for it in pixels] == pytest.approx([deviation for _, deviation in PLAIN_PIXELS], abs=1e-3)


def test_hard_scenes_are_of_their_seeds_and_no_plain_ones():
    for seed in HELD_OUT[:20]:
        first, second = (questions.render_scene(seed, HARD) for _ in range(2))
        assert first.layout == second.layout and first.questions == second.questions
        assert first.image.tobytes() == second.image.tobytes() != questions.render_scene(seed).image.tobytes()


def test_hard_layouts_repeat_none_of_the_training():
    def placed(layout: scenes.Layout) -> tuple[object, ...]:
        return layout.width, layout.height, *((it.name, round(it.x), round(it.y)) for it in layout.objects)

    trained = {placed(scenes.make_layout(seed)) for seed in questions.TRAINING_SEEDS[:2000]}
    assert not trained & {placed(scenes.make_layout(seed, HARD)) for seed in HELD_OUT}


def test_hard_scenes_have_more_and_smaller_objects_and_more_noise():
    def counts_radii_noise(style: scenes.Style) -> tuple[set[int], list[float], float]:
        layouts = [scenes.make_layout(seed, style) for seed in HELD_OUT[:40]]
        pixels = [np.asarray(scenes.draw(layout), dtype=float) for layout in layouts]
        return (
            {len(layout.objects) for layout in layouts},
            [it.radius / layout.unit for layout in layouts for it in layout.objects],
            float(np.mean([np.median(np.abs(np.diff(it, axis=1))) for it in pixels])),
        )

    (plain_counts, plain_radii, plain_noise), (counts, radii, noise) = map(counts_radii_noise, (PLAIN, HARD))
    assert counts == {3, 4} and plain_counts == {1, 2, 3, 4}
    assert max(radii) < np.mean(plain_radii) and noise > 2 * plain_noise


def test_objects_of_hard_scenes_keep_apart_and_inside():
    for seed in HELD_OUT:
        layout = scenes.make_layout(seed, HARD)
        for number, it in enumerate(layout.objects):
            assert it.radius < it.x < layout.width - it.radius and it.radius < it.y < layout.height - it.radius
            for other in layout.objects[:number]:
                assert np.hypot(it.x - other.x, it.y - other.y) > it.radius + other.radius
                assert it.x - other.x >= scenes.MIN_X_DISTANCE * layout.unit


def test_answers_about_hard_scenes_agree_with_the_pixels():
    compared = 0
    for seed in HELD_OUT[:40]:
        scene = questions.render_scene(seed, HARD)
        colors = re.findall("|".join(HUES), scene.questions_by_type["description"][0][1])
        # Without most of the noise, which saturates a pixel here and there.
        masks = color_masks(scene.image.filter(ImageFilter.GaussianBlur(1.5)))
        assert {name for name, mask in masks.items() if mask.mean() > 0.004} == set(colors), seed
        if len(set(colors)) == len(colors):
            middles = [masks[color].nonzero()[1].mean() for color in colors]
            assert middles == sorted(middles), (seed, colors)
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("style", [PLAIN, HARD], ids=["plain", "hard"])
def test_a_data_set_has_the_scenes_of_its_style(style, tmp_path):
    write_scenes(tmp_path, count=9, first=3, style=style)
    lines = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(3 + i) for i in range(9)]
    for line in lines:
        seed = questions.HELD_OUT_SEED + int(line["id"])
        image, question, answer = questions.question_for(seed, style)
        assert (line["question"], line["answer"]) == (question, answer)
        assert (question, answer) in questions.render_scene(seed, style).questions_by_type[line["kind"]]
        assert Image.open(tmp_path / line["image"]).tobytes() == image.tobytes()
