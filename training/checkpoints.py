"""Checkpoint folders of both families: a trained model is written as one, and a MobileVLM is read back."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from training.images import CLIP_MEAN, CLIP_STD, IMAGE_SIZE, PATCH_SIZE
from training.model import TEXT, VISION, build_mobilevlm
from training.tokenizer import BOS, EOS, IMAGE_TOKEN, NUM_PIECES, PAD, SYSTEM

CHAT_TEMPLATE = (
    "{{ '" + SYSTEM.replace("'", "\\'") + " ' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% else %}{{ 'ASSISTANT: ' }}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] + '</s>' }}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def save_llava(model: transformers.LlavaForConditionalGeneration, folder: Path, *, tokenizer_model: bytes) -> None:
    """Write a llava-hf checkpoint folder in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = transformers.GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_processor(folder, tokenizer_model=tokenizer_model)


def save_language_model(model: transformers.LlamaForCausalLM, folder: Path, *, tokenizer_model: bytes) -> None:
    """Write a language model alone in fp16, as transformers does, and tokenizer.model."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_model)


def save_processor(folder: Path, *, tokenizer_model: bytes) -> None:
    """Write the files that ``LlavaProcessor.from_pretrained`` reads, and tokenizer.model."""
    # The tokenizer is converted in an empty folder. Next to older files, transformers would read those instead.
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "tokenizer.model").write_bytes(tokenizer_model)
        tokenizer = transformers.LlamaTokenizer.from_pretrained(
            empty, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True, model_max_length=2048
        )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<image>", "<pad>"]) == [BOS, EOS, IMAGE_TOKEN, PAD]
    image_processor = transformers.LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )
    image_processor.save_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_model)


# transformers' names of the parts, and those in MobileVLM's files.
MOBILEVLM_PARTS = {
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.": "model.mm_projector.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")


def save_mobilevlm(
    model: transformers.LlavaForConditionalGeneration, folder: Path, *, projector_type: str, tokenizer_model: bytes
) -> None:
    """Write a checkpoint folder as MobileVLM's authors do: one bf16 ``pytorch_model.bin`` with the tower inside.

    The vocabulary ends with the tokenizer's last piece. The tower's sizes are in a folder ``vision_tower``. The
    published config.json names a CLIP model on the hub in its place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        part = next(part for part in MOBILEVLM_PARTS if name.startswith(part))
        renamed = MOBILEVLM_PARTS[part] + name.removeprefix(part).removeprefix("vision_model.")
        value = value[:NUM_PIECES] if renamed in BY_TOKEN else value
        weights[renamed] = value.to(torch.bfloat16).contiguous()
    torch.save(weights, folder / "pytorch_model.bin")
    config = {
        "architectures": ["MobileLlamaForCausalLM"],
        "model_type": "mobilevlm",
        **{name: value for name, value in TEXT.items() if name != "head_dim"},
        "hidden_act": "silu",
        "vocab_size": NUM_PIECES,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": VISION["hidden_size"],
        "mm_projector_type": projector_type,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "vision_tower",
        "vision_tower_type": "clip",
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0})
    tower = {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", **VISION, "layer_norm_eps": 1e-5}
    (folder / "vision_tower").mkdir(exist_ok=True)
    _write_json(folder / "vision_tower" / "config.json", tower)
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    special = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>"}
    special |= {"unk_token": "<unk>", "pad_token": "<unk>", "model_max_length": TEXT["max_position_embeddings"]}
    _write_json(folder / "tokenizer_config.json", {**special, "tokenizer_class": "LlamaTokenizer", "legacy": True})


@torch.no_grad()
def load_mobilevlm(folder: Path) -> transformers.LlavaForConditionalGeneration:
    """Return the model in a folder that ``save_mobilevlm`` wrote, in float32.

    transformers needs an image token in the vocabulary. The rows added for it copy those of the first token, which is
    never the most likely one.
    """
    model = build_mobilevlm(json.loads((folder / "config.json").read_text())["mm_projector_type"])
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights = {}
    for name, value in stored.items():
        part = next(part for part, theirs in MOBILEVLM_PARTS.items() if name.startswith(theirs))
        if name in BY_TOKEN:
            value = torch.cat((value, value[:1].expand(TEXT["vocab_size"] - len(value), -1)))
        weights[part + name.removeprefix(MOBILEVLM_PARTS[part])] = value.float()
    prefix = "model.vision_tower.vision_model."
    if any(name.startswith(prefix) for name in model.state_dict()):
        weights = {name.replace("model.vision_tower.", prefix, 1): value for name, value in weights.items()}
    model.load_state_dict(weights)
    return model.eval()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
