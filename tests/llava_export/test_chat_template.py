"""Chat templates, taken apart into the pieces of text that the runners put together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoProcessor

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint import chat_template
from llava_export.checkpoint.chat_template import (
    ChatTemplate,
    SpecialTokens,
    chat_prompt,
    find_chat_template,
)
from llava_export.errors import CheckpointError
from llava_export.families.prompts import PROMPTS, VICUNA_V1, ChatPrompt
from llava_runner.contract import PromptTemplate
from tests.chat_templates import CHATML, INST, LLAMA3, LLAVA_HF, PHI3, VICUNA

TOKENS = SpecialTokens(bos="<s>", eos="</s>", others=("<pad>", "<|end|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"))
STRINGS = (
    "{% for message in messages %}{{ '### ' + message.role + ': ' + message.content + "
    "('</s>' if message.role == 'assistant' else '\n') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:' }}{% endif %}"
)
GENERATION = (
    "{%- for m in messages -%}{%- if m.role == 'user' -%}Q: {{ m.content }} A:{%- else -%}"
    "{% generation %} {{ m.content }}</s>{% endgeneration %}{%- endif -%}{%- endfor -%}"
)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + INST


def derived(text: str, tokens: SpecialTokens = TOKENS) -> ChatPrompt:
    return chat_prompt(ChatTemplate(text, Path("chat_template.jinja")), tokens=tokens)


def test_the_built_in_models_template_is_the_one_it_was_trained_with():
    found = find_chat_template(CHECKPOINTS["tiny-llava"])
    assert found is not None and found.path.name == "chat_template.jinja"
    assert chat_prompt(found, tokens=TOKENS).template == VICUNA_V1.template
    assert find_chat_template(CHECKPOINTS["tiny-mobilevlm"]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VICUNA, VICUNA_V1),
        (LLAVA_HF, PROMPTS["llava_hf"]),
        (INST, ChatPrompt(PromptTemplate(system="<s>", user="[INST] ", assistant=" [/INST]"), before_answer=" ")),
        (PHI3, PROMPTS["phi3"]),
        (STRINGS, ChatPrompt(PromptTemplate("", "### user: ", "\n### assistant:"), before_answer=" ")),
        (GENERATION, ChatPrompt(PromptTemplate("", "Q: ", " A:"), before_answer=" ")),
    ],
)
def test_pieces(text, expected):
    found = derived(text)
    assert found.template == expected.template
    assert found.before_answer == expected.before_answer


def test_a_template_may_trim_and_spell_the_beginning():
    found = derived(LLAMA3)
    named = PROMPTS["llama3"]
    assert found.template == replace(named.template, system="<s>", trims=True)
    assert named.around_system and found.around_system == ("<s>" + named.around_system[0], named.around_system[1])


def test_a_default_system_message_can_be_replaced():
    found = derived(CHATML)
    assert found.template.system + found.template.user == (
        "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\n"
    )
    assert found.template.answer_end == "<|im_end|>"
    assert found.around_system is not None
    before, after = found.around_system
    assert before + "Hi" + after + found.template.user == "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\n"
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + INST
    assert derived(no_system).around_system is None


def test_an_image_may_come_last():
    text = INST.replace("m['content'] %}", "m['content'] | reverse %}").replace("'<image>\n'", "'\n\n<image>'")
    assert derived(text).template == PromptTemplate("<s>", "[INST] ", " [/INST]", "\n\n", image_last=True)


def test_a_first_turn_may_differ_from_later_ones():
    text = INST.replace("{{ bos_token }}", "").replace("'[INST] '", "'Begin: ' if loop.first else '\n### Next: '")
    template = derived(text).template
    assert template.system + template.user == "Begin: "
    assert template.answer_end + template.user == "</s>\n### Next: "


def test_the_date_of_a_template_is_that_of_the_export():
    found = derived("{{ strftime_now('%d %B %Y') + ' ' }}" + INST)
    assert found.is_dated and datetime.now().strftime("%Y") in found.template.system
    assert not derived(INST).is_dated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}", "is not a Jinja template: line 1"),
        ("{{ raise_exception('no images here') }}", "fails: TemplateError: no images here"),
        ("{{ messages[0].content[0].nothing.at_all }}", "fails: UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "fails: SecurityError"),
        (ENDLESS, "fails: TimeoutError: a conversation takes more than 0.2 seconds"),
        ("<image> {{ messages | length }}", "which has Qaa 0 times"),
        (INST.replace("' ' + m", "'It is ' + m"), r"an answer stands between ' \[/INST\]It is ' and '</s>\[INST\] '"),
        (INST.replace("+ eos", "+ '.' + eos"), r"an answer stands between ' \[/INST\] ' and '\.</s>\[INST\] '"),
        (INST.replace("messages %}", "messages[-2:] %}"), "which has Qaa 0 times"),
        (INST.replace("c['text']", "(c['text'] | upper)"), "which has Qaa 0 times"),
        (INST.replace("c['text'] }}", "c['text'].rstrip() }}"), "(?s)would differ:.*between spaces"),
        (
            INST.replace("c['text']", "(c['text'] | replace('\\'', ''))"),
            r"(?s)would differ:.*\n-.*quotes.*\n\+.*'quotes'",
        ),
    ],
)
def test_what_the_pieces_cannot_express_is_refused(text, message, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")) as caught:
        derived(text)
    assert "chat_template.jinja" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", INST),
        ("chat_template.json", json.dumps({"chat_template": INST})),
        ("processor_config.json", json.dumps({"chat_template": INST})),
        ("additional_chat_templates/default.jinja", INST),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": INST}]}),
        ),
    ],
)
def test_where_a_template_is_found(name, content, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert find_chat_template(tmp_path) == ChatTemplate(INST, tmp_path / name)


def test_of_several_templates_transformers_one_is_taken(tmp_path):
    order = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json", "processor_config.json")
    folder = shutil.copytree(CHECKPOINTS["tiny-llava"], tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    for i, name in enumerate(order):
        text = f"{name} {INST}"
        path = folder / name
        settings = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(text if path.suffix == ".jinja" else json.dumps({**settings, "chat_template": text}))
        found = find_chat_template(folder)
        assert found is not None and found.path.name == name
        if i:  # the processor has no template where only the tokenizer has one
            assert found.text == AutoProcessor.from_pretrained(folder).chat_template


def test_templates_of_which_none_is_the_default(tmp_path):
    templates = [{"name": "rag", "template": INST}, {"name": "tool_use", "template": PHI3}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    with pytest.raises(CheckpointError, match=r"the templates 'rag', 'tool_use', and none is named default"):
        find_chat_template(tmp_path)


def test_a_template_that_trims_a_message_as_a_whole():
    parts = "{% for c in m.content %}{{ '<image>\n' if c.type == 'image' else c.text }}{% endfor %}"
    with pytest.raises(CheckpointError, match="a conversation would differ"):
        derived(f"{{% for m in messages %}}{{% set it %}}{parts}{{% endset %}}{{{{ it | trim }}}}</s>{{% endfor %}}")
    found = derived(STRINGS.replace("message.content", "message.content.strip()"))
    assert found.template == PromptTemplate("", "### user: ", "\n### assistant:", trims=True)


def test_a_template_that_changes_in_the_fifth_turn():
    with pytest.raises(CheckpointError, match="a conversation would differ"):
        derived(INST.replace("'[INST] '", "'[INST] ' + ('Once more: ' if loop.index0 == 8 else '')"))


def test_errors_are_short_however_long_a_template_is(tmp_path):
    for text in ("x" * 99_000, INST.replace("'[INST] '", f"'{'x' * 99_000}' ~ loop.index0")):
        with pytest.raises(CheckpointError, match=r"and \d+,\d+ more characters") as caught:
            derived(text)
        assert len(str(caught.value)) < 2500
    (tmp_path / "chat_template.jinja").write_text("x" * ((1 << 20) + 1))
    with pytest.raises(CheckpointError, match="larger than 1,048,576 bytes"):
        find_chat_template(tmp_path)


def test_a_template_that_is_no_text(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises(CheckpointError, match="chat_template is int, not text"):
        find_chat_template(tmp_path)
