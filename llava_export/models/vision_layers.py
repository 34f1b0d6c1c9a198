"""What vision towers have in common: layers of attention and MLP, and the choice of the features.

Shapes: B images (always 1), S a side of the image in pixels, N rows, D hidden size, H heads, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llava_export.config import VisionConfig
from llava_export.models.layers import ACTIVATIONS, FusedLinear, LayerNorm


class TowerAttention(nn.Module):
    """Attention of every row to every other.

    It is written out in single operations, because XNNPACK has no fused attention.
    """

    def __init__(self, hidden_size: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        parts = dict.fromkeys(("q_proj", "k_proj", "v_proj"), hidden_size)
        self.qkv_proj = FusedLinear(hidden_size, parts=parts, bias=True)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return rows ``[B, N, D]`` for rows ``[B, N, D]``."""
        size = x_BND.shape[-1]
        qkv = self.qkv_proj(x_BND)
        # These are slices and not a split: where shapes are static, XNNPACK has slices.
        q_HNE = self._heads(qkv[..., :size]) * self.head_dim**-0.5
        k_HNE = self._heads(qkv[..., size : 2 * size])
        v_HNE = self._heads(qkv[..., 2 * size :])
        weights_HNN = torch.softmax(torch.bmm(q_HNE, k_HNE.transpose(1, 2)), dim=-1)
        y_HNE = torch.bmm(weights_HNN, v_HNE)
        return self.out_proj(y_HNE.transpose(0, 1).reshape(x_BND.shape))

    def _heads(self, x_1ND: Tensor) -> Tensor:
        """Return rows ``[1, N, D]`` as ``[H, N, E]``."""
        return x_1ND.reshape(-1, self.num_heads, self.head_dim).transpose(0, 1)


class TowerMlp(nn.Module):
    """Two linears with an activation between them."""

    def __init__(self, hidden_size: int, *, intermediate_size: int, hidden_act: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.activation = ACTIVATIONS[hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Return rows ``[B, N, D]`` for rows ``[B, N, D]``."""
        return self.fc2(self.activation(self.fc1(x)))


class TowerLayer(nn.Module):
    """One layer: attention and MLP, each with a norm before it and its input added after it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = TowerAttention(config.hidden_size, num_heads=config.num_attention_heads)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = TowerMlp(
            config.hidden_size, intermediate_size=config.intermediate_size, hidden_act=config.hidden_act
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return rows ``[B, N, D]`` for rows ``[B, N, D]``."""
        x_BND = x_BND + self.self_attn(self.layer_norm1(x_BND))
        return x_BND + self.mlp(self.layer_norm2(x_BND))


class VisionTower(nn.Module):
    """A vision transformer without the layers that no feature needs.

    ``stem`` has the names of the children that run before the layers, in this order: from normalized pixels to rows.
    No norm follows the layers: LLaVA reads their outputs as they are, the last one's, too.
    """

    embeddings: Any  # of every tower, the first child of the stem

    def __init__(self, config: VisionConfig, **stem: nn.Module) -> None:
        super().__init__()
        self.feature_layers = config.feature_layers
        self.keep_first_row = config.keep_first_row
        self.stem = tuple(stem)
        for name, module in stem.items():
            self.add_module(name, module)
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(config.num_used_layers))

    def forward(self, pixel_values_B3SS: Tensor) -> Tensor:
        """Return features ``[1, num_features, feature_size]`` for normalized pixels ``[1, 3, S, S]``."""
        x = pixel_values_B3SS
        for name in self.stem:
            x = self.get_submodule(name)(x)
        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1]))
        return self.features(hidden_states)

    def features(self, hidden_states: list[Tensor]) -> Tensor:
        """Return features ``[1, num_features, feature_size]``.

        ``hidden_states`` are ``[1, N, D]`` each: the input of the first layer, then every layer's output. The chosen
        ones are concatenated along the last dimension. The first row is dropped unless the model reads it.
        """
        chosen = [hidden_states[index] for index in self.feature_layers]
        features_BND = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        return features_BND if self.keep_first_row else features_BND[:, 1:]
