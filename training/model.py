"""The tiny models: their sizes, the weights that training starts from, and weights rounded as a package rounds them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from training import projectors
from training.images import IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE, normalize
from training.tokenizer import BOS, EOS, IMAGE_TOKEN, PAD

VOCAB_SIZE = 576  # the next multiple of 64, as llava-1.5 goes from 32000 to 32064
GROUP_SIZE = 128

VISION_WIDTH, TEXT_WIDTH = 128, 256
VISION: dict[str, Any] = {
    "hidden_size": VISION_WIDTH,
    "intermediate_size": 512,
    "num_hidden_layers": 6,  # five are used, as the features come from the last but one
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "projection_dim": 128,
    "hidden_act": "quick_gelu",
}
# Four layers with 384 intermediate features instead of three with 512. So a middle layer repeats, and the weights still
# take less than 8 MB.
TEXT: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def build_model(*, seed: int, text: dict[str, Any] = TEXT) -> transformers.LlavaForConditionalGeneration:
    """Return a LLaVA with random weights. ``text`` has the sizes of its language model."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "image_token_index": IMAGE_TOKEN,
        "image_seq_length": NUM_PATCHES,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
    }
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=transformers.LlamaConfig(**text), **sizes
    )
    return transformers.LlavaForConditionalGeneration(config)


def num_image_tokens(projector_type: str) -> int:
    """Return how many rows a projector makes of an image. MobileVLM's make a quarter of LLaVA's."""
    return NUM_PATCHES if projector_type == "mlp" else NUM_PATCHES // 4


def build_mobilevlm(projector_type: str) -> transformers.LlavaForConditionalGeneration:
    """Return the same model with random weights and one of MobileVLM's projectors."""
    model = build_model(seed=0, text={**TEXT, "rms_norm_eps": 1e-6})
    projector = projectors.PROJECTORS[projector_type](VISION_WIDTH, TEXT_WIDTH)
    model.model.multi_modal_projector = projector
    return model


@torch.no_grad()
def start_mobilevlm(projector_type: str, folder: Path, *, seed: int) -> transformers.LlavaForConditionalGeneration:
    """Return a MobileVLM whose tower, decoder and projector's linears are those of the tiny LLaVA in ``folder``.

    Like the published ones, it starts from a trained tower and a trained language model.
    """
    torch.manual_seed(seed)
    model = build_mobilevlm(projector_type)
    llava = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(
        {name: value for name, value in llava.state_dict().items() if "multi_modal_projector" not in name},
        strict=False,
    )
    trained, fresh = llava.model.multi_modal_projector, model.model.multi_modal_projector
    assert isinstance(fresh, projectors.Ldp | projectors.LdpV2)
    for linear, source in zip(fresh.linears, (trained.linear_1, trained.linear_2), strict=True):
        linear.load_state_dict(source.state_dict())
    if isinstance(fresh, projectors.Ldp):  # its rows get the size that the decoder was trained with
        fresh.last_norm.weight.fill_(9.0)
    return model


@torch.no_grad()
def start_language_model(model: transformers.LlavaForConditionalGeneration, pixels: np.ndarray) -> None:
    """Set the weights that stage 2 starts from, so that rows of images and of text reach the decoder in one size.

    Matrices get the standard deviation that keeps a vector's size. transformers' 0.02 is meant for wider models. The
    projector's first linear also subtracts the mean of the tower's features and divides by their standard deviation.
    Without that its rows are two hundred times as long as those of tokens, and no layer can change them.
    """
    features = vision_features(model, normalize(pixels[:256])).flatten(0, 1)
    mean, deviation = features.mean(0), features.std(0)
    projector = model.model.multi_modal_projector
    for linear in (*text_linears(model), projector.linear_1, projector.linear_2):
        linear.weight.normal_(0, linear.in_features**-0.5)
    projector.linear_1.weight.div_(deviation)
    projector.linear_1.bias.copy_(-projector.linear_1.weight @ mean)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    embedding.weight.normal_(0, 0.5)


def vision_features(model: transformers.LlavaForConditionalGeneration, pixels_BCHW: Tensor) -> Tensor:
    """Return the features [B, P, D] after the last layer but one, without the class token."""
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    hidden_BPD = tower.pre_layrnorm(tower.embeddings(pixels_BCHW))
    for layer in tower.encoder.layers[:-1]:
        hidden_BPD = layer(hidden_BPD, attention_mask=None)
    return hidden_BPD[:, 1:]


def text_linears(model: transformers.LlavaForConditionalGeneration) -> list[nn.Linear]:
    """Return the linears that the recipe 8da4w packs to int4: those of the decoder layers, and the head."""
    decoder = [module for module in model.model.language_model.modules() if isinstance(module, nn.Linear)]
    return [*decoder, model.lm_head]


@contextlib.contextmanager
def rounded_to_int4(linears: list[nn.Linear]) -> Iterator[None]:
    """Round weights as torchao's symmetric int4 does while the ``with`` block runs. Groups lie along in_features.

    A backward pass inside the block gives the original weights the gradients of the rounded ones. This is the
    straight-through estimator (Bengio et al., 2013).
    """
    originals = [linear.weight.data for linear in linears]
    for linear in linears:
        groups = linear.weight.data.unflatten(1, (-1, GROUP_SIZE))
        scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 7.5
        linear.weight.data = ((groups / scale).round().clamp(-8, 7) * scale).flatten(1)
    try:
        yield
    finally:
        for linear, original in zip(linears, originals, strict=True):
            linear.weight.data = original
