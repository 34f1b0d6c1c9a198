"""The ``config.json`` of published models, and of small ones like them."""

from __future__ import annotations

from typing import Any

from benchmarks.random_tokenizers import PIECES
from llava_export.families.sections import CLIP_L_336, SIGLIP_SO400M_384

VISION_TOWER: dict[str, Any] = {**CLIP_L_336, "projection_dim": 768, "vocab_size": 32000}
# What a config.json says of the vision tower of a LLaVA.
CLIP: dict[str, Any] = {
    "vision_config": VISION_TOWER,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
SIGLIP: dict[str, Any] = {
    # As in llava-interleave-qwen-0.5b-hf: the published tower without its last layer, which nothing reads.
    "vision_config": {**SIGLIP_SO400M_384, "num_hidden_layers": 26, "vision_use_head": False},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
# --small: a decoder and a vision tower that differ from the model's in width and depth alone.
SMALL_LAYERS = 2
TOWER_FOLDER = "tower"  # in the checkpoint, with the config of a small tower in the layout of LLaVA's authors
SMALL_TOWER = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
}
VICUNA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
}
LLAMA_3: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
LLAVA: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": {},  # the published config leaves out LlamaConfig's defaults
    "llava-1.5-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    # The same with the decoder of MobileLLaMA-1.4B, which a phone can run.
    "llava-mobilellama-1.4b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "bakllava-7b": {**MISTRAL, "sliding_window": 4096},
    "llava-phi-3-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "sliding_window": 2047,
        "bos_token_id": 1,
        "eos_token_id": 2,  # the published one, 32000, is a token that the tokenizer here does not have
        "pad_token_id": None,
    },
    "llava-llama-3-8b": {**LLAMA_3, "max_position_embeddings": 8192, "vocab_size": 128320},
    "llava-interleave-qwen-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "vocab_size": 152000,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    "llama-joycaption-8b": {
        **LLAMA_3,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "vocab_size": 128256,
    },
}
# Of those with a byte-level BPE.
IMAGE_TOKENS = {"llava-llama-3-8b": 128257, "llama-joycaption-8b": 128077, "llava-interleave-qwen-0.5b": 151646}
WITH_SIGLIP = ("llava-interleave-qwen-0.5b", "llama-joycaption-8b")
MOBILEVLM_SIZES: dict[str, dict[str, Any]] = {
    "1.7b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16},
    "3b": {"hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
MOBILEVLM: dict[str, dict[str, Any]] = {
    f"mobilevlm-{version}{size}": {
        **text,
        "num_key_value_heads": text["num_attention_heads"],
        "mm_projector_type": type_,
    }
    for version, type_ in (("", "ldpnet"), ("v2-", "ldpnetv2"))
    for size, text in MOBILEVLM_SIZES.items()
    if (version, size) != ("", "7b")  # there is no such one
}
# Other models in the layout of LLaVA's authors: what their configs have in place of MobileVLM's.
ORIGINAL: dict[str, dict[str, Any]] = {
    "llava-med-7b": {
        **MISTRAL,
        "architectures": ["LlavaMistralForCausalLM"],
        "model_type": "llava_mistral",
        "mm_projector_type": "mlp2x_gelu",
        "sliding_window": None,
        "rope_theta": 1000000.0,
    },
}


def config_like(name: str, *, layers: int | None = None, small: bool = False) -> dict[str, Any]:
    """Return the ``config.json`` of a published model. ``layers`` changes the depth of its decoder.

    With ``small`` everything but the vocabulary is small.
    """
    if name not in LLAVA:
        config = original_config(name, layers=layers)
        if small:
            tower = {"mm_hidden_size": SMALL_TOWER["hidden_size"], "mm_vision_tower": TOWER_FOLDER}
            config |= {**smaller(config, layers=layers), **tower}
        return config
    config = llava_config(name, layers=layers)
    if small:
        config["text_config"] |= smaller(config["text_config"], layers=layers)
        config["vision_config"] = {**config["vision_config"], **SMALL_TOWER}
    return config


def smaller(text: dict[str, Any], *, layers: int | None) -> dict[str, Any]:
    """Return the sizes of a small decoder with the size of a head and the grouping of queries that ``text`` has."""
    heads, width = text.get("num_attention_heads", 32), text.get("hidden_size", 4096)
    group = heads // text.get("num_key_value_heads", heads)
    return {
        "hidden_size": 4 * width // heads,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": max(1, 4 // group),
        "num_hidden_layers": layers or SMALL_LAYERS,
    }


def original_config(name: str, *, layers: int | None) -> dict[str, Any]:
    """Return the ``config.json`` of a MobileVLM, or of another model in the layout of LLaVA's authors."""
    return {
        "architectures": ["MobileLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "image_aspect_ratio": "pad",
        "max_position_embeddings": 2048,
        "mm_hidden_size": VISION_TOWER["hidden_size"],
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": "mobilevlm",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_tower_type": "clip",
        "vocab_size": PIECES,
        **(MOBILEVLM | ORIGINAL)[name],
        **({} if layers is None else {"num_hidden_layers": layers}),
    }


def llava_config(name: str, *, layers: int | None) -> dict[str, Any]:
    """Return the ``config.json`` of a LLaVA."""
    text = {**VICUNA, **LLAVA[name]}
    image_token = IMAGE_TOKENS.get(name, PIECES)
    if layers is not None:
        text["num_hidden_layers"] = layers
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": image_token,
        "model_type": "llava",
        "pad_token_id": image_token + 1,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        "torch_dtype": "float16",
        **(SIGLIP if name in WITH_SIGLIP else CLIP),
    }


def processor_like(config: dict[str, Any]) -> dict[str, Any]:
    """Return what ``preprocessor_config.json`` says for the vision tower of a LLaVA with this ``config.json``."""
    side = config["vision_config"]["image_size"]
    square = {"height": side, "width": side}
    if config["vision_config"]["model_type"] == SIGLIP_SO400M_384["model_type"]:
        return {
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SiglipImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "size": square,
        }
    return {
        "crop_size": square,
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "size": {"shortest_edge": side},
    }
