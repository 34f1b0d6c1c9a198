"""MobileVLM's projectors as its checkpoints name their parts, for training: plain modules, any batch size.

Shapes: B images, P patches, C text hidden size, S side of the patch grid.
"""

from __future__ import annotations

from torch import Tensor, nn


class _Mlp(nn.Sequential):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, out_features), nn.GELU(), nn.Linear(out_features, out_features))


class _ChannelNorm(nn.LayerNorm):
    def forward(self, x_BCSS: Tensor) -> Tensor:
        return super().forward(x_BCSS.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        mean_BC11 = x_BCSS.mean((2, 3), keepdim=True)
        return x_BCSS * nn.functional.hardsigmoid(self.fc2(self.fc1(mean_BC11).relu()))


class _InvertedResidual(nn.Module):
    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.has_skip = stride == 1
        depthwise = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, _ChannelNorm(channels), nn.Hardswish()),
            _SqueezeExcitation(channels),
            nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), _ChannelNorm(channels)),
        )

    def forward(self, x_BCSS: Tensor) -> Tensor:
        y_BCSS = self.block(x_BCSS)
        return x_BCSS + y_BCSS if self.has_skip else y_BCSS


class Ldp(nn.Module):
    """The lightweight downsample projector of MobileVLM (Chu et al., 2023, section 3.4)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "mlp": nn.Sequential(nn.Identity(), *_Mlp(in_features, out_features)),
                "mb_block": nn.Sequential(
                    nn.Identity(), _InvertedResidual(out_features, stride=1), _InvertedResidual(out_features, stride=2)
                ),
            }
        )

    @property
    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        return self.model["mlp"][1], self.model["mlp"][3]

    def forward(self, features_BPD: Tensor) -> Tensor:
        return _from_grid(self.model["mb_block"](_to_grid(self.model["mlp"](features_BPD))))


class LdpV2(nn.Module):
    """The projector of MobileVLM V2 (Chu et al., 2024, section 3.2)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"mlp": _Mlp(in_features, out_features)})
        self.peg = nn.ModuleDict(
            {"peg": nn.Sequential(nn.Conv2d(out_features, out_features, 3, padding=1, groups=out_features))}
        )

    @property
    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        return self.mlp["mlp"][0], self.mlp["mlp"][2]

    def forward(self, features_BPD: Tensor) -> Tensor:
        x_BCSS = nn.functional.avg_pool2d(_to_grid(self.mlp["mlp"](features_BPD)), 2)
        return _from_grid(x_BCSS + self.peg["peg"](x_BCSS))


PROJECTORS = {"ldpnet": Ldp, "ldpnetv2": LdpV2}


def _to_grid(x_BPC: Tensor) -> Tensor:
    side = round(x_BPC.shape[1] ** 0.5)
    return x_BPC.transpose(1, 2).unflatten(2, (side, side))


def _from_grid(x_BCSS: Tensor) -> Tensor:
    return x_BCSS.flatten(2).transpose(1, 2)
