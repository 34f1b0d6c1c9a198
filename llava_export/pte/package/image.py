"""The sample image of a package: a tensor for runners that take one, and an image file for people."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import torch
from PIL import Image

from llava_runner import contract
from llava_runner.image import fit, load_image


def write_image(source: Path, folder: Path, *, image_size: int) -> None:
    """Write ``image.pt`` and ``image.png`` to ``folder``.

    ``image.pt`` is uint8 ``[3, H, W]``, resized to fit into the model's square with its aspect ratio kept.
    ``image.png`` is a copy of ``source``.
    """
    image = load_image(source)
    assert isinstance(image, Image.Image)  # the sample is no tensor file
    tensor = torch.from_numpy(fit(image, image_size=image_size))
    content = io.BytesIO()  # torch.save's own errors about the disk are not OSErrors
    torch.save(tensor, content)
    (folder / contract.IMAGE_TENSOR).write_bytes(content.getvalue())
    shutil.copyfile(source, folder / contract.IMAGE_FILE)
