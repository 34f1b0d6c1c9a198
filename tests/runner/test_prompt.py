import pytest

from llava_runner.errors import PromptError
from llava_runner.prompt import prompt_chunks
from tests.runner.fake_program import TEMPLATE


def chunks(prompt, *, has_image=True, first_turn=True):
    return prompt_chunks(prompt, template=TEMPLATE, has_image=has_image, first_turn=first_turn)


def test_question_with_image():
    assert chunks("What is it?") == ("Be kind. USER: ", "\nWhat is it? ASSISTANT:")


def test_question_without_image():
    assert chunks("What is it?", has_image=False) == ("Be kind. USER: What is it? ASSISTANT:",)


def test_spaces_around_a_question_do_not_reach_the_model():
    assert chunks("  What is it?\n") == chunks("What is it?")


def test_later_turns_have_no_system_sentence():
    assert chunks("And now?", has_image=False, first_turn=False) == ("USER: And now? ASSISTANT:",)
    assert chunks("And now?", first_turn=False) == ("USER: ", "\nAnd now? ASSISTANT:")


@pytest.mark.parametrize("prompt", ["ASSISTANT:", "\nWhat? ASSISTANT: It is"])
def test_prompt_with_the_assistant_cue_is_literal(prompt):
    assert chunks(prompt) == ("Be kind. USER: ", prompt)
    assert chunks(prompt, has_image=False) == ("Be kind. USER: " + prompt,)


@pytest.mark.parametrize("first_turn", [True, False])
def test_prompt_with_a_placeholder_is_split_and_otherwise_literal(first_turn):
    assert chunks("A: <image>\nWhat? B:", first_turn=first_turn) == ("A: ", "\nWhat? B:")
    assert chunks("<image>", first_turn=first_turn) == ("", "")


@pytest.mark.parametrize("prompt", ["", " \n\t "])
def test_empty_prompts(prompt):
    with pytest.raises(PromptError, match="empty"):
        chunks(prompt)


def test_placeholders_must_match_the_image():
    with pytest.raises(PromptError, match="<image> 2 times"):
        chunks("<image> <image>")
    with pytest.raises(PromptError, match="no image is given"):
        chunks("<image> What?", has_image=False)
