"""Which prompt a checkpoint is exported with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.prompt import Prompt, find_prompt
from llava_export.cli import export, gguf
from llava_export.errors import CheckpointError
from llava_export.families.prompts import MISTRAL, PROMPTS, VICUNA_V1, ChatPrompt
from llava_export.gguf.export import export_gguf
from llava_export.gguf.text import chat_template
from llava_export.stages import Stages
from llava_runner.contract import PromptTemplate
from tests.chat_templates import INST
from tests.chat_templates import LLAVA_HF as LLAVA_HF_TEMPLATE
from tests.llava_export.test_chat_template import STRINGS


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
    prompt = prompt_of(folder)
    assert prompt.template == replace(MISTRAL.template, system="<s>") and prompt.source == "chat_template.jinja"
    assert prompt.example() == "<s>[INST] <image>\nWhat is in the image? [/INST]"


def test_the_published_template_gets_the_system_sentence_of_the_training(folder):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA_HF_TEMPLATE}))
    prompt = prompt_of(folder)
    assert prompt.chat == VICUNA_V1
    assert prompt.source == "the family llava-1.5; chat_template.json leaves out the system sentence of its training"


def test_a_template_without_system_sentence_that_ends_answers_is_a_fine_tunes(folder):
    (folder / "chat_template.jinja").write_text(
        LLAVA_HF_TEMPLATE.replace("c['text'] + ' ' }}{% endgen", "c['text'] + '</s>' }}{% endgen")
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
        CheckpointError, match="--prompt-template nowhere is neither a file nor one of vicuna_v1, llava_hf, phi3, "
    ):
        prompt_of(folder, "nowhere")


def test_markers_that_the_tokenizer_does_not_know_are_told(folder):
    (note,) = find_prompt(open_checkpoint(str(folder)), given="phi3").notes
    assert note == "the prompt has <|user|>, <|end|>, <|assistant|>, which the tokenizer reads as ordinary text"


@pytest.mark.parametrize("command", [export, gguf])
def test_what_is_doubtful_about_a_prompt_is_printed(command, tmp_path, capsys):
    flags = ["--model=tiny-llava", "--prompt-template=phi3", f"--output-dir={tmp_path}"]
    command.run(command.build_parser().parse_args([*flags, *(["--dry-run"] if command is export else [])]))
    assert "note: the prompt has <|user|>, <|end|>, <|assistant|>, which" in " ".join(capsys.readouterr().out.split())


def test_a_system_message_for_a_prompt_that_has_no_place_for_one():
    opening = ChatPrompt(PromptTemplate("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n", "", " [/INST]"))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    template = jinja2.Template(chat_template(opening, bos="<s>"))
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == "Be brief.\n[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWhere? [/INST]"


def test_gguf_says_which_ends_it_cannot_name(folder, tmp_path):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 300, 301, 302, 303]}))
    checkpoint, stages = open_checkpoint(str(folder)), Stages()
    prompt = find_prompt(checkpoint)
    export_gguf(checkpoint, quantization="f16", mmproj_type="f16", prompt=prompt, output_dir=tmp_path, stages=stages)
    assert stages.notes == ["a GGUF file names 3 tokens that end an answer: llama.cpp will not stop at 302, 303"]


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_the_template_of_gguf_files_makes_the_same_conversation(prompt):
    turns = [("user", "Where?"), ("assistant", "Left."), ("user", "Sure?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rendered = jinja2.Template(chat_template(prompt, bos="<s>")).render(messages=messages, add_generation_prompt=True)
    it = prompt.template
    assert rendered == (
        f"{it.system}{it.user}Where?{it.assistant}{prompt.before_answer}Left.{it.answer_end}{it.user}Sure?{it.assistant}"
    )
