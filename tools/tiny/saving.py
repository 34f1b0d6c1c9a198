"""A trained model as an ordinary llava-hf checkpoint folder."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import transformers

from tiny.pictures import CLIP_MEAN, CLIP_STD, IMAGE_SIZE, PATCH_SIZE
from tiny.tokenizer import BOS, EOS, IMAGE_TOKEN, PAD, SYSTEM

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


def save(model: transformers.LlavaForConditionalGeneration, folder: Path, *, tokenizer_model: bytes) -> None:
    """Write a llava-hf checkpoint folder in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = transformers.GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_processor(folder, tokenizer_model=tokenizer_model)


def save_processor(folder: Path, *, tokenizer_model: bytes) -> None:
    """Write what `LlavaProcessor.from_pretrained` reads, tokenizer.model included."""
    # Converted in an empty folder: beside older files transformers would read those instead of tokenizer.model.
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "tokenizer.model").write_bytes(tokenizer_model)
        tokenizer = transformers.LlamaTokenizer.from_pretrained(
            empty, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True, model_max_length=2048
        )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<image>", "<pad>"]) == [BOS, EOS, IMAGE_TOKEN, PAD]
    image_processor = transformers.CLIPImageProcessorPil(
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
