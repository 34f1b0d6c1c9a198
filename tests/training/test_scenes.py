"""The training scenes: their answers are checked against the pixels, not against the layout code."""

from __future__ import annotations

import colorsys
import math
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from training import questions, scenes

HELD_OUT = range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + 300)
HUES = {"red": 0, "orange": 29, "yellow": 55, "green": 122, "blue": 222, "purple": 281}


def color_masks(image: Image.Image) -> dict[str, np.ndarray]:
    """Return for each color bool [H, W]: the vivid pixels whose hue is nearest to it. Backgrounds are dull."""
    rgb = np.asarray(image, dtype=np.float64) / 255
    hue = np.vectorize(lambda r, g, b: 360 * colorsys.rgb_to_hsv(r, g, b)[0])(*np.moveaxis(rgb, -1, 0))
    vivid = np.ptp(rgb, axis=-1) / np.maximum(rgb.max(axis=-1), 1e-6) > 0.5
    bright = rgb.max(axis=-1) > 0.35  # noise alone can saturate a dark background
    names = list(HUES)
    distance = np.stack([np.abs((hue - HUES[name] + 180) % 360 - 180) for name in names])
    nearest = distance.argmin(axis=0)
    return {name: vivid & bright & (nearest == i) for i, name in enumerate(names)}


def colors_seen(image: Image.Image) -> set[str]:
    """Return the colors that cover more than the smallest object's share of half a percent of the image."""
    return {name for name, mask in color_masks(image).items() if mask.mean() > 0.005}


def test_a_seed_gives_the_same_scene_every_time():
    first, second = questions.render_scene(7), questions.render_scene(7)
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    assert first.layout == second.layout
    assert first.questions == second.questions


def test_different_seeds_give_different_pixels():
    pixels = {questions.render_scene(seed).image.tobytes() for seed in range(20)}
    assert len(pixels) == 20


def test_held_out_seeds_are_not_training_seeds():
    assert questions.HELD_OUT_SEED not in questions.TRAINING_SEEDS
    assert questions.TRAINING_SEEDS[-1] < questions.HELD_OUT_SEED <= HELD_OUT[0]


def test_held_out_layouts_do_not_repeat_training_ones():
    def placed(seed: int) -> tuple[object, ...]:
        """Return the size of a layout, and the kinds and places of its objects."""
        layout = scenes.make_layout(seed)
        # With sizes: a lone object of one kind may well have the same rounded center in two images.
        return layout.width, layout.height, *((item.name, round(item.x), round(item.y)) for item in layout.objects)

    assert not {placed(seed) for seed in HELD_OUT} & {placed(seed) for seed in range(3000)}


def test_described_colors_are_those_in_the_pixels():
    for seed in HELD_OUT[:40]:
        scene = questions.render_scene(seed)
        _, answer = scene.questions_by_type["description"][0]
        assert colors_seen(scene.image) == set(re.findall("|".join(HUES), answer)), (seed, answer)


def test_description_lists_objects_from_left_to_right_in_the_pixels():
    checked = 0
    for seed in HELD_OUT[:120]:
        layout = scenes.make_layout(seed)
        colors = re.findall("|".join(HUES), questions.describe(layout))
        if len(colors) < 2 or len(set(colors)) < len(colors):
            continue
        masks = color_masks(scenes.draw(layout))
        middles = [masks[color].nonzero()[1].mean() for color in colors]
        assert middles == sorted(middles), (seed, colors, middles)
        checked += 1
    assert checked > 20


def test_relations_agree_with_the_centroids_of_the_colors():
    pattern = re.compile(r"Is the (\w+) \w+ (left of|right of|above|below) the (\w+) \w+\?")
    checked = 0
    for seed in HELD_OUT[:60]:
        layout = scenes.make_layout(seed)
        shown = [item.color for item in layout.objects]
        masks = None
        for question, answer in questions.ask(layout).get("relation", []):
            match = pattern.fullmatch(question)
            assert match
            subject, relation, other = match.groups()
            if shown.count(subject) > 1 or shown.count(other) > 1:
                continue
            masks = masks or color_masks(scenes.draw(layout))
            axis = 1 if relation in ("left of", "right of") else 0
            apart = masks[other].nonzero()[axis].mean() - masks[subject].nonzero()[axis].mean()
            assert (answer == "Yes.") == ((apart > 0) == (relation in ("left of", "above"))), (seed, question)
            checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    ("shape", "share"),
    # Areas within a circle of radius 1.
    [
        ("circle", math.pi),
        ("square", 2.0),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("star", 10 * 0.42 * math.sin(math.radians(36)) / 2),
    ],
)
def test_each_shape_covers_the_area_of_its_outline(shape: str, share: float):
    radius = 50.0
    item = scenes.SceneObject("red", shape, 80.0, 80.0, radius, 0.0, (255, 0, 0))
    mask, _ = scenes._shape_mask(item)
    assert np.asarray(mask, dtype=float).sum() / 255 == pytest.approx(share * radius**2, rel=0.03)


def test_objects_keep_apart_and_inside():
    for seed in range(500):
        layout = scenes.make_layout(seed)
        for number, item in enumerate(layout.objects):
            assert item.radius <= item.x <= layout.width - item.radius
            assert item.radius <= item.y <= layout.height - item.radius
            for other in layout.objects[:number]:
                assert math.dist((item.x, item.y), (other.x, other.y)) > item.radius + other.radius
                assert item.x - other.x >= scenes.MIN_X_DISTANCE * layout.unit


def test_counts_agree_with_the_description():
    number = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4}
    for seed in range(300):
        asked = questions.ask(scenes.make_layout(seed))
        description = asked["description"][0][1]
        for question, answer in asked["count"] + asked["count_shape"] + asked["count_color"]:
            match = re.fullmatch(r"How many (.+)s are there\?", question)
            assert match
            thing = match[1]
            word = "|".join(scenes.SHAPES) if thing == "shape" else thing.removesuffix(" shape")
            assert number[answer.split()[2]] == len(re.findall(rf"\b(?:{word})\b", description)), (seed, question)


def test_yes_and_no_are_balanced():
    answers = Counter(
        answer for seed in range(1500) for _, answer in questions.ask(scenes.make_layout(seed)).get("relation", [])
    )
    assert set(answers) == {"Yes.", "No."}
    assert answers["Yes."] / answers.total() == pytest.approx(0.5, abs=0.04)


def test_no_answer_to_a_count_dominates():
    answers = Counter(answer for seed in range(1500) for _, answer in questions.ask(scenes.make_layout(seed))["count"])
    assert len(answers) == 4
    assert max(answers.values()) / answers.total() < 0.32


def test_question_for_asks_a_question_of_its_scene_and_uses_every_type():
    types = Counter(questions.question_type_for(seed) for seed in HELD_OUT)
    assert set(types) == set(questions.QUESTION_TYPES)
    assert min(types.values()) > 15
    image, question, answer = questions.question_for(HELD_OUT[4])
    scene = questions.render_scene(HELD_OUT[4])
    assert (question, answer) in scene.questions
    assert image.tobytes() == scene.image.tobytes()
