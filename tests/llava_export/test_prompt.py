"""Which prompt a checkpoint is exported with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jinja2
import pytest

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.prompt import Prompt, find_prompt, special_tokens
from llava_export.errors import CheckpointError
from llava_export.families.prompts import MISTRAL, VICUNA_V1
from llava_export.gguf.text import chat_template
from llava_runner.contract import PromptTemplate
from tests.llava_export.test_chat_template import INST, STRINGS

# As llava-hf publishes it, but for its comments.
PUBLISHED = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if m['role'] != 'assistant' %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% else %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the built-in model without a chat template."""
    copy = shutil.copytree(CHECKPOINTS["tiny-llava"], tmp_path / "fine-tune")
    (copy / "chat_template.jinja").unlink()
    return Path(copy)


def prompt_of(folder: Path, given: str | None = None) -> Prompt:
    return find_prompt(open_checkpoint(str(folder)), given=given)


def test_a_checkpoint_without_a_template_has_its_familys_prompt(folder):
    assert prompt_of(folder) == Prompt(VICUNA_V1, "the family llava-1.5")
    assert prompt_of(CHECKPOINTS["tiny-mobilevlm"]).source == "the family mobilevlm"


def test_a_fine_tunes_template_is_followed(folder):
    (folder / "chat_template.jinja").write_text(INST)
    assert prompt_of(folder) == Prompt(MISTRAL, "chat_template.jinja")
    assert prompt_of(folder).example() == "[INST] <image>\nWhat is in the image? [/INST]"


def test_the_published_template_gets_the_system_sentence_of_the_training(folder):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PUBLISHED}))
    prompt = prompt_of(folder)
    assert prompt.template == VICUNA_V1
    assert prompt.source == "the family llava-1.5; chat_template.json leaves out the system sentence of its training"


def test_a_template_without_system_sentence_that_ends_answers_is_a_fine_tunes(folder):
    (folder / "chat_template.jinja").write_text(
        PUBLISHED.replace("c['text'] + ' ' }}{% endgen", "c['text'] + '</s>' }}{% endgen")
    )
    assert prompt_of(folder).template == PromptTemplate("", "USER: ", " ASSISTANT:", "\n")


def test_a_prompt_may_be_chosen(folder, tmp_path):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja fails: TemplateError: no"):
        prompt_of(folder)
    assert prompt_of(folder, "vicuna_v1") == Prompt(VICUNA_V1, "--prompt-template vicuna_v1")
    (tmp_path / "mine.jinja").write_text(STRINGS)
    assert prompt_of(folder, str(tmp_path / "mine.jinja")).template.user == "### user: "
    with pytest.raises(
        CheckpointError, match="--prompt-template nowhere is neither a file nor one of vicuna_v1, mistral"
    ):
        prompt_of(folder, "nowhere")


@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "special": True}])
def test_special_tokens_are_found_in_every_file(token, folder):
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": token, "added_tokens_decoder": {"600": {"content": "[A]"}}})
    )
    (folder / "added_tokens.json").write_text('{"[B]": 601}')
    tokens = special_tokens(folder)
    assert (tokens.bos, tokens.eos, tokens.image) == ("<s>", "</s>", "<image>")
    assert {"[A]", "[B]", "<pad>"} <= set(tokens.others)
    (folder / "chat_template.jinja").write_text(INST.replace("[INST]", "[B]"))
    with pytest.raises(CheckpointError, match=r"special token \[B\] in"):
        prompt_of(folder)


@pytest.mark.parametrize("prompt", [VICUNA_V1, MISTRAL, PromptTemplate("", "### user: ", "\n### assistant:", "\n")])
def test_the_template_of_gguf_files_makes_the_same_conversation(prompt):
    turns = [("user", "Where?"), ("assistant", "Left."), ("user", "Sure?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    text = jinja2.Template(chat_template(prompt)).render(
        messages=messages, add_generation_prompt=True, eos_token="</s>"
    )
    assert text == (
        f"{prompt.system}{prompt.user}Where?{prompt.assistant} Left.</s>{prompt.user}Sure?{prompt.assistant}"
    )
