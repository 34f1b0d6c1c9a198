"""A real ``.pte`` of a few kilobytes that computes what ``FakeProgram`` does, on portable kernels."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim, export

from llava_runner.contract import MODEL_CARD, TEXT_DECODER, TOKEN_EMBEDDING, VISION_ENCODER, ModelCard
from tests.runner.fake_program import FakeProgram


class TinyVisionEncoder(nn.Module):
    def __init__(self, fake: FakeProgram) -> None:
        super().__init__()
        self.shape = (1, fake.card.num_image_tokens, fake.card.hidden_size)
        self.projector = nn.Parameter(fake.projector)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float().mean((1, 2)) / 255 @ self.projector).view(self.shape)


class TinyTextDecoder(nn.Module):
    rows: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    bias: torch.Tensor

    def __init__(self, fake: FakeProgram) -> None:
        super().__init__()
        context = fake.card.max_context_len
        self.logits_to_keep = fake.card.logits_to_keep
        self.head = nn.Parameter(fake.head)
        self.newest, self.others = fake.newest, fake.others
        self.register_buffer("rows", torch.zeros(context, fake.card.hidden_size))
        self.register_buffer("positions", torch.arange(context))
        self.register_buffer("weights", torch.arange(1, context + 1).cos())
        self.register_buffer("bias", torch.zeros(fake.card.vocab_size).index_fill(0, torch.tensor([2]), -torch.inf))

    def forward(self, inputs_embeds: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        length = inputs_embeds.shape[1]
        at = input_pos + torch.arange(length)
        self.rows.index_copy_(0, at, inputs_embeds[0])
        # What the others hold may be anything, for ExecuTorch does not keep what a buffer begins with.
        is_read = (self.positions < input_pos + length).unsqueeze(1)
        rows = torch.where(is_read, self.rows * self.weights.unsqueeze(1), torch.zeros(()))
        kept = torch.sym_min(length, self.logits_to_keep) if self.logits_to_keep > 1 else 1
        ends = at.narrow(0, length - kept, kept).unsqueeze(1)
        sums = (self.positions <= ends).float() @ rows
        newest = inputs_embeds[0].narrow(0, length - kept, kept)
        return ((self.others * sums + self.newest * newest).tanh() @ self.head + self.bias).unsqueeze(0)


def build_pte(
    card: ModelCard, *, card_json: str | None = None, leave_out: str | None = None, repeats: bool = False
) -> bytes:
    """Return the program. ``card_json`` replaces its card; the method named ``leave_out`` is missing from it."""
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    side = {dim: Dim(f"side{dim}", min=2, max=card.image_size) for dim in (1, 2)}
    length = {1: Dim("length", min=1, max=card.max_seq_len)}
    inputs = {
        VISION_ENCODER: ((torch.zeros(3, 9, 8, dtype=torch.uint8),), (side,)),
        TOKEN_EMBEDDING: ((torch.zeros(1, 3, dtype=torch.int64),), (length,)),
        TEXT_DECODER: ((torch.zeros(1, 3, card.hidden_size), torch.zeros(1, dtype=torch.int64)), (length, None)),
    }
    fake = FakeProgram(card, repeats=repeats)
    modules = {
        VISION_ENCODER: TinyVisionEncoder(fake),
        TOKEN_EMBEDDING: nn.Embedding.from_pretrained(fake.embedding),
        TEXT_DECODER: TinyTextDecoder(fake),
    }
    exported = {
        name: export(
            modules[name].eval(),
            example,
            dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=True,  # as in llava_export.pte.lower
        )
        for name, (example, shapes) in inputs.items()
        if name != leave_out
    }
    constants = {} if leave_out == MODEL_CARD else {MODEL_CARD: card_json or card.to_json()}
    config = ExecutorchBackendConfig(sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass())
    edge = EdgeCompileConfig(_check_ir_validity=False)  # which does not know the smaller of two sizes
    return to_edge(exported, constant_methods=constants, compile_config=edge).to_executorch(config).buffer
