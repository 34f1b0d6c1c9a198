"""A real ``.pte`` of a few kilobytes: the methods of the contract, on portable kernels."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim, export

from llava_runner.contract import MODEL_CARD, TEXT_DECODER, TOKEN_EMBEDDING, VISION_ENCODER, ModelCard


class TinyVisionEncoder(nn.Module):
    """A vision encoder that multiplies the mean of each channel by one matrix."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.shape = (1, card.num_image_tokens, card.hidden_size)
        self.weight = nn.Parameter(torch.randn(3, card.num_image_tokens * card.hidden_size) / 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float().mean((1, 2)) @ self.weight).view(self.shape)


class TinyTextDecoder(nn.Module):
    """A decoder whose cache is the sum of the rows so far. Position 0 begins a new sum."""

    total: torch.Tensor

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.head = nn.Linear(card.hidden_size, card.vocab_size)
        self.register_buffer("total", torch.zeros(1, 1, card.hidden_size))

    def forward(self, inputs_embeds: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        self.total.copy_(self.total * (input_pos > 0).float() + inputs_embeds.sum(1, keepdim=True))
        return self.head(self.total)


def build_modules(card: ModelCard) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        VISION_ENCODER: TinyVisionEncoder(card),
        TOKEN_EMBEDDING: nn.Embedding(card.vocab_size, card.hidden_size),
        TEXT_DECODER: TinyTextDecoder(card),
    }


def build_pte(card: ModelCard, *, card_json: str | None = None, leave_out: str | None = None) -> bytes:
    """Return the program. ``card_json`` replaces its card; the method named ``leave_out`` is missing from it."""
    from executorch.exir import ExecutorchBackendConfig, to_edge
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    side = {dim: Dim(f"side{dim}", min=2, max=card.image_size) for dim in (1, 2)}
    length = {1: Dim("length", min=1, max=card.max_seq_len)}
    inputs = {
        VISION_ENCODER: ((torch.zeros(3, 9, 8, dtype=torch.uint8),), (side,)),
        TOKEN_EMBEDDING: ((torch.zeros(1, 3, dtype=torch.int64),), (length,)),
        TEXT_DECODER: ((torch.zeros(1, 3, card.hidden_size), torch.zeros(1, dtype=torch.int64)), (length, None)),
    }
    modules = build_modules(card)
    exported = {
        name: export(modules[name].eval(), example, dynamic_shapes=shapes)
        for name, (example, shapes) in inputs.items()
        if name != leave_out
    }
    constants = {} if leave_out == MODEL_CARD else {MODEL_CARD: card_json or card.to_json()}
    config = ExecutorchBackendConfig(sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass())
    return to_edge(exported, constant_methods=constants).to_executorch(config).buffer
