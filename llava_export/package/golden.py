"""The golden record: what the float model saw and said, so that a program can be checked without the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from llava_export.reference import FloatReference
from llava_runner.errors import PackageError

MAX_TOKENS = 8


@dataclass(frozen=True)
class GoldenRecord:
    """One question about one picture.

    ``image`` uint8 ``[3, H, W]``; ``ids_before`` and ``ids_after`` int64, the prompt's tokens around it; ``features``
    float16 ``[num_image_tokens, hidden_size]``; ``tokens`` int64 ``[N]``, the greedy answer; ``logits`` float32
    ``[N, vocab_size]``: row i is what ``tokens[i]`` was chosen from.
    """

    image: Tensor
    ids_before: Tensor
    ids_after: Tensor
    features: Tensor
    tokens: Tensor
    logits: Tensor

    def to_bytes(self) -> bytes:
        """What the file holds."""
        return save({field.name: getattr(self, field.name).contiguous() for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> GoldenRecord:
        """Raises ``PackageError`` for a file that is missing, damaged or something else."""
        if not path.is_file():
            raise PackageError(f"{path} is missing: without the golden record nothing can be compared")
        try:
            tensors = load_file(path)
            return cls(**tensors)
        except (SafetensorError, TypeError) as error:
            raise PackageError(f"{path} is not a golden record, or damaged: {error}") from error


@dataclass(frozen=True)
class Question:
    """What the float model is asked: ``image`` uint8 ``[3, H, W]``, and the prompt's tokens around it."""

    image: np.ndarray
    ids_before: list[int]
    ids_after: list[int]


def record(
    reference: FloatReference, question: Question, *, eos_ids: tuple[int, ...], max_tokens: int = MAX_TOKENS
) -> GoldenRecord:
    """Ask the float model and let it answer greedily, up to ``max_tokens`` tokens or the end of the sequence."""
    image = torch.from_numpy(question.image)
    features = reference.encode_image(image)
    before, after = reference.embed(question.ids_before), reference.embed(question.ids_after)
    rows = torch.cat([before, features, after], dim=1)
    position, tokens, logits = 0, [], []
    while True:
        logits.append(reference.decode(rows, position))
        tokens.append(int(logits[-1].argmax()))
        if len(tokens) == max_tokens or tokens[-1] in eos_ids:
            break
        position += rows.shape[1]
        rows = reference.embed(tokens[-1:])
    return GoldenRecord(
        image=image,
        ids_before=torch.tensor(question.ids_before),
        ids_after=torch.tensor(question.ids_after),
        features=features[0].to(torch.float16),
        tokens=torch.tensor(tokens),
        logits=torch.stack(logits),
    )
