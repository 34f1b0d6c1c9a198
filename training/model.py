"""The tiny models: their sizes, what they start from, and their weights rounded as a package will round them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from training import projectors
from training.pictures import IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE, normalize
from training.tokenizer import BOS, EOS, IMAGE_TOKEN, PAD

VOCAB_SIZE = 576  # the next multiple of 64, as llava-1.5 goes from 32000 to 32064
GROUP_SIZE = 128

VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 6,  # five are used: the features come from the last but one
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "projection_dim": 128,
    "hidden_act": "quick_gelu",
}
# Four layers of 384 instead of three of 512: a middle layer that repeats, and still under 8 MB.
TEXT = {
    "hidden_size": 256,
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


def build_model(*, seed: int, text: dict = TEXT) -> transformers.LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=NUM_PATCHES,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=PAD,
    )
    return transformers.LlavaForConditionalGeneration(config)


def num_image_tokens(projector_type: str) -> int:
    return NUM_PATCHES if projector_type == "mlp" else NUM_PATCHES // 4


def build_mobilevlm(projector_type: str) -> transformers.LlavaForConditionalGeneration:
    """Return the same model with one of MobileVLM's projectors, which hands on a quarter as many rows as patches."""
    model = build_model(seed=0, text={**TEXT, "rms_norm_eps": 1e-6})
    projector = projectors.PROJECTORS[projector_type](VISION["hidden_size"], TEXT["hidden_size"])
    model.model.multi_modal_projector = projector
    return model


@torch.no_grad()
def start_mobilevlm(projector_type: str, folder: Path, *, seed: int) -> transformers.LlavaForConditionalGeneration:
    """Return a MobileVLM whose tower, decoder and projector's linears are those of the tiny LLaVA in `folder`.

    As the published ones, it starts from a tower that sees and a decoder that speaks.
    """
    torch.manual_seed(seed)
    model = build_mobilevlm(projector_type)
    llava = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(
        {name: value for name, value in llava.state_dict().items() if "multi_modal_projector" not in name},
        strict=False,
    )
    trained, fresh = llava.model.multi_modal_projector, model.model.multi_modal_projector
    for linear, source in zip(fresh.linears, (trained.linear_1, trained.linear_2), strict=True):
        linear.load_state_dict(source.state_dict())
    if projector_type == "ldpnet":  # its last norm: rows of the size that the decoder is used to
        fresh.model["mb_block"][2].block[2][1].weight.fill_(9.0)
    return model


@torch.no_grad()
def start_language_model(model: transformers.LlavaForConditionalGeneration, pixels: np.ndarray) -> None:
    """Set what stage 2 starts from, so that both kinds of rows come to the decoder in one size.

    Matrices get the standard deviation that keeps a vector's size; transformers' 0.02 is meant for wider models. The
    projector first takes the mean off the tower's features and divides by their standard deviation: raw, its rows are
    two hundred times as long as embedded tokens, and no layer could change them.
    """
    features = vision_features(model, normalize(pixels[:256])).flatten(0, 1)
    mean, deviation = features.mean(0), features.std(0)
    projector = model.model.multi_modal_projector
    for linear in (*text_linears(model), projector.linear_1, projector.linear_2):
        linear.weight.normal_(0, linear.in_features**-0.5)
    projector.linear_1.weight.div_(deviation)
    projector.linear_1.bias.copy_(-projector.linear_1.weight @ mean)
    model.get_input_embeddings().weight.normal_(0, 0.5)


def vision_features(model: transformers.LlavaForConditionalGeneration, pixels_BCHW: Tensor) -> Tensor:
    """Return [B, P, D] from the last but one layer, without running the last; the class token is dropped."""
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    hidden_BPD = tower.pre_layrnorm(tower.embeddings(pixels_BCHW))
    for layer in tower.encoder.layers[:-1]:
        hidden_BPD = layer(hidden_BPD, attention_mask=None)
    return hidden_BPD[:, 1:]


def text_linears(model: transformers.LlavaForConditionalGeneration) -> list[nn.Linear]:
    """Return the linears that 8da4w packs to int4: those of the decoder layers, and the head."""
    decoder = [module for module in model.model.language_model.modules() if isinstance(module, nn.Linear)]
    return [*decoder, model.lm_head]


@contextlib.contextmanager
def rounded_to_int4(linears: list[nn.Linear]) -> Iterator[None]:
    """Round weights as torchao's symmetric int4 does (groups along in_features), and put the originals back after.

    A backward pass inside gives the originals the gradients of the rounded weights: the straight-through estimator.
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
