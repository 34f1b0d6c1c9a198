"""What callers may give as an image, and as the images of a turn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image


class Tensor(Protocol):
    """A tensor of torch, which this package does not import for its name alone."""

    def detach(self) -> Any:
        """Return the tensor without its history."""
        ...


ImageSource = str | os.PathLike[Any] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Tensor
Images = ImageSource | Sequence[ImageSource]


def listed_images(images: Images | None) -> Sequence[ImageSource]:
    """Return the images of a turn as a list."""
    if images is None:
        return ()
    return images if isinstance(images, (list, tuple)) else (images,)  # type: ignore[return-value]
