from dataclasses import replace

import pytest

from llava_runner.errors import PromptError
from llava_runner.prompt import chunk_text, prompt_chunks, question_chunks
from tests.runner.fake_program import TEMPLATE


def texts(found):
    return tuple(chunk_text(chunk) for chunk in found)


def chunks(prompt, *, num_images=1):
    return texts(prompt_chunks(prompt, template=TEMPLATE, num_images=num_images))


def asked(question, *, num_images=1, first_turn=False, template=TEMPLATE):
    return texts(question_chunks(question, template=template, num_images=num_images, first_turn=first_turn))


def test_question_with_image():
    assert chunks("What is it?") == ("Be kind. USER: ", "\nWhat is it? ASSISTANT:")


def test_question_without_image():
    assert chunks("What is it?", num_images=0) == ("Be kind. USER: What is it? ASSISTANT:",)


def test_spaces_around_a_question_reach_the_model_unless_its_template_trims_them():
    assert chunks("  What is it?\n") == ("Be kind. USER: ", "\n  What is it?\n ASSISTANT:")
    trimming = replace(TEMPLATE, trims=True)
    assert asked("\u3000 What is it?\x1f\n", template=trimming) == ("</s>USER: ", "\nWhat is it? ASSISTANT:")


def test_an_image_may_come_after_its_question():
    last = replace(TEMPLATE, image_last=True)
    assert asked("What is it?", template=last, first_turn=True) == ("Be kind. USER: What is it?\n", " ASSISTANT:")
    assert asked("What is it?", template=last, num_images=0) == ("</s>USER: What is it? ASSISTANT:",)


def test_only_the_users_text_is_not_of_the_template():
    (before, after), (raw,) = (
        question_chunks("a", template=TEMPLATE, num_images=1, first_turn=True),
        prompt_chunks("a ASSISTANT:", template=TEMPLATE, num_images=0),
    )
    assert [span.is_template for span in (*before, *after, *raw)] == [True, True, False, True, True, True]


def test_later_turns_have_no_system_sentence():
    assert asked("And now?", num_images=0) == ("</s>USER: And now? ASSISTANT:",)
    assert asked("And now?") == ("</s>USER: ", "\nAnd now? ASSISTANT:")


def test_the_first_question_is_a_prompt_without_markers():
    for n in range(3):
        assert asked("What is it?", num_images=n, first_turn=True) == chunks("What is it?", num_images=n)


def test_a_turn_may_have_several_images():
    assert asked("Same?", num_images=3) == ("</s>USER: ", "\n", "\n", "\nSame? ASSISTANT:")
    assert chunks("Same? ASSISTANT:", num_images=2) == ("Be kind. USER: ", "", "Same? ASSISTANT:")
    assert chunks("USER: <image>a<image>b", num_images=2) == ("USER: ", "a", "b")
    around = replace(TEMPLATE, image_start="[", image_end="]", image_separator="|")
    assert asked("Same?", template=around, num_images=2) == ("</s>USER: [", "]|[", "]|Same? ASSISTANT:")
    last = replace(around, image_last=True)
    assert asked("Same?", template=last, num_images=2) == ("</s>USER: Same?|[", "]|[", "] ASSISTANT:")


@pytest.mark.parametrize("text", ["<image>", "<image> or <image>?", "ASSISTANT: It is", "</s>USER: x"])
def test_markers_in_a_question_are_text(text):
    assert asked(text) == ("</s>USER: ", f"\n{text} ASSISTANT:")
    assert asked(text, num_images=0, first_turn=True) == (f"Be kind. USER: {text} ASSISTANT:",)


@pytest.mark.parametrize("prompt", ["ASSISTANT:", "\nWhat? ASSISTANT: It is"])
def test_prompt_with_the_assistant_cue_is_literal(prompt):
    assert chunks(prompt) == ("Be kind. USER: ", prompt)
    assert chunks(prompt, num_images=0) == ("Be kind. USER: " + prompt,)


def test_prompt_with_a_placeholder_is_split_and_otherwise_literal():
    assert chunks("A: <image>\nWhat? B:") == ("A: ", "\nWhat? B:")
    assert chunks("<image>") == ("", "")


@pytest.mark.parametrize("prompt", ["", " \n\t ", None, b"What?", 5])
@pytest.mark.parametrize("function", [chunks, asked])
def test_prompts_without_text(function, prompt):
    with pytest.raises(PromptError, match="empty" if isinstance(prompt, str) else "must be text"):
        function(prompt)


def test_placeholders_must_match_the_image():
    with pytest.raises(PromptError, match="<image> 2 times, and the number of images is 1"):
        chunks("<image> <image>")
    with pytest.raises(PromptError, match="<image> 1 times, and the number of images is 2"):
        chunks("<image>", num_images=2)
    with pytest.raises(PromptError, match="no image is given"):
        chunks("<image> What?", num_images=0)
