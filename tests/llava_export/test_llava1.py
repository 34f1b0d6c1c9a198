"""LLaVA-1: a projector of one linear, and tokens around an image, which fine-tunes of LLaVA-1.5 may have, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, LlamaTokenizer

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.processor import Processor, check_question
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import CheckpointError, ConfigError, ExportError
from llava_export.gguf.text import chat_template
from llava_export.gguf.vision import check_vision
from llava_runner.contract import IMAGE_PLACEHOLDER
from llava_runner.prompt import chunk_text, prompt_chunks, question_chunks
from tests.checkpoints import TOWER
from tests.llava1 import AROUND, save_llava1
from tests.llava_export.test_images import configured
from tests.llava_export.test_mobilevlm import original_llava

QUESTIONS = ("What is in the image?", "  Two spaces", "1+1", "\u00e9\u732b\n")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)


@pytest.fixture
def folder(checkpoint_of, tmp_path) -> Path:
    """Return the folder of a random LLaVA-1."""
    return save_llava1(checkpoint_of("plain"), tmp_path)


def as_written_by(kind: str, folder: Path) -> Path:
    """Describe the tokens around an image as an old or new transformers does. Return ``folder``."""
    if kind == "transformers 5":
        tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=True)
        (folder / "added_tokens.json").unlink()
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("said", [{"mm_projector_type": "linear"}, {"mm_projector_type": None}, {}], ids=str)
@torch.no_grad()
def test_features_are_one_linear_of_the_towers(said, folder):
    checkpoint = open_checkpoint(str(configured(folder, **said)))
    encoder = checkpoint.build_model(max_context_len=1).vision_encoder
    checkpoint.weights.fill(encoder, prefix="vision_encoder")
    tower = CLIPVisionModel.from_pretrained(folder.parent / "clip").eval()
    weights = load_file(folder / "model.safetensors")
    pixels = torch.randn(1, 3, TOWER["image_size"], TOWER["image_size"])
    states = tower(pixels, output_hidden_states=True).hidden_states
    weight, bias = (weights[f"model.mm_projector.{name}"] for name in ("weight", "bias"))
    expected = states[-2][:, 1:] @ weight.T + bias
    torch.testing.assert_close(encoder.projector(encoder.vision_tower(pixels)), expected, rtol=1e-4, atol=1e-4)
    assert checkpoint.images.aspect_ratio == "crop"  # as CLIP's processor does it


@pytest.mark.parametrize("kind", ["added_tokens.json", "transformers 5"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_prompts_have_the_ids_of_transformers_around_an_image(question, kind, folder):
    """LLaVA's code puts ``<im_start><image><im_end>`` and a line end before a question, and splits at the image."""
    checkpoint = open_checkpoint(str(as_written_by(kind, folder)))
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=True)
    whole = f"{SYSTEM}USER: <im_start><image><im_end>\n{question} ASSISTANT:"
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in whole.split("<image>"))
    prompt, chat = find_prompt(checkpoint), checkpoint.tokenizer.chat_tokenizer(bos_id=1)
    chunks = question_chunks(question, template=prompt.template, num_images=1, first_turn=True)
    assert "".join(map(chunk_text, chunks)) == whole.replace("<image>", "")
    ids = chat.encode_turn(chunks)
    assert ids == [[1, *before], after]
    assert [ids[0][-1], ids[1][0]] == [tokenizer.convert_tokens_to_ids(text) for text in AROUND] == [513, 514]


def test_the_tokens_stand_around_an_image_in_every_kind_of_prompt(folder):
    template = find_prompt(open_checkpoint(str(folder))).template

    def texts(chunks: Any) -> list[str]:
        return [chunk_text(chunk) for chunk in chunks]

    for chunks in (
        prompt_chunks("What?", template=template, num_images=1),
        prompt_chunks("\nWhat? ASSISTANT:", template=template, num_images=1),
    ):
        assert texts(chunks) == [f"{SYSTEM}USER: <im_start>", "<im_end>\nWhat? ASSISTANT:"]
    assert texts(prompt_chunks("What?", template=template, num_images=0)) == [f"{SYSTEM}USER: What? ASSISTANT:"]
    later = question_chunks("And?", template=template, num_images=1, first_turn=False)
    assert texts(later) == ["</s>USER: <im_start>", "<im_end>\nAnd? ASSISTANT:"]
    spelled = prompt_chunks("USER: <image> ASSISTANT:", template=template, num_images=1)
    assert texts(spelled) == ["USER: ", " ASSISTANT:"]  # a prompt that spells the image spells all


def test_transformers_agrees_with_the_question_of_an_export(folder):
    checkpoint = open_checkpoint(str(folder))
    prompt, chat = find_prompt(checkpoint), checkpoint.tokenizer.chat_tokenizer(bos_id=1)
    chunks = question_chunks("What is it?", template=prompt.template, num_images=1, first_turn=True)
    agreed = check_question(
        Processor.open(checkpoint),
        texts=[chunk_text(chunk) for chunk in chunks],
        ids=chat.encode_turn(chunks),
        question="What is it?",
        chat_template=None,
        adds_bos=True,
    )
    assert agreed.startswith("transformers")
    assert prompt.example().startswith(f"{SYSTEM}USER: <im_start>{IMAGE_PLACEHOLDER}<im_end>\n")


def test_a_fine_tune_of_llava_15_may_have_the_tokens(checkpoint_of, tmp_path):
    model, _ = original_llava(checkpoint_of("plain"), tmp_path)
    configured(model, mm_use_im_start_end=True)
    checkpoint = open_checkpoint(str(model))
    with pytest.raises(CheckpointError, match="mm_use_im_start_end, and the tokenizer lacks <im_start> and <im_end>"):
        find_prompt(checkpoint)
    (model / "added_tokens.json").write_text(json.dumps({"<im_start>": 512}))
    with pytest.raises(CheckpointError, match="the tokenizer lacks <im_end>"):
        find_prompt(open_checkpoint(str(model)))
    (model / "added_tokens.json").write_text(json.dumps({"<im_start>": 512, "<im_end>": 513}))
    for given in (None, "phi3"):
        template = find_prompt(open_checkpoint(str(model)), given=given).template
        assert (template.image_start, template.image_end) == AROUND


def test_the_chat_template_of_gguf_puts_the_tokens_around_llama_cpps_marker(folder):
    prompt = find_prompt(open_checkpoint(str(folder)))
    template = jinja2.Template(chat_template(prompt.chat, bos="<s>"))
    asked = {"role": "user", "content": "<__media__>\nWhat is it?"}
    found = template.render(messages=[asked], add_generation_prompt=True)
    before, after = prompt_chunks("What is it?", template=prompt.template, num_images=1)
    assert found == f"{chunk_text(before)}<__media__>{chunk_text(after)}"
    plain = template.render(messages=[{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert plain == f"{SYSTEM}USER: Hello ASSISTANT:"


def test_llama_cpp_has_no_projector_of_one_linear(folder):
    with pytest.raises(ExportError, match="a GELU behind their first linear; this model's is one linear"):
        check_vision(open_checkpoint(str(folder)).config)


def test_the_tower_of_llava_1_is_known_by_its_name(folder):
    configured(folder, mm_vision_tower="openai/clip-vit-large-patch14")
    with pytest.raises(ConfigError, match=r"clip-vit-large-patch14, whose hidden_size is 1024.*has 128"):
        open_checkpoint(str(folder), vision_tower=str(folder.parent / "clip"))


def test_a_projector_of_other_sizes_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.mm_projector.weight": torch.ones(256, 64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mm_projector.weight is \[256, 64\], config.json says \[256, 128\]"):
        open_checkpoint(str(folder))
