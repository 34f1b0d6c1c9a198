"""The ways in which Pillow resamples, for the few sides that are resized without Pillow.

Source: Resample.c of Pillow, and for "nearest" its Geometry.c. The arithmetic is theirs, so the rounding is, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

PRECISION_BITS = 32 - 8 - 2  # after the point of Pillow's weights
# 0.54 and 0.46 in single precision, as Pillow's source has them.
HAMMING_CONSTANTS = (float(np.float32(0.54)), float(np.float32(0.46)))


def weights(resample: str, out: int, *, total: int, size: int) -> tuple[int, np.ndarray]:
    """Return the weights of which sample ``out`` is made when ``total`` samples become ``size``, and the first one.

    They are whole numbers, with ``PRECISION_BITS`` bits after the point, in float64.
    """
    scale = total / size
    if resample == "nearest":
        # Pillow adds up the positions one after the other.
        steps = np.full(out + 1, scale)
        steps[0] = scale * 0.5
        return min(int(np.add.accumulate(steps)[-1]), total - 1), np.array([float(1 << PRECISION_BITS)])
    width, kernel = KERNELS[resample]
    stretch = max(scale, 1.0)
    center = (out + 0.5) * scale
    first = max(int(center - width * stretch + 0.5), 0)
    end = min(int(center + width * stretch + 0.5), total)
    found = np.array([kernel((index - center + 0.5) * (1.0 / stretch)) for index in range(first, end)])
    whole = np.add.accumulate(found)[-1]  # in order, as in C; sum() adds in pairs
    scaled = (found / whole if whole != 0 else found) * (1 << PRECISION_BITS)
    return first, np.trunc(np.where(scaled < 0, scaled - 0.5, scaled + 0.5))


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _bilinear(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0.0 or x >= 1.0:
        return 1.0 if x == 0.0 else 0.0
    x *= math.pi
    return math.sin(x) / x * (HAMMING_CONSTANTS[0] + HAMMING_CONSTANTS[1] * math.cos(x))


def _bicubic(x: float) -> float:
    """Return the kernel with a = -0.5 (Keys, 1981)."""
    x = abs(x)
    if x < 1.0:
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x


# Half the width of each kernel, in samples, and the kernel.
KERNELS: dict[str, tuple[float, Callable[[float], float]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _bilinear),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
