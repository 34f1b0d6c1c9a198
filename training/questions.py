"""Questions about scenes that nobody can answer without the image.

Training uses seeds below ``HELD_OUT_SEED``. Accuracy is measured with the seeds from there on (``question_for``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from training.scenes import COLORS, PLAIN, SHAPES, Layout, SceneObject, Style, draw, make_layout

HELD_OUT_SEED = 1_000_000_000
TRAINING_SEEDS = range(HELD_OUT_SEED)

NUMBERS = ("no", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
RELATION_MARGIN = 0.18  # units by which "left of" or "above" must hold

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Scene:
    """A drawn layout with its questions.

    ``questions_by_type`` has the (question, answer) pairs by question type, without the types that this layout cannot
    ask.
    """

    layout: Layout
    image: Image.Image
    questions_by_type: dict[str, Pairs] = field(repr=False)

    @property
    def questions(self) -> Pairs:
        """Return all (question, answer) pairs."""
        return [pair for pairs in self.questions_by_type.values() for pair in pairs]


def render_scene(seed: int, style: Style = PLAIN) -> Scene:
    """Return the scene of a seed."""
    layout = make_layout(seed, style)
    return Scene(layout, draw(layout), ask(layout))


def question_for(seed: int, style: Style = PLAIN) -> tuple[Image.Image, str, str]:
    """Return (image, question, answer) of the scene of a seed. Consecutive seeds ask the question types in turn."""
    layout = make_layout(seed, style)
    question_type = question_type_for(seed, style)
    question, answer = ask(layout)[question_type][0]
    return draw(layout), question, answer


def question_type_for(seed: int, style: Style = PLAIN) -> str:
    """Return the type that ``question_for`` asks: the one in turn, or the next one that the layout can ask."""
    questions = ask(make_layout(seed, style))
    types = list(QUESTION_TYPES)
    turn = seed % len(types)
    return next(name for name in types[turn:] + types[:turn] if name in questions)


def ask(layout: Layout) -> dict[str, Pairs]:
    """Return (question, answer) pairs by question type, for the types that this layout answers without doubt."""
    rng = random.Random(f"questions {layout.seed}")
    asked = {name: build(layout, rng) for name, build in QUESTION_TYPES.items()}
    return {name: pairs for name, pairs in asked.items() if pairs}


def describe(layout: Layout) -> str:
    """Return a sentence that says what is in the image, from left to right."""
    names = [f"{_article(item.name)} {item.name}" for item in layout.objects]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"The image shows {listed}."


def relation_holds(subject: SceneObject, other: SceneObject, *, relation: str, unit: float) -> bool | None:
    """Return True if ``subject`` is for example "left of" ``other``, or None where they are too close to tell.

    ``unit`` is the layout's, in pixels.
    """
    distance = other.x - subject.x if relation in ("left of", "right of") else other.y - subject.y
    if abs(distance) < RELATION_MARGIN * unit:
        return None
    return (distance > 0) == (relation in ("left of", "above"))


def place_of(item: SceneObject, *, width: int, height: int) -> str | None:
    """Return the corner of the image that holds the object, or the middle, or None where neither is clear."""
    x, y = item.x / width, item.y / height
    if abs(x - 0.5) < 0.06 and abs(y - 0.5) < 0.06:
        return "in the middle"
    if abs(x - 0.5) < 0.12 or abs(y - 0.5) < 0.12:
        return None
    return f"in the {'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def _article(word: str) -> str:
    """Return "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"


def _there_are(count: int, thing: str) -> str:
    """Return for example "There are two stars."."""
    return f"There is one {thing}." if count == 1 else f"There are {NUMBERS[count]} {thing}s."


def _ask_description(layout: Layout, rng: random.Random) -> Pairs:
    questions = ["What is in the image?", "Describe the image.", "What do you see?"]
    rng.shuffle(questions)
    return [(question, describe(layout)) for question in questions]


def _ask_color(layout: Layout, rng: random.Random) -> Pairs:
    shapes = [item.shape for item in layout.objects]
    unique = [item for item in layout.objects if shapes.count(item.shape) == 1]
    rng.shuffle(unique)
    return [(f"What color is the {item.shape}?", f"The {item.shape} is {item.color}.") for item in unique]


def _ask_shape(layout: Layout, rng: random.Random) -> Pairs:
    colors = [item.color for item in layout.objects]
    unique = [item for item in layout.objects if colors.count(item.color) == 1]
    rng.shuffle(unique)
    things = [(f"{item.color} object", item.shape) for item in unique]
    return [(f"What shape is the {thing}?", f"The {thing} is a {shape}.") for thing, shape in things]


def _ask_count(layout: Layout, rng: random.Random) -> Pairs:
    return [("How many shapes are there?", _there_are(len(layout.objects), "shape"))]


def _ask_count_by(values: list[str], *, present: list[str], noun: str, rng: random.Random) -> Pairs:
    """Return questions for the number of objects with a value, one for each count that occurs.

    High counts are rare, and mostly come first.
    """
    by_count: dict[int, list[str]] = {}
    for value in values:
        by_count.setdefault(present.count(value), []).append(value)
    counts = sorted(by_count, key=lambda count: rng.random() / (count + 1))
    things = [(count, noun.format(rng.choice(by_count[count]))) for count in counts]
    return [(f"How many {thing}s are there?", _there_are(count, thing)) for count, thing in things]


def _ask_count_shape(layout: Layout, rng: random.Random) -> Pairs:
    return _ask_count_by(list(SHAPES), present=[item.shape for item in layout.objects], noun="{}", rng=rng)


def _ask_count_color(layout: Layout, rng: random.Random) -> Pairs:
    return _ask_count_by(list(COLORS), present=[item.color for item in layout.objects], noun="{} shape", rng=rng)


def _ask_relation(layout: Layout, rng: random.Random) -> Pairs:
    """Return questions about up to three pairs. A coin decides each answer, so that "yes" is as frequent as "no"."""
    asked: Pairs = []
    pairs = [(a, b) for a in layout.objects for b in layout.objects if a is not b]
    for subject, other in rng.sample(pairs, len(pairs)):
        truth = rng.random() < 0.5
        holds = {name: relation_holds(subject, other, relation=name, unit=layout.unit) for name in RELATIONS}
        fitting = [name for name, held in holds.items() if held is truth]
        if fitting:
            question = f"Is the {subject.name} {rng.choice(fitting)} the {other.name}?"
            asked.append((question, "Yes." if truth else "No."))
    return asked[:3]


def _ask_place(layout: Layout, rng: random.Random) -> Pairs:
    placed = [(item, place_of(item, width=layout.width, height=layout.height)) for item in layout.objects]
    clear = [(item, place) for item, place in placed if place]
    rng.shuffle(clear)
    return [(f"Where is the {item.name}?", f"The {item.name} is {place}.") for item, place in clear]


QUESTION_TYPES: dict[str, Callable[[Layout, random.Random], Pairs]] = {
    "description": _ask_description,
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "count_shape": _ask_count_shape,
    "count_color": _ask_count_color,
    "relation": _ask_relation,
    "place": _ask_place,
}
