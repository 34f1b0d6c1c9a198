"""MobileVLM's projectors for training: plain modules for any batch size, with the names of published checkpoints.

Shapes: B images, P patches, C text hidden size, S side of the patch grid.
"""

from __future__ import annotations

from torch import Tensor, nn


class _Mlp(nn.Sequential):
    """Two linears with a GELU between them."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, out_features), nn.GELU(), nn.Linear(out_features, out_features))


class _ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of [B, C, S, S]."""

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """Return the normalized values, [B, C, S, S]."""
        return super().forward(x_BCSS.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _SqueezeExcitation(nn.Module):
    """A factor for each channel, computed from the means of all channels (Hu et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """Return the values times the factors of their channels, [B, C, S, S]."""
        mean_BC11 = x_BCSS.mean((2, 3), keepdim=True)
        return x_BCSS * nn.functional.hardsigmoid(self.fc2(self.fc1(mean_BC11).relu()))


class _InvertedResidual(nn.Module):
    """A block of MobileNetV3 (Howard et al., 2019) without the expansion of channels."""

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
        """Return [B, C, S, S], or half of the side S with a stride of 2."""
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
        """Return the two linears."""
        return _linears(self.model["mlp"])

    @property
    def last_norm(self) -> nn.LayerNorm:
        """Return the norm that decides how large the rows are."""
        *_, last = (module for module in self.model["mb_block"].modules() if isinstance(module, nn.LayerNorm))
        return last

    def forward(self, features_BPD: Tensor) -> Tensor:
        """Return a quarter as many rows as patches, [B, P / 4, C]."""
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
        """Return the two linears."""
        return _linears(self.mlp["mlp"])

    def forward(self, features_BPD: Tensor) -> Tensor:
        """Return a quarter as many rows as patches, [B, P / 4, C]."""
        x_BCSS = nn.functional.avg_pool2d(_to_grid(self.mlp["mlp"](features_BPD)), 2)
        return _from_grid(x_BCSS + self.peg["peg"](x_BCSS))


Projector = Ldp | LdpV2
PROJECTORS: dict[str, type[Projector]] = {"ldpnet": Ldp, "ldpnetv2": LdpV2}  # by MobileVLM's names of them


def _linears(module: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """Return the two linears in a module."""
    first, second = (child for child in module.modules() if isinstance(child, nn.Linear))
    return first, second


def _to_grid(x_BPC: Tensor) -> Tensor:
    """Return rows of patches as a grid with channels first, [B, C, S, S]."""
    side = round(x_BPC.shape[1] ** 0.5)
    return x_BPC.transpose(1, 2).unflatten(2, (side, side))


def _from_grid(x_BCSS: Tensor) -> Tensor:
    """Return a grid with channels first as rows, [B, S * S, C]."""
    return x_BCSS.flatten(2).transpose(1, 2)
