from dataclasses import replace

import pytest

from llava_runner.errors import PromptError
from llava_runner.prompt import chunk_text, prompt_chunks, question_chunks
from tests.runner.fake_program import TEMPLATE


def texts(found):
    return tuple(chunk_text(chunk) for chunk in found)


def chunks(prompt, *, has_image=True):
    return texts(prompt_chunks(prompt, template=TEMPLATE, has_image=has_image))


def asked(question, *, has_image=True, first_turn=False, template=TEMPLATE):
    return texts(question_chunks(question, template=template, has_image=has_image, first_turn=first_turn))


def test_question_with_image():
    assert chunks("What is it?") == ("Be kind. USER: ", "\nWhat is it? ASSISTANT:")


def test_question_without_image():
    assert chunks("What is it?", has_image=False) == ("Be kind. USER: What is it? ASSISTANT:",)


def test_spaces_around_a_question_reach_the_model_unless_its_template_trims_them():
    assert chunks("  What is it?\n") == ("Be kind. USER: ", "\n  What is it?\n ASSISTANT:")
    trimming = replace(TEMPLATE, trims=True)
    assert asked("\u3000 What is it?\x1f\n", template=trimming) == ("</s>USER: ", "\nWhat is it? ASSISTANT:")


def test_an_image_may_come_after_its_question():
    last = replace(TEMPLATE, image_last=True)
    assert asked("What is it?", template=last, first_turn=True) == ("Be kind. USER: What is it?\n", " ASSISTANT:")
    assert asked("What is it?", template=last, has_image=False) == ("</s>USER: What is it? ASSISTANT:",)


def test_only_the_users_text_is_not_of_the_template():
    (before, after), (raw,) = (
        question_chunks("a", template=TEMPLATE, has_image=True, first_turn=True),
        prompt_chunks("a ASSISTANT:", template=TEMPLATE, has_image=False),
    )
    assert [span.is_template for span in (*before, *after, *raw)] == [True, True, False, True, True]


def test_later_turns_have_no_system_sentence():
    assert asked("And now?", has_image=False) == ("</s>USER: And now? ASSISTANT:",)
    assert asked("And now?") == ("</s>USER: ", "\nAnd now? ASSISTANT:")


def test_the_first_question_is_a_prompt_without_markers():
    for has_image in (True, False):
        assert asked("What is it?", has_image=has_image, first_turn=True) == chunks("What is it?", has_image=has_image)


@pytest.mark.parametrize("text", ["<image>", "<image> or <image>?", "ASSISTANT: It is", "</s>USER: x"])
def test_markers_in_a_question_are_text(text):
    assert asked(text) == ("</s>USER: ", f"\n{text} ASSISTANT:")
    assert asked(text, has_image=False, first_turn=True) == (f"Be kind. USER: {text} ASSISTANT:",)


@pytest.mark.parametrize("prompt", ["ASSISTANT:", "\nWhat? ASSISTANT: It is"])
def test_prompt_with_the_assistant_cue_is_literal(prompt):
    assert chunks(prompt) == ("Be kind. USER: ", prompt)
    assert chunks(prompt, has_image=False) == ("Be kind. USER: " + prompt,)


def test_prompt_with_a_placeholder_is_split_and_otherwise_literal():
    assert chunks("A: <image>\nWhat? B:") == ("A: ", "\nWhat? B:")
    assert chunks("<image>") == ("", "")


@pytest.mark.parametrize("prompt", ["", " \n\t ", None, b"What?", 5])
@pytest.mark.parametrize("function", [chunks, asked])
def test_prompts_without_text(function, prompt):
    with pytest.raises(PromptError, match="empty" if isinstance(prompt, str) else "must be text"):
        function(prompt)


def test_placeholders_must_match_the_image():
    with pytest.raises(PromptError, match="<image> 2 times"):
        chunks("<image> <image>")
    with pytest.raises(PromptError, match="no image is given"):
        chunks("<image> What?", has_image=False)
