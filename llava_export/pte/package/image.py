"""The sample image of a package, as a tensor for runners that take one and as a picture for people."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import torch
from PIL import Image

from llava_runner import contract
from llava_runner.image import fit, load_image


def write_image(source: Path, folder: Path, *, image_size: int) -> None:
    """``image.pt``, uint8 ``[3, H, W]`` fitted into the model's square with its aspect kept, and ``image.png``."""
    picture = load_image(source)
    assert isinstance(picture, Image.Image)  # the sample is no tensor file
    tensor = torch.from_numpy(fit(picture, image_size=image_size))
    content = io.BytesIO()  # torch.save's own errors about the disk are not OSErrors
    torch.save(tensor, content)
    (folder / contract.IMAGE_TENSOR).write_bytes(content.getvalue())
    shutil.copyfile(source, folder / contract.IMAGE_FILE)
