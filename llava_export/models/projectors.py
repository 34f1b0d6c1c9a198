"""Projectors: from the vision tower's features to rows that the decoder reads like embedded tokens.

Shapes: N patches, S a side of their square grid (N = S * S), C the decoder's hidden size.

To add a projector, write a class here, add it to ``PROJECTORS``, and map its published keys in a family.

All projectors keep the features as rows of channels, ``[1, N, C]``. In memory that is channels last, the layout in
which XNNPACK computes convolutions. So norms and products over channels need no rearranging. A convolution is written
with two permutations here, and ``pte.transposes`` removes both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_export.config import ProjectorConfig
from llava_export.models.layers import ACTIVATIONS, LayerNorm

NORM_EPS = 1e-5  # torch's default, with which LDP and LDPv2 were trained


class MlpProjector(nn.Module):
    """LLaVA-1.5's projector (Liu et al., 2023): two linears with an activation between them."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.in_features, config.out_features, bias=config.bias)
        self.linear_2 = nn.Linear(config.out_features, config.out_features, bias=config.bias)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, features_1ND: Tensor) -> Tensor:
        """Return rows ``[1, N, C]`` for features ``[1, N, in_features]``."""
        return self.linear_2(self.activation(self.linear_1(features_1ND)))


class LinearProjector(nn.Module):
    """LLaVA-1's projector (Liu et al., 2023): one linear."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.in_features, config.out_features, bias=config.bias)

    def forward(self, features_1ND: Tensor) -> Tensor:
        """Return rows ``[1, N, C]`` for features ``[1, N, in_features]``."""
        return self.linear(features_1ND)


class DepthwiseConv(nn.Conv2d):
    """A 3x3 convolution of each channel by itself, over rows that form a grid with zeros around it."""

    def __init__(self, channels: int, *, stride: int, bias: bool) -> None:
        super().__init__(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=bias)

    def forward(self, rows_1NC: Tensor) -> Tensor:
        """Return rows ``[1, N / stride / stride, C]`` for rows ``[1, N, C]``."""
        return _rows(super().forward(_grid(rows_1NC)))


class SqueezeExcitation(nn.Module):
    """A factor for each channel, computed from the means of all channels (Hu et al., 2017)."""

    def __init__(self, channels: int, *, num_rows: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 4)
        self.fc2 = nn.Linear(channels // 4, channels)
        # As in the norms, the mean is a product, which XNNPACK has. It is on the CPU, because no checkpoint has it.
        self.register_buffer("averager", torch.full((1, 1, num_rows), 1.0 / num_rows, device="cpu"), persistent=False)

    averager: Tensor

    def forward(self, rows_1NC: Tensor) -> Tensor:
        """Return rows ``[1, N, C]``, scaled, for rows ``[1, N, C]``."""
        mean_11C = torch.bmm(self.averager, rows_1NC)
        scale_11C = self.fc2(F.relu(self.fc1(mean_11C)))
        # This is the hard sigmoid. XNNPACK does not have torch's own operator.
        return rows_1NC * F.hardtanh(scale_11C * (1 / 6) + 0.5, 0.0, 1.0)


class InvertedResidual(nn.Module):
    """MobileNetV3's block (Howard et al., 2019) without its expansion. With stride 1 it adds its input."""

    def __init__(self, channels: int, *, side: int, stride: int) -> None:
        super().__init__()
        self.has_skip = stride == 1
        self.depthwise = DepthwiseConv(channels, stride=stride, bias=False)
        self.depthwise_norm = LayerNorm(channels, eps=NORM_EPS)
        self.squeeze_excitation = SqueezeExcitation(channels, num_rows=(side // stride) ** 2)
        self.pointwise = nn.Linear(channels, channels, bias=False)
        self.pointwise_norm = LayerNorm(channels, eps=NORM_EPS)

    def forward(self, rows_1NC: Tensor) -> Tensor:
        """Return rows ``[1, N / stride / stride, C]`` for rows ``[1, N, C]``."""
        y = self.squeeze_excitation(F.hardswish(self.depthwise_norm(self.depthwise(rows_1NC))))
        y = self.pointwise_norm(self.pointwise(y))
        return rows_1NC + y if self.has_skip else y


class LdpProjector(nn.Module):
    """MobileVLM's lightweight downsample projector (Chu et al., 2023, section 3.4). It makes a quarter of the rows."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.mlp = MlpProjector(config)
        self.blocks = nn.Sequential(
            *(InvertedResidual(config.out_features, side=config.grid_side, stride=stride) for stride in (1, 2))
        )

    def forward(self, features_1ND: Tensor) -> Tensor:
        """Return rows ``[1, N / 4, C]`` for features ``[1, N, in_features]``."""
        return self.blocks(self.mlp(features_1ND))


class LdpV2Projector(nn.Module):
    """MobileVLM V2's projector: means of two by two rows, and their positions (Chu et al., 2024, section 3.2).

    Published code applies the second linear first and then computes means. A mean of a linear's results is its result
    for the mean, so here the means come first, and the linear has a quarter of the work.
    """

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.mlp = MlpProjector(config)
        self.position = DepthwiseConv(config.out_features, stride=1, bias=True)

    def forward(self, features_1ND: Tensor) -> Tensor:
        """Return rows ``[1, N / 4, C]`` for features ``[1, N, in_features]``."""
        hidden_1NC = self.mlp.activation(self.mlp.linear_1(features_1ND))
        rows = self.mlp.linear_2(_rows(F.avg_pool2d(_grid(hidden_1NC), 2)))
        return rows + self.position(rows)


# Classes by the value of ``ProjectorConfig.type``.
PROJECTORS: dict[str, type[nn.Module]] = {
    "linear": LinearProjector,
    "mlp": MlpProjector,
    "ldp": LdpProjector,
    "ldpv2": LdpV2Projector,
}


def build_projector(config: ProjectorConfig) -> nn.Module:
    """Return a projector of the config's type and sizes."""
    return PROJECTORS[config.type](config)


def _grid(rows_1NC: Tensor) -> Tensor:
    """Return rows ``[1, N, C]`` as a grid ``[1, C, S, S]``, the shape that convolutions are called with."""
    side = round(rows_1NC.shape[1] ** 0.5)
    return rows_1NC.reshape(1, side, side, -1).permute(0, 3, 1, 2)


def _rows(grid_1CSS: Tensor) -> Tensor:
    """Return a grid ``[1, C, S, S]`` as rows ``[1, N, C]``."""
    return grid_1CSS.permute(0, 2, 3, 1).reshape(1, -1, grid_1CSS.shape[1])
