"""Projectors: from the vision tower's features to rows that the decoder reads like embedded tokens."""

from __future__ import annotations

from torch import Tensor, nn

from llava_export.config import ProjectorConfig
from llava_export.models.layers import ACTIVATIONS


class MlpProjector(nn.Module):
    """LLaVA-1.5's: two linears with an activation between."""

    def __init__(self, *, in_features: int, out_features: int, hidden_act: str, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features, bias=bias)
        self.linear_2 = nn.Linear(out_features, out_features, bias=bias)
        self.activation = ACTIVATIONS[hidden_act]

    def forward(self, features_BND: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(features_BND)))


PROJECTORS = {"mlp": MlpProjector}


def build_projector(config: ProjectorConfig) -> nn.Module:
    return PROJECTORS[config.type](
        in_features=config.in_features,
        out_features=config.out_features,
        hidden_act=config.hidden_act,
        bias=config.bias,
    )
