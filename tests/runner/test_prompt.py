import pytest

from llava_runner.errors import PromptError
from llava_runner.prompt import prompt_chunks, question_chunks
from tests.runner.fake_program import TEMPLATE


def chunks(prompt, *, has_image=True):
    return prompt_chunks(prompt, template=TEMPLATE, has_image=has_image)


def asked(question, *, has_image=True, first_turn=False):
    return question_chunks(question, template=TEMPLATE, has_image=has_image, first_turn=first_turn)


def test_question_with_image():
    assert chunks("What is it?") == ("Be kind. USER: ", "\nWhat is it? ASSISTANT:")


def test_question_without_image():
    assert chunks("What is it?", has_image=False) == ("Be kind. USER: What is it? ASSISTANT:",)


def test_spaces_around_a_question_do_not_reach_the_model():
    assert chunks("  What is it?\n") == chunks("What is it?")


def test_later_turns_have_no_system_sentence():
    assert asked("And now?", has_image=False) == ("USER: And now? ASSISTANT:",)
    assert asked("And now?") == ("USER: ", "\nAnd now? ASSISTANT:")


def test_the_first_question_is_a_prompt_without_markers():
    for has_image in (True, False):
        assert asked("What is it?", has_image=has_image, first_turn=True) == chunks("What is it?", has_image=has_image)


@pytest.mark.parametrize("text", ["<image>", "<image> or <image>?", "ASSISTANT: It is", "</s>USER: x"])
def test_markers_in_a_question_are_text(text):
    assert asked(text) == ("USER: ", f"\n{text} ASSISTANT:")
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


def test_only_ascii_spaces_are_taken_off():
    """The C++ runner knows no others."""
    assert asked("\u00a0\x1cWhat? \x85", has_image=False) == ("USER: \u00a0\x1cWhat? \x85 ASSISTANT:",)


def test_placeholders_must_match_the_image():
    with pytest.raises(PromptError, match="<image> 2 times"):
        chunks("<image> <image>")
    with pytest.raises(PromptError, match="no image is given"):
        chunks("<image> What?", has_image=False)
