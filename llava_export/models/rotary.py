"""The tables of rotary position embedding (Su et al., 2021), scaled for longer contexts where the model's are.

Shapes: C positions, e half of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llava_export.config import Llama3Scaling, TextConfig


def rotary_tables(config: TextConfig, *, length: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine ``float32 [length, e]`` of position times frequency."""
    with torch.device("cpu"):
        frequencies_e = _frequencies(config, torch.float32)
        if config.rope_scaling is not None:
            frequencies_e = frequencies_e / frequency_divisors(config)
        angles_Ce = torch.outer(torch.arange(length, dtype=torch.float32), frequencies_e)
    return angles_Ce.cos(), angles_Ce.sin()


def frequency_divisors(config: TextConfig) -> Tensor:
    """Return what the frequencies are divided by, ``float32 [e]``: 1 where nothing is scaled.

    With ``linear`` (position interpolation, Chen et al., 2023, arXiv:2306.15595) that is the factor for all of them.

    With ``llama3`` (Llama 3.1; its authors describe it by code, ``apply_scaling`` in meta-llama/llama-models) a
    frequency stays as it is if it makes more than ``high_freq_factor`` turns in the original context, and is divided by
    the factor if it makes fewer than ``low_freq_factor``. Between these, what it is multiplied with goes from one
    to the other in a straight line over the number of turns.
    """
    scaling = config.rope_scaling
    with torch.device("cpu"):
        if scaling is None:
            return torch.ones(config.head_dim // 2)
        if not isinstance(scaling, Llama3Scaling):
            return torch.full((config.head_dim // 2,), scaling.factor)
        turns_e = scaling.original_max_position_embeddings * _frequencies(config, torch.float64) / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept_e = ((turns_e - low) / (high - low)).clamp(0, 1)
        return (1 / (kept_e + (1 - kept_e) / scaling.factor)).to(torch.float32)


def _frequencies(config: TextConfig, dtype: torch.dtype) -> Tensor:
    """Return the unscaled frequencies ``[e]`` of the pairs of a head, in radians a position."""
    return 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=dtype) / config.head_dim)
