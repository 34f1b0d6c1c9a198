"""The vision file, mmproj, with vision tower and projector: names, types and metadata.

Layers of the vision tower that no feature needs are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguf import GGUFWriter

from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.config import LlavaConfig
from llava_export.errors import ExportError
from llava_export.gguf.tensors import GgufTensor, gguf_name
from llava_export.gguf.types import vision_type
from llava_export.models import names

TOWER = rf"^{re.escape(names.VISION_TOWER)}\."
PROJECTOR = rf"^{re.escape(names.PROJECTOR)}\."
# Read each pair as (pattern of a CheckpointTensor's fqn, start of its name in GGUF): the pattern is replaced, and what
# follows, "weight" or "bias", stays.
TOWER_NAMES = (
    (TOWER + r"embeddings\.class_embedding", "v.class_embd"),
    (TOWER + r"embeddings\.patch_embedding\.", "v.patch_embd."),
    (TOWER + r"embeddings\.position_embedding\.", "v.position_embd."),
    (TOWER + r"pre_layrnorm\.", "v.pre_ln."),
    *(
        (TOWER + rf"layers\.(\d+)\.{ours}\.", rf"v.blk.\1.{theirs}.")
        for ours, theirs in (
            ("layer_norm1", "ln1"),
            ("layer_norm2", "ln2"),
            (r"self_attn\.q_proj", "attn_q"),
            (r"self_attn\.k_proj", "attn_k"),
            (r"self_attn\.v_proj", "attn_v"),
            (r"self_attn\.out_proj", "attn_out"),
            (r"mlp\.fc1", "ffn_up"),
            (r"mlp\.fc2", "ffn_down"),
        )
    ),
)
# The same for projectors, by the value of ``ProjectorConfig.type``.
PROJECTOR_NAMES = {
    "mlp": ((PROJECTOR + r"linear_1\.", "mm.0."), (PROJECTOR + r"linear_2\.", "mm.2.")),
    "ldp": (
        (PROJECTOR + r"mlp\.linear_1\.", "mm.model.mlp.1."),
        (PROJECTOR + r"mlp\.linear_2\.", "mm.model.mlp.3."),
        *(
            (PROJECTOR + rf"blocks\.{i}\.{ours}\.", f"mm.model.mb_block.{i + 1}.block.{theirs}.")
            for i in range(2)
            for ours, theirs in (
                ("depthwise", "0.0"),
                ("depthwise_norm", "0.1"),
                (r"squeeze_excitation\.fc1", "1.fc1"),
                (r"squeeze_excitation\.fc2", "1.fc2"),
                ("pointwise", "2.0"),
                ("pointwise_norm", "2.1"),
            )
        ),
    ),
    "ldpv2": (
        (PROJECTOR + r"mlp\.linear_1\.", "mm.model.mlp.0."),
        (PROJECTOR + r"mlp\.linear_2\.", "mm.model.mlp.2."),
        (PROJECTOR + r"position\.", "mm.model.peg.0."),
    ),
}
# The only number of patches in a row or column that llama.cpp's LDP and LDPv2 can compute.
LLAMA_CPP_GRID = 24


def check_vision(config: LlavaConfig) -> None:
    """Raise ``ExportError`` for a model whose images llama.cpp cannot encode."""
    assert config.vision is not None and config.projector is not None
    if config.vision.num_features != config.vision.num_patches:
        has, how = (
            ("drops the class token", "reads it")
            if config.vision.keep_first_row
            else ("reads all patches", "drops the first")
        )
        raise ExportError(f"llama.cpp {has}; this model {how} (vision_feature_select_strategy)")
    if config.vision.hidden_act == "relu":
        raise ExportError("llama.cpp's vision encoder has no relu")
    if config.projector.type not in PROJECTOR_NAMES:
        raise ExportError(
            "llama.cpp's projectors have a GELU behind their first linear; this model's is one linear and nothing else "
            f"(mm_projector_type {config.projector.type})"
        )
    if config.projector.hidden_act != "gelu" or not config.projector.bias:
        raise ExportError("llama.cpp's projectors have gelu and biases; this model's has not")


def vision_tensors(sources: Sequence[CheckpointTensor], *, config: LlavaConfig, quantization: str) -> list[GgufTensor]:
    """Return the tensors of the mmproj. ``sources`` are the checkpoint's tensors of the whole model."""
    assert config.projector is not None
    gguf_names = (*TOWER_NAMES, *PROJECTOR_NAMES[config.projector.type])
    tensors = []
    for source in sources:
        if names.is_in(source.fqn, names.VISION_ENCODER):
            name = gguf_name(source.fqn, gguf_names)
            tensors.append(GgufTensor(name, source, vision_type(name, source.shape, quantization=quantization)))
    return tensors


def write_vision_metadata(
    writer: GGUFWriter, *, config: LlavaConfig, image_mean: Sequence[float], image_std: Sequence[float]
) -> None:
    """Add the keys that llama.cpp needs to encode images. Mean and standard deviation are fractions of 1."""
    vision, projector = config.vision, config.projector
    assert vision is not None and projector is not None
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(projector.type)
    writer.add_vision_use_gelu(vision.hidden_act.startswith("gelu"))  # llama.cpp's has the tanh
    writer.add_vision_use_silu(vision.hidden_act == "silu")  # llama.cpp uses quick_gelu if both are false
    writer.add_vision_projection_dim(config.text.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    # By itself, llama.cpp would leave out the last layer of those that are here. It does not if the file says which
    # layers' outputs are read.
    writer.add_vision_block_count(vision.num_used_layers)
    writer.add_array("clip.vision.feature_layer", list(vision.feature_layers))
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_image_mean(list(image_mean))
    writer.add_vision_image_std(list(image_std))
