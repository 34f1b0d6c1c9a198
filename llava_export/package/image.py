"""The sample image of a package, as a tensor for runners that take one and as a picture for people."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from PIL import Image

from llava_runner import contract
from llava_runner.image import fit


def write_image(source: Path, folder: Path, *, image_size: int) -> None:
    """``image.pt``, uint8 ``[3, H, W]`` fitted into the model's square with its aspect kept, and ``image.png``."""
    with Image.open(source) as picture:
        torch.save(torch.from_numpy(fit(picture, image_size=image_size)), folder / contract.IMAGE_TENSOR)
    shutil.copyfile(source, folder / contract.IMAGE_PICTURE)
