"""Chat templates, taken apart into the pieces of text that the runners put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.chat_template import (
    ChatTemplate,
    SpecialTokens,
    find_chat_template,
    prompt_template,
)
from llava_export.errors import CheckpointError
from llava_export.families.prompts import VICUNA_V1
from llava_runner.contract import PromptTemplate

TOKENS = SpecialTokens(bos="<s>", eos="</s>", others=("<pad>", "<|user|>"))
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'][0]['text'] + eos_token }}{% endif %}{% endfor %}"
)
STRINGS = (
    "{% for message in messages %}{{ '### ' + message.role + ': ' + message.content + "
    "('</s>' if message.role == 'assistant' else '\n') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:' }}{% endif %}"
)
GENERATION = (
    "{%- for m in messages -%}{%- if m.role == 'user' -%}Q: {{ m.content }} A:{%- else -%}"
    "{% generation %} {{ m.content }}</s>{% endgeneration %}{%- endif -%}{%- endfor -%}"
)


def derived(text: str, tokens: SpecialTokens = TOKENS) -> PromptTemplate:
    return prompt_template(ChatTemplate(text, Path("chat_template.jinja")), tokens=tokens)


def test_the_built_in_models_template_is_the_one_it_was_trained_with():
    found = find_chat_template(CHECKPOINTS["tiny-llava"])
    assert found is not None and found.path.name == "chat_template.jinja"
    assert prompt_template(found, tokens=TOKENS) == VICUNA_V1
    assert find_chat_template(CHECKPOINTS["tiny-mobilevlm"]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (INST, PromptTemplate(system="", user="[INST] ", assistant=" [/INST]", image_suffix="\n")),
        (STRINGS, PromptTemplate(system="", user="### user: ", assistant="\n### assistant:", image_suffix="\n")),
        (GENERATION, PromptTemplate(system="", user="Q: ", assistant=" A:", image_suffix="\n")),
        (
            INST.replace("bos_token", "bos_token + 'Be brief. '"),
            PromptTemplate("Be brief. ", "[INST] ", " [/INST]", "\n"),
        ),
    ],
)
def test_pieces(text, expected):
    assert derived(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}", "is not a Jinja template: line 1"),
        ("{{ raise_exception('no images here') }}", "fails: TemplateError: no images here"),
        ("{{ messages[0].content[0].nothing.at_all }}", "fails: UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "fails: SecurityError"),
        ("<image> {{ messages | length }}", "which has Qaa 0 times"),
        (INST.replace("eos_token", "'\\n'"), r"an answer stands between ' \[/INST\] ' and '\\n\[INST\] '"),
        ("{{ 'Be brief. ' }}" + INST, "it has the special token <s> in 'Be brief. <s>"),
        (INST.replace("[INST] ", "<|user|>"), "it has the special token <|user|> in '<|user|>'"),
        (INST.replace("messages %}", "messages[-2:] %}"), "which has Qaa 0 times"),
        (INST.replace("c['text']", "(c['text'] | upper)"), "which has Qaa 0 times"),
        (
            INST.replace("c['text']", "(c['text'] | replace('\\'', ''))"),
            r"(?s)would differ:.*\n-.*quotes.*\n\+.*'quotes'",
        ),
    ],
)
def test_what_the_pieces_cannot_express_is_refused(text, message):
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")) as caught:
        derived(text)
    assert "chat_template.jinja" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", INST),
        ("chat_template.json", json.dumps({"chat_template": INST})),
        ("processor_config.json", json.dumps({"chat_template": INST})),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": INST}]}),
        ),
    ],
)
def test_where_a_template_is_found(name, content, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    (tmp_path / name).write_text(content)
    assert find_chat_template(tmp_path) == ChatTemplate(INST, tmp_path / name)


def test_a_template_that_is_no_text(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises(CheckpointError, match="chat_template is int, not text"):
        find_chat_template(tmp_path)
