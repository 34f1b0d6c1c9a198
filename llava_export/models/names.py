"""The names of the model's modules, and the names that one weight has on its way into a program.

A weight has five names. The query projection of a LLaVA-1.5 decoder's second layer is:

1. ``language_model.model.layers.1.self_attn.q_proj.weight``: its key in a shard (``checkpoint.reader``);
2. ``text_decoder.layers.1.self_attn.q_proj.weight``: renamed by the family's key map (``families``,
   ``checkpoint.weights.CheckpointTensor.fqn``), and in GGUF ``blk.1.attn_q.weight`` (``gguf.text``);
3. ``text_decoder.layers.1.self_attn.qkv_proj.weight``: the parameter of the model, fused with its neighbors
   (``models.layers.FusedLinear``);
4. ``layers.1.self_attn.qkv_proj.weight``: the same within its method (``pte.stamp``);
5. the SHA-256 of its packed values, and ``scale_`` with that of its scales: its keys in the program
   (``pte.stamp.packing.Blob.key``).

The children of ``LlavaModel`` are named like the methods of the program.
"""

from __future__ import annotations

VISION_ENCODER = "vision_encoder"
VISION_TOWER = f"{VISION_ENCODER}.vision_tower"
PROJECTOR = f"{VISION_ENCODER}.projector"
TOKEN_EMBEDDING = "token_embedding"
TEXT_DECODER = "text_decoder"
DECODER_NORM = f"{TEXT_DECODER}.norm"
LM_HEAD = f"{TEXT_DECODER}.lm_head"


def tower_layer(index: int | str) -> str:
    """Return the name of a layer of the vision tower."""
    return f"{VISION_TOWER}.layers.{index}"


def decoder_layer(index: int | str) -> str:
    """Return the name of a layer of the text decoder."""
    return f"{TEXT_DECODER}.layers.{index}"


def is_decoder_layer(fqn: str) -> bool:
    """Return whether ``fqn`` names a layer of the text decoder."""
    parent, _, index = fqn.rpartition(".")
    return index.isdigit() and decoder_layer(index) == f"{parent}.{index}"


def is_in(fqn: str, module: str) -> bool:
    """Return whether ``fqn`` names a part of ``module``."""
    return fqn.startswith(f"{module}.")
