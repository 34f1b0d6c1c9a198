"""Scenes of colored shapes. A seed decides the layout of a scene and its pixels.

A *unit* is the longer side of the image. LLaVA pads an image to a square of that side, so a margin of so many units is
the margin that the model sees.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star")

# For each color the ranges of hue in degrees, saturation and value. The gaps between hues keep names unambiguous.
COLORS: dict[str, tuple[tuple[float, float], ...]] = {
    "red": ((-6, 4), (0.82, 1.0), (0.70, 0.95)),
    "orange": ((25, 33), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((51, 58), (0.80, 1.0), (0.90, 1.0)),
    "green": ((105, 140), (0.65, 1.0), (0.45, 0.80)),
    "blue": ((210, 235), (0.75, 1.0), (0.60, 0.95)),
    "purple": ((272, 290), (0.60, 0.90), (0.50, 0.80)),
}


MIN_SIDE, MAX_SIDE = 112, 336  # pixels
MIN_GAP = 0.025  # units between the circles around two objects, and to the border
MIN_X_DISTANCE = 0.12  # units between two centers, so that "left to right" has one reading
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Style:
    """How difficult scenes are, by the least and the most of what is drawn.

    ``counts`` is the number of objects, ``radii`` are in units, and ``noise`` is the standard deviation of what is
    added to each value of a pixel, from 0 to 255.
    """

    counts: tuple[int, int]
    radii: tuple[float, float]
    noise: tuple[float, float]


PLAIN = Style(counts=(1, 4), radii=(0.11, 0.17), noise=(0, 9))  # what the models were trained with
HARD = Style(counts=(3, 4), radii=(0.085, 0.115), noise=(6, 18))  # what they find difficult, and people easy


@dataclass(frozen=True)
class SceneObject:
    """One shape.

    ``x`` and ``y`` are its center and ``radius`` that of the circle around it, in pixels. ``rotation`` is in degrees,
    ``rgb`` from 0 to 255.
    """

    color: str
    shape: str
    x: float
    y: float
    radius: float
    rotation: float
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Return for example "red circle"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Layout:
    """Everything about a scene except its pixels. The objects are in order from left to right; sizes are in pixels."""

    seed: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]
    style: Style = PLAIN

    @property
    def unit(self) -> int:
        """Return the longer side in pixels."""
        return max(self.width, self.height)


def make_layout(seed: int, style: Style = PLAIN) -> Layout:
    """Return a layout. The same seed always gives the same layout of a style."""
    rng = random.Random(f"layout {seed}")
    side = rng.randint(MIN_SIDE, MAX_SIDE)
    short = side if rng.random() < 0.7 else round(side * rng.uniform(0.75, 1.0))
    width, height = rng.choice(((side, short), (short, side)))
    count = rng.randint(*style.counts)
    kinds = _pick_kinds(rng, count=count)
    places = None
    while places is None:
        places = _pick_places(rng, count=count, width=width, height=height, radii=style.radii)
    objects = [
        SceneObject(color, shape, x, y, radius, rng.uniform(-12, 12), _pick_rgb(rng, color=color))
        for (color, shape), (x, y, radius) in zip(kinds, places, strict=True)
    ]
    return Layout(seed, width, height, tuple(sorted(objects, key=lambda item: item.x)), style)


def _pick_kinds(rng: random.Random, *, count: int) -> list[tuple[str, str]]:
    """Return distinct (color, shape) pairs. Colors and shapes often repeat, so that a count is not always "one"."""
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


def _pick_places(
    rng: random.Random, *, count: int, width: int, height: int, radii: tuple[float, float]
) -> list[tuple[float, float, float]] | None:
    """Return (x, y, radius) in pixels for each object, or None where this try found no room for one of them."""
    unit = max(width, height)
    smallest, largest = radii
    places: list[tuple[float, float, float]] = []
    for _ in range(count):
        for _ in range(30):
            radius = rng.uniform(smallest, largest * (1.5 if count == 1 else 1.0)) * unit
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
    """Return an RGB value from 0 to 255 in the ranges of a color."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in COLORS[color])
    red, green, blue = colorsys.hsv_to_rgb((hue / 360) % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(layout: Layout) -> Image.Image:
    """Return the image of a layout, in RGB: a dull background, antialiased shapes, and noise."""
    rng = np.random.default_rng([layout.seed, 1])
    image = Image.fromarray(_background(rng, width=layout.width, height=layout.height))
    for item in layout.objects:
        mask, corner = _shape_mask(item)
        image.paste(item.rgb, corner, mask)
    pixels = np.asarray(image, dtype=np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(*layout.style.noise))
    return Image.fromarray(np.clip(pixels + noise + np.float32(0.5), 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, *, width: int, height: int) -> np.ndarray:
    """Return uint8 [height, width, 3] with one dull color, or with a gradient between two of them in any direction."""
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
    """Return a mask that covers one object, and the pixel (x, y) where the mask's top left corner goes."""
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
    """Return the points turned around the origin."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in points]


def _on_circle(count: int, *, start: float, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
    """Return ``count`` points around the origin, the first at ``start`` degrees from the x axis.

    They lie in turn on circles of the given radii.
    """
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


# Outlines within the unit circle. The y axis points down.
OUTLINES = {
    "circle": _on_circle(64, start=0),
    "square": _on_circle(4, start=45),
    "triangle": _on_circle(3, start=-90),
    "star": _on_circle(10, start=-90, radii=(1.0, 0.42)),
}
