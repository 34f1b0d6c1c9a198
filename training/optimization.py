"""What both stages of training share: the optimizer, its schedule, and batches of seeds."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn


def make_optimizer(groups: list[tuple[list[nn.Parameter], float]], *, steps: int, warmup: int):
    """Return AdamW over (parameters, learning rate) groups, with a linear warmup and a cosine to a hundredth."""
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in groups], betas=(0.9, 0.98), weight_decay=0.02
    )

    def factor(step: int) -> float:
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def batches_of(count: int, *, size: int, steps: int, seed: int):
    """Yield `steps` arrays of `size` seeds below `count`: each epoch in a new order."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(count)
        taken, order = order[:size], order[size:]
        yield taken


def update(parameters: list[nn.Parameter], optimizer, schedule) -> None:
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
