"""Samples to calibrate with, one a line of JSON, for the fuzzer of Python's parsers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from torch import Tensor, zeros

from llava_export.builtin import CHECKPOINTS, SAMPLE_IMAGE
from llava_export.calibration.data import calibration_rows
from llava_export.calibration.samples import open_samples
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt

LINES = [
    json.dumps({"image": "a.png", "question": "What is it?", "answer": "A circle."}).encode(),
    json.dumps({"question": "Who?", "answers": ["a", "b", "b"]}).encode(),
]


def prepare(folder: Path) -> None:
    """Add the image that the lines name."""
    (folder / "a.png").symlink_to(SAMPLE_IMAGE)


def read(path: Path) -> None:
    """Read a file as samples, and tokenize those that have no image, whose encoding would take most of the time."""
    samples = [sample for sample in open_samples(path) if not sample.image]
    if samples:
        checkpoint = _checkpoint()
        calibration_rows(checkpoint, samples, prompt=find_prompt(checkpoint), max_len=99, limit=9, embed=_embed)


def _embed(sequences: list[Tensor]) -> list[Tensor]:
    return [zeros(1, len(ids), 1) for ids in sequences]


@cache
def _checkpoint() -> Checkpoint:
    return open_checkpoint(str(CHECKPOINTS["tiny-llava"]))
