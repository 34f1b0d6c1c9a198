"""Projectors: from the vision tower's features to rows that the decoder reads like embedded tokens.

Shapes: N patches, S a side of their square grid (N = S * S), C the decoder's hidden size.

All keep the features as rows of channels, ``[1, N, C]``, which in memory is the layout that XNNPACK's convolutions work
in, channels last. So norms and products over channels need no rearranging, and of the two permutations that a
convolution is written with here ``targets.transposes`` leaves none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_export.config import ProjectorConfig
from llava_export.models.layers import ACTIVATIONS, LayerNorm

NORM_EPS = 1e-5  # torch's default, with which both LDPs were trained


class MlpProjector(nn.Module):
    """LLaVA-1.5's: two linears with an activation between."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.in_features, config.out_features, bias=config.bias)
        self.linear_2 = nn.Linear(config.out_features, config.out_features, bias=config.bias)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, features_1ND: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(features_1ND)))


class DepthwiseConv(nn.Conv2d):
    """3x3, each channel by itself, over a grid of rows; zeros around it."""

    def __init__(self, channels: int, *, stride: int, bias: bool) -> None:
        super().__init__(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=bias)

    def forward(self, rows_1NC: Tensor) -> Tensor:
        return _rows(super().forward(_grid(rows_1NC)))


class SqueezeExcitation(nn.Module):
    """Scales each channel by what the means of all channels say of it (Hu et al., 2017)."""

    def __init__(self, channels: int, *, num_rows: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 4)
        self.fc2 = nn.Linear(channels // 4, channels)
        # As in the norms, the mean is a product, which XNNPACK has; on the CPU, as no checkpoint has this constant.
        self.register_buffer("averager", torch.full((1, 1, num_rows), 1.0 / num_rows, device="cpu"), persistent=False)

    averager: Tensor

    def forward(self, rows_1NC: Tensor) -> Tensor:
        mean_11C = torch.bmm(self.averager, rows_1NC)
        scale_11C = self.fc2(F.relu(self.fc1(mean_11C)))
        # The hard sigmoid; torch's own would not stay within XNNPACK.
        return rows_1NC * F.hardtanh(scale_11C * (1 / 6) + 0.5, 0.0, 1.0)


class InvertedResidual(nn.Module):
    """MobileNetV3's block (Howard et al., 2019) without its expansion; with stride 1 it adds its input."""

    def __init__(self, channels: int, *, side: int, stride: int) -> None:
        super().__init__()
        self.has_skip = stride == 1
        self.depthwise = DepthwiseConv(channels, stride=stride, bias=False)
        self.depthwise_norm = LayerNorm(channels, eps=NORM_EPS)
        self.squeeze_excitation = SqueezeExcitation(channels, num_rows=(side // stride) ** 2)
        self.pointwise = nn.Linear(channels, channels, bias=False)
        self.pointwise_norm = LayerNorm(channels, eps=NORM_EPS)

    def forward(self, rows_1NC: Tensor) -> Tensor:
        y = self.squeeze_excitation(F.hardswish(self.depthwise_norm(self.depthwise(rows_1NC))))
        y = self.pointwise_norm(self.pointwise(y))
        return rows_1NC + y if self.has_skip else y


class LdpProjector(nn.Module):
    """MobileVLM's lightweight downsample projector: a quarter of the rows (Chu et al., 2023, section 3.4)."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.mlp = MlpProjector(config)
        self.blocks = nn.Sequential(
            *(InvertedResidual(config.out_features, side=config.grid_side, stride=stride) for stride in (1, 2))
        )

    def forward(self, features_1ND: Tensor) -> Tensor:
        """``[1, N, in_features]`` to ``[1, N / 4, C]``."""
        return self.blocks(self.mlp(features_1ND))


class LdpV2Projector(nn.Module):
    """MobileVLM V2's: means of two by two rows, and where they lie (Chu et al., 2024, section 3.2).

    A mean of linear results is the linear's result for the mean, so the means are taken before the second linear, which
    then has a quarter of the work.
    """

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.mlp = MlpProjector(config)
        self.position = DepthwiseConv(config.out_features, stride=1, bias=True)

    def forward(self, features_1ND: Tensor) -> Tensor:
        """``[1, N, in_features]`` to ``[1, N / 4, C]``."""
        hidden_1NC = self.mlp.activation(self.mlp.linear_1(features_1ND))
        rows = self.mlp.linear_2(_rows(F.avg_pool2d(_grid(hidden_1NC), 2)))
        return rows + self.position(rows)


PROJECTORS: dict[str, type[nn.Module]] = {"mlp": MlpProjector, "ldp": LdpProjector, "ldpv2": LdpV2Projector}


def build_projector(config: ProjectorConfig) -> nn.Module:
    return PROJECTORS[config.type](config)


def _grid(rows_1NC: Tensor) -> Tensor:
    """To ``[1, C, S, S]``, the shape that convolutions are called with."""
    side = round(rows_1NC.shape[1] ** 0.5)
    return rows_1NC.reshape(1, side, side, -1).permute(0, 3, 1, 2)


def _rows(grid_1CSS: Tensor) -> Tensor:
    return grid_1CSS.permute(0, 2, 3, 1).reshape(1, -1, grid_1CSS.shape[1])
