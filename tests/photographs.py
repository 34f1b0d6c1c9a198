"""Real photographs, from libraries that are installed anyway."""

from __future__ import annotations

from functools import cache

from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_images


@cache
def photographs() -> tuple[Image.Image, ...]:
    """Return a wide one, another, and a tall one, in RGB."""
    wide = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return (*wide, Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))).convert("RGB"))
