"""What a program computes, to the last bit. This module imports little, as a process that only runs a program needs."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from llava_runner.program import Program

LENGTHS = (9, 1, 3)  # a prefill, a token, and a few more


def outputs(program: Path) -> list[np.ndarray]:
    """Return what ``outputs_of`` returns, from a process of its own.

    The last bit of a float sum may depend on where in memory its numbers are. In a new process they are at the same
    places for any program.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(outputs_of, program).result()


def outputs_of(path: Path) -> list[np.ndarray]:
    """Return image features, embedded tokens, and the logits of calls that read what earlier ones cached."""
    program = Program.open(path)
    sample = torch.load(path.with_name("image.pt")).numpy()
    small = np.random.default_rng(0).integers(0, 256, (3, 31, 44), dtype=np.uint8)
    found = [program.encode_image(image) for image in (sample, small)]
    rows = torch.randn(1, sum(LENGTHS), program.card.hidden_size, generator=torch.Generator().manual_seed(0))
    found.append(program.embed([1, 5, 40]))
    position = 0
    for length in LENGTHS:
        found.append(program.decode(rows[:, position : position + length], position=position))
        position += length
    return [tensor.numpy() for tensor in found]
