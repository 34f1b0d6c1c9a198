"""What both stages of training share: the optimizer, its schedule, and batches of seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def make_optimizer(
    groups: list[tuple[list[nn.Parameter], float]], *, steps: int, warmup: int
) -> tuple[Optimizer, LambdaLR]:
    """Return AdamW over groups of (parameters, peak learning rate), and the schedule of the rates.

    The rates rise linearly for ``warmup`` steps. Then they fall along a cosine to a hundredth of the peak.
    """
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in groups], betas=(0.9, 0.98), weight_decay=0.02
    )

    def factor(step: int) -> float:
        """Return the share of the peak rate at a step."""
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    return optimizer, LambdaLR(optimizer, factor)


def batches_of(count: int, *, size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield ``steps`` arrays of ``size`` seeds below ``count``. Each epoch has a new order."""
    rng = np.random.default_rng(seed)
    order: np.ndarray = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(count)
        taken, order = order[:size], order[size:]
        yield taken


def update(parameters: list[nn.Parameter], optimizer: Optimizer, schedule: LambdaLR) -> None:
    """Clip the gradients to a norm of 1 and change the parameters by one step."""
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
