"""What callers may give as an image, and as the images of a turn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

ImageSource = (
    str | os.PathLike[Any] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | torch.Tensor
)
Images = ImageSource | Sequence[ImageSource]


def listed_images(images: Images | None) -> Sequence[ImageSource]:
    """Return the images of a turn as a list."""
    if images is None:
        return ()
    return images if isinstance(images, (list, tuple)) else (images,)  # type: ignore[return-value]
