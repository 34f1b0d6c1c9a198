"""The sample image of a package: a tensor for runners that take one, and an image file for people."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import torch
from PIL import Image

from llava_export.checkpoint.images import Images
from llava_runner import contract
from llava_runner.image import fit, load_image


def write_image(source: Path, folder: Path, *, images: Images) -> None:
    """Write ``image.pt`` and ``image.png`` to ``folder``.

    ``image.pt`` is uint8 ``[3, H, W]``. Where the model pads images, it is resized to fit into the model's square with
    its aspect ratio kept, since the vision encoder pads it. Otherwise it is the square that a runner would make.
    ``image.png`` is a copy of ``source``.
    """
    image = load_image(source)
    assert isinstance(image, Image.Image)  # the sample is no tensor file
    if images.aspect_ratio == "pad" and images.resize == images.size:
        pixels = fit(image, image_size=images.size, image_resample=images.resample)
    else:
        pixels = images.prepared(image)
    tensor = torch.from_numpy(pixels)
    content = io.BytesIO()  # torch.save's own errors about the disk are not OSErrors
    torch.save(tensor, content)
    (folder / contract.IMAGE_TENSOR).write_bytes(content.getvalue())
    shutil.copyfile(source, folder / contract.IMAGE_FILE)
