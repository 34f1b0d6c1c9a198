"""A Llama decoder (Touvron et al., 2023) with a KV cache, for one sequence at a time.

Mistral, Qwen2 and Phi-3 are the same decoder. What differs is in ``TextConfig``: sizes and biases.

Shapes: T new positions, C positions in the cache, D hidden size, H query heads, K key/value heads, E head size, e half
of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_export.config import TextConfig
from llava_export.models.layers import FusedLinear, RmsNorm
from llava_export.models.rotary import rotary_tables


class CachedAttention(nn.Module):
    """Causal attention with a cache of earlier keys and values, in plain torch.

    This is the reference. An exporter passes a class with the same arguments to ``LlamaDecoder``.
    """

    def __init__(
        self,
        *,
        max_context_len: int,
        num_key_value_heads: int,
        head_dim: int,
        cache_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        shape = (1, max_context_len, num_key_value_heads, head_dim)
        self.register_buffer("k_cache", torch.zeros(shape, dtype=cache_dtype, device="cpu"), persistent=False)
        self.register_buffer("v_cache", torch.zeros(shape, dtype=cache_dtype, device="cpu"), persistent=False)

    k_cache: Tensor
    v_cache: Tensor

    def forward(self, q_1THE: Tensor, k_1TKE: Tensor, v_1TKE: Tensor, start: int) -> Tensor:
        """Return values ``[1, T, H, E]`` for queries, keys and values of T positions from ``start`` on.

        The keys and values are added to the cache.
        """
        end = start + q_1THE.shape[1]
        self.k_cache[:, start:end] = k_1TKE
        self.v_cache[:, start:end] = v_1TKE
        # Each new position sees the cache up to and including its own.
        visible_TC = torch.arange(end) <= torch.arange(start, end)[:, None]
        y_1HTE = F.scaled_dot_product_attention(
            q_1THE.transpose(1, 2),
            self.k_cache[:, :end].transpose(1, 2),
            self.v_cache[:, :end].transpose(1, 2),
            attn_mask=visible_TC,
            enable_gqa=True,
        )
        return y_1HTE.transpose(1, 2)


class QkvLinear(FusedLinear):
    """Queries, keys and values in one product, with rows in an order that suits rotary embedding.

    Rotation pairs element i of a head with element i + E/2. Here the first halves of all heads come before all second
    halves. So one split gives the rotation its operands, and no head has to be sliced, which XNNPACK cannot do while T
    is dynamic. The order of rows changes no value, quantized or not.
    """

    def __init__(
        self, in_features: int, *, num_heads: int, num_key_value_heads: int, head_dim: int, bias: bool
    ) -> None:
        q_rows, kv_rows = num_heads * head_dim, num_key_value_heads * head_dim
        super().__init__(in_features, parts={"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}, bias=bias)
        self.head_dim = head_dim
        self.splits = (q_rows // 2, q_rows // 2, kv_rows // 2, kv_rows // 2, kv_rows)

    def fuse(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the weights (or biases) of ``q_proj``, ``k_proj`` and ``v_proj`` as one ``[out_features, ...]``."""
        q, k, v = tensors
        return torch.cat([self._first_halves_first(q), self._first_halves_first(k), v])

    def _first_halves_first(self, rows: Tensor) -> Tensor:
        """Return the rows ``[heads * E, ...]`` with the first halves of all heads before all second halves."""
        halves = rows.unflatten(0, (-1, 2, self.head_dim // 2))
        return halves.transpose(0, 1).reshape(rows.shape)


class LlamaAttention(nn.Module):
    """Attention with rotary embedding. ``cached_attention`` holds the cache and computes the product."""

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        qkv_bias: bool,
        output_bias: bool,
        cached_attention: nn.Module,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv_proj = QkvLinear(
            hidden_size, num_heads=num_heads, num_key_value_heads=num_key_value_heads, head_dim=head_dim, bias=qkv_bias
        )
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=output_bias)
        self.cached_attention = cached_attention

    def forward(self, x_1TD: Tensor, cos_T1e: Tensor, sin_T1e: Tensor, start: int) -> Tensor:
        """Return rows ``[1, T, D]`` for rows ``[1, T, D]`` and the rotations ``[T, 1, e]`` of their positions."""
        return self.o_proj(self.attended(x_1TD, cos_T1e, sin_T1e, start))

    def attended(self, x_1TD: Tensor, cos_T1e: Tensor, sin_T1e: Tensor, start: int) -> Tensor:
        """Return the values ``[1, T, H * E]`` that the heads attend to: what ``o_proj`` reads."""
        q_first, q_second, k_first, k_second, v = self.qkv_proj(x_1TD).split(self.qkv_proj.splits, dim=-1)
        q_1THE = self._rotate(q_first, q_second, cos_T1e, sin_T1e)
        k_1TKE = self._rotate(k_first, k_second, cos_T1e, sin_T1e)
        # This reshape and the last one keep a symbolic T when they are lowered. So they stay outside XNNPACK, where
        # ExecuTorch makes aliases of them. Inside, each would be a delegate of its own that only copies.
        v_1TKE = v.unflatten(-1, (-1, self.head_dim))
        return self.cached_attention(q_1THE, k_1TKE, v_1TKE, start).flatten(2)

    def _rotate(self, first: Tensor, second: Tensor, cos_T1e: Tensor, sin_T1e: Tensor) -> Tensor:
        """Return heads ``[1, T, heads, E]``, rotated, for the halves of all heads, ``[1, T, heads * e]`` each.

        This is rotary position embedding (Su et al., 2021).
        """
        # T is given as -1: XNNPACK has reshapes with an inferred size, but none with a symbolic size.
        heads, half = first.shape[-1] // (self.head_dim // 2), self.head_dim // 2
        first, second = first.view(1, -1, heads, half), second.view(1, -1, heads, half)
        return torch.cat((first * cos_T1e - second * sin_T1e, second * cos_T1e + first * sin_T1e), dim=-1)


class LlamaMlp(nn.Module):
    """Llama's gated MLP, SwiGLU (Shazeer, 2020). Gate and up projection are one linear."""

    def __init__(self, hidden_size: int, *, intermediate_size: int, bias: bool) -> None:
        super().__init__()
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up_proj = FusedLinear(hidden_size, parts=parts, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return rows ``[1, T, D]`` for rows ``[1, T, D]``."""
        return self.down_proj(self.gated(x))

    def gated(self, x: Tensor) -> Tensor:
        """Return the rows ``[1, T, intermediate_size]`` that ``down_proj`` reads."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return F.silu(gate) * up


class LlamaLayer(nn.Module):
    """One layer: attention and MLP, each with a norm before it and its input added after it."""

    def __init__(self, config: TextConfig, *, cached_attention: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = LlamaAttention(
            config.hidden_size,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            cached_attention=cached_attention,
        )
        self.post_attention_layernorm = RmsNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMlp(config.hidden_size, intermediate_size=config.intermediate_size, bias=config.mlp_bias)

    def forward(self, x_1TD: Tensor, cos_T1e: Tensor, sin_T1e: Tensor, start: int) -> Tensor:
        """Return rows ``[1, T, D]`` for rows ``[1, T, D]`` and the rotations ``[T, 1, e]`` of their positions."""
        x_1TD = x_1TD + self.self_attn(self.input_layernorm(x_1TD), cos_T1e, sin_T1e, start)
        return x_1TD + self.mlp(self.post_attention_layernorm(x_1TD))


class LlamaDecoder(nn.Module):
    """The decoder from embedded tokens to the logits of the last ones.

    The token embedding is not part of it, because it is a method of its own in the program. ``logits_to_keep`` is the
    number of last tokens whose logits it gives. ``cached_attention`` is the class of the attention, called with the
    sizes of its cache.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        max_context_len: int,
        logits_to_keep: int = 1,
        cached_attention: Callable[..., nn.Module] = CachedAttention,
    ) -> None:
        super().__init__()
        self.max_context_len = max_context_len
        self.logits_to_keep = logits_to_keep
        self.layers = nn.ModuleList(
            LlamaLayer(
                config,
                cached_attention=cached_attention(
                    max_context_len=max_context_len,
                    num_key_value_heads=config.num_key_value_heads,
                    head_dim=config.head_dim,
                ),
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RmsNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        cos_Ce, sin_Ce = rotary_tables(config, length=max_context_len)
        self.register_buffer("cos", cos_Ce[:, None], persistent=False)
        self.register_buffer("sin", sin_Ce[:, None], persistent=False)

    cos: Tensor
    sin: Tensor

    def forward(self, inputs_embeds_1TD: Tensor, input_pos: Tensor) -> Tensor:
        """Return logits ``[1, min(T, logits_to_keep), vocab_size]`` of the last of T rows, ``float32 [1, T, D]``.

        ``input_pos``, ``int64 [1]``, is the number of rows that were read before.
        """
        x_1TD = inputs_embeds_1TD
        start, cos_T1e, sin_T1e = self.positions(input_pos, x_1TD.shape[1])
        for layer in self.layers:
            x_1TD = layer(x_1TD, cos_T1e, sin_T1e, start)
        length = x_1TD.shape[1]
        kept = torch.sym_min(length, self.logits_to_keep) if self.logits_to_keep > 1 else 1
        return self.logits(x_1TD.narrow(1, length - kept, kept))

    def positions(self, input_pos: Tensor, length: int) -> tuple[int, Tensor, Tensor]:
        """Return the first position, and the rotations ``[length, 1, e]`` from there on: cosine and sine.

        The position is read from its tensor here, once for all layers.
        """
        start: int = input_pos.item()  # type: ignore[assignment]  # a symbol while exporting
        torch._check(start >= 0)
        torch._check(start + length <= self.max_context_len)
        return start, self.cos.narrow(0, start, length), self.sin.narrow(0, start, length)

    def logits(self, x_1TD: Tensor) -> Tensor:
        """Return the logits ``[1, T, vocab_size]`` of rows ``[1, T, D]``.

        To compute them for rows that nobody reads would be expensive: the head is as wide as the vocabulary.
        """
        return self.lm_head(self.norm(x_1TD))


@lru_cache
def fused_parts(config: TextConfig) -> dict[str, dict[str, int]]:
    """Return the parts of the fused linears of a layer, with their rows in order, by the linear's name in the layer."""
    with torch.device("meta"):
        layer = LlamaLayer(config, cached_attention=nn.Identity())
    return {name: module.parts for name, module in layer.named_modules() if isinstance(module, FusedLinear)}
