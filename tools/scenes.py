"""Scenes of colored shapes, and questions whose answers need the image.

A seed decides everything: the layout, the pixels and the questions. Training uses seeds below `HELD_OUT_SEED`; seeds
from there on are for measuring accuracy (`question_for`). Lengths called *units* are fractions of the image's longer
side, because LLaVA pads an image to a square of that side: a margin in units is the margin that the model sees.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

HELD_OUT_SEED = 1_000_000_000
TRAINING_SEEDS = range(HELD_OUT_SEED)

SHAPES = ("circle", "square", "triangle", "star")

# color -> ranges of hue in degrees, saturation and value; the gaps between hues keep names unambiguous.
COLORS = {
    "red": ((-6, 4), (0.82, 1.0), (0.70, 0.95)),
    "orange": ((25, 33), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((51, 58), (0.80, 1.0), (0.90, 1.0)),
    "green": ((105, 140), (0.65, 1.0), (0.45, 0.80)),
    "blue": ((210, 235), (0.75, 1.0), (0.60, 0.95)),
    "purple": ((272, 290), (0.60, 0.90), (0.50, 0.80)),
}

NUMBERS = ("no", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")

MIN_SIDE, MAX_SIDE = 112, 336  # pixels
MIN_RADIUS, MAX_RADIUS = 0.11, 0.17  # units
MIN_GAP = 0.025  # units between the circles around two objects, and to the border
MIN_X_DISTANCE = 0.12  # units between two centers, so that "left to right" has one reading
RELATION_MARGIN = 0.18  # units by which "left of" or "above" must hold
SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """One shape; center and radius (of the circle around it) in pixels, rotation in degrees, color in RGB 0..255."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    rotation: float
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Layout:
    """Everything about a scene except its pixels; objects are in left-to-right order."""

    seed: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]

    @property
    def unit(self) -> int:
        return max(self.width, self.height)


@dataclass(frozen=True)
class Scene:
    """A drawn layout with its questions.

    questions_by_type: question type -> (question, answer) pairs; a type that the layout cannot ask is absent.
    """

    layout: Layout
    image: Image.Image
    questions_by_type: dict[str, list[tuple[str, str]]] = field(repr=False)

    @property
    def questions(self) -> list[tuple[str, str]]:
        return [pair for pairs in self.questions_by_type.values() for pair in pairs]


def render_scene(seed: int) -> Scene:
    """Draw the scene of `seed` and ask its questions."""
    layout = make_layout(seed)
    return Scene(layout, draw(layout), ask(layout))


def question_for(seed: int) -> tuple[Image.Image, str, str]:
    """Return (image, question, answer) of the scene of `seed`; consecutive seeds cycle through the question types."""
    layout = make_layout(seed)
    question_type = question_type_for(seed)
    question, answer = ask(layout)[question_type][0]
    return draw(layout), question, answer


def question_type_for(seed: int) -> str:
    """Return the type `question_for` asks: the one whose turn it is, or the next one that the layout can ask."""
    questions = ask(make_layout(seed))
    types = list(QUESTION_TYPES)
    turn = seed % len(types)
    return next(name for name in types[turn:] + types[:turn] if name in questions)


# --- layout -----------------------------------------------------------------------------------------------------------


def make_layout(seed: int) -> Layout:
    """Place one to four objects; the same seed always gives the same layout."""
    rng = random.Random(f"layout {seed}")
    side = rng.randint(MIN_SIDE, MAX_SIDE)
    short = side if rng.random() < 0.7 else round(side * rng.uniform(0.75, 1.0))
    width, height = rng.choice(((side, short), (short, side)))
    count = rng.randint(1, 4)
    kinds = _pick_kinds(rng, count=count)
    places = None
    while places is None:
        places = _pick_places(rng, count=count, width=width, height=height)
    objects = [
        SceneObject(color, shape, x, y, radius, rng.uniform(-12, 12), _pick_rgb(rng, color=color))
        for (color, shape), (x, y, radius) in zip(kinds, places, strict=True)
    ]
    return Layout(seed, width, height, tuple(sorted(objects, key=lambda item: item.x)))


def _pick_kinds(rng: random.Random, *, count: int) -> list[tuple[str, str]]:
    """Choose distinct (color, shape) pairs; colors and shapes often repeat, so that counting is not always "one"."""
    repeat_color, repeat_shape = rng.choice((0.0, 0.5)), rng.choice((0.0, 0.5))
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if kinds and rng.random() < repeat_color:
            color = rng.choice(kinds)[0]
        if kinds and rng.random() < repeat_shape:
            shape = rng.choice(kinds)[1]
        if (color, shape) not in kinds:
            kinds.append((color, shape))
    return kinds


def _pick_places(rng: random.Random, *, count: int, width: int, height: int) -> list[tuple[float, float, float]] | None:
    """Return (x, y, radius) in pixels for each object, or None if this try left no room for one of them."""
    unit = max(width, height)
    places: list[tuple[float, float, float]] = []
    for _ in range(count):
        for _ in range(30):
            radius = rng.uniform(MIN_RADIUS, MAX_RADIUS * (1.5 if count == 1 else 1.0)) * unit
            border = radius + MIN_GAP * unit
            x, y = rng.uniform(border, width - border), rng.uniform(border, height - border)
            if all(
                abs(x - other_x) >= MIN_X_DISTANCE * unit
                and math.hypot(x - other_x, y - other_y) >= radius + other_radius + MIN_GAP * unit
                for other_x, other_y, other_radius in places
            ):
                places.append((x, y, radius))
                break
        else:
            return None
    return places


def _pick_rgb(rng: random.Random, *, color: str) -> tuple[int, int, int]:
    hue, saturation, value = (rng.uniform(low, high) for low, high in COLORS[color])
    red, green, blue = colorsys.hsv_to_rgb((hue / 360) % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


# --- pixels -----------------------------------------------------------------------------------------------------------


def draw(layout: Layout) -> Image.Image:
    """Draw a layout as RGB: a dull background, antialiased shapes, noise."""
    rng = np.random.default_rng([layout.seed, 1])
    image = Image.fromarray(_background(rng, width=layout.width, height=layout.height))
    for item in layout.objects:
        mask, corner = _shape_mask(item)
        image.paste(item.rgb, corner, mask)
    pixels = np.asarray(image, dtype=np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(0, 9))
    return Image.fromarray(np.clip(pixels + noise + np.float32(0.5), 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, *, width: int, height: int) -> np.ndarray:
    """Return uint8 [height, width, 3]: one dull color, or a gradient between two of them in any direction."""
    start, end = (
        255 * np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.25), rng.uniform(0.12, 1.0)))
        for _ in range(2)
    )
    if rng.uniform() < 0.4:
        end = start
    angle = rng.uniform(0, 2 * math.pi)
    x, y = np.linspace(-1, 1, width)[None, :], np.linspace(-1, 1, height)[:, None]
    across = x * math.cos(angle) + y * math.sin(angle)
    weight = (0.5 + across / (2 * math.sqrt(2)))[:, :, None]
    return (start + (end - start) * weight).astype(np.uint8)


def _shape_mask(item: SceneObject) -> tuple[Image.Image, tuple[int, int]]:
    """Return a coverage mask of the object alone, and the pixel where its top left corner goes."""
    left, top = math.floor(item.x - item.radius) - 1, math.floor(item.y - item.radius) - 1
    side = math.ceil(2 * item.radius) + 4
    mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    outline = [
        ((item.x - left + dx * item.radius) * SUPERSAMPLING, (item.y - top + dy * item.radius) * SUPERSAMPLING)
        for dx, dy in _rotate(OUTLINES[item.shape], degrees=item.rotation)
    ]
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    return mask.reduce(SUPERSAMPLING), (left, top)


def _rotate(points: list[tuple[float, float]], *, degrees: float) -> list[tuple[float, float]]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in points]


def _on_circle(count: int, *, start: float, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
    """Return `count` points around the origin, `start` degrees from the x axis, on circles of the cycled radii."""
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


# Outlines within the unit circle, y down.
OUTLINES = {
    "circle": _on_circle(64, start=0),
    "square": _on_circle(4, start=45),
    "triangle": _on_circle(3, start=-90),
    "star": _on_circle(10, start=-90, radii=(1.0, 0.42)),
}


# --- questions --------------------------------------------------------------------------------------------------------

Pairs = list[tuple[str, str]]


def ask(layout: Layout) -> dict[str, Pairs]:
    """Return question type -> (question, answer) pairs, for the types that this layout can answer without doubt."""
    rng = random.Random(f"questions {layout.seed}")
    asked = {name: build(layout, rng) for name, build in QUESTION_TYPES.items()}
    return {name: pairs for name, pairs in asked.items() if pairs}


def describe(layout: Layout) -> str:
    """Say what is in the image, from left to right."""
    names = [f"{_article(item.name)} {item.name}" for item in layout.objects]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"The image shows {listed}."


def relation_holds(subject: SceneObject, other: SceneObject, *, relation: str, unit: float) -> bool | None:
    """Say whether `subject` is e.g. "left of" `other`; None where they are too close along that axis to tell."""
    distance = other.x - subject.x if relation in ("left of", "right of") else other.y - subject.y
    if abs(distance) < RELATION_MARGIN * unit:
        return None
    return (distance > 0) == (relation in ("left of", "above"))


def place_of(item: SceneObject, *, width: int, height: int) -> str | None:
    """Name the corner (or the middle) of the image that holds the object; None where it is not clearly one of them."""
    x, y = item.x / width, item.y / height
    if abs(x - 0.5) < 0.06 and abs(y - 0.5) < 0.06:
        return "in the middle"
    if abs(x - 0.5) < 0.12 or abs(y - 0.5) < 0.12:
        return None
    return f"in the {'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _there_are(count: int, thing: str) -> str:
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
    """Ask how many objects have a value, once for each count that occurs, the rarer high counts mostly first."""
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
    """Ask about up to three pairs; a coin decides each answer, so that "yes" and "no" are equally frequent."""
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
