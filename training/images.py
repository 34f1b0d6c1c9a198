"""Images in the form that the model reads, and the training set of them on disk."""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training import scenes

IMAGE_SIZE, PATCH_SIZE = 112, 14
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PAD_COLOR = tuple(int(mean * 255) for mean in CLIP_MEAN)


def preprocess(image: Image.Image) -> np.ndarray:
    """Pad an image to a square with CLIP's mean color and resize it. Return uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), PAD_COLOR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def normalize(pixels: np.ndarray) -> Tensor:
    """Return pixels uint8 [B, H, W, 3] as float32 [B, 3, H, W], normalized by CLIP's mean and standard deviation."""
    scaled = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def render_training_scenes(count: int, *, workers: int) -> np.ndarray:
    """Render the scenes of the seeds below ``count``. Return uint8 [count, IMAGE_SIZE, IMAGE_SIZE, 3], memory-mapped.

    The file stays in the system's folder for temporary files, and the next run maps it. Its name contains a digest of
    the code that draws, so that changed code renders anew.
    """
    code = Path(scenes.__file__).read_bytes() + Path(__file__).read_bytes()
    path = Path(tempfile.gettempdir()) / f"tiny_llava_scenes_{count}_{hashlib.sha256(code).hexdigest()[:12]}.bin"
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    if not path.exists():
        partial_path = path.with_suffix(".partial")
        np.memmap(partial_path, np.uint8, "w+", shape=shape).flush()
        bounds = np.linspace(0, count, workers + 1).astype(int)
        jobs = [
            multiprocessing.Process(
                target=_render_into, args=(start,), kwargs={"stop": stop, "path": partial_path, "count": count}
            )
            for start, stop in pairwise(bounds)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
            if job.exitcode:
                raise RuntimeError(f"rendering scenes into {partial_path} failed; see the traceback above")
        partial_path.rename(path)
    return np.memmap(path, np.uint8, "r", shape=shape)


def _render_into(start: int, *, stop: int, path: Path, count: int) -> None:
    """Render the scenes of the seeds from ``start`` to ``stop`` into the file of ``count`` scenes."""
    pixels = np.memmap(path, np.uint8, "r+", shape=(count, IMAGE_SIZE, IMAGE_SIZE, 3))
    for seed in range(start, stop):
        pixels[seed] = preprocess(scenes.draw(scenes.make_layout(seed)))
    pixels.flush()
