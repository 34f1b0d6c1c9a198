"""The text of one turn of a conversation, before and after its image."""

from __future__ import annotations

from llava_runner.contract import IMAGE_PLACEHOLDER, PromptTemplate
from llava_runner.errors import PromptError

SPACES = " \t\n\r\f\v"  # the same in the C++ runner: Python's strip() knows more of them


def prompt_chunks(prompt: str, *, template: PromptTemplate, has_image: bool) -> tuple[str, ...]:
    """Return the text of a first turn: ``(before, after)`` the image, or ``(text,)`` if there is no image.

    A prompt with ``<image>`` in it is the whole turn, and is only split there. A prompt with the assistant's cue
    (``ASSISTANT:``) in it is used unchanged, after the system sentence, ``USER: `` and the image. Any other prompt is a
    plain question, and the template is put around it.

    Tokenize each part on its own, as in the models' training. Raises ``PromptError`` as ``check_prompt`` does.
    """
    check_prompt(prompt, has_image=has_image)
    if IMAGE_PLACEHOLDER in prompt:
        return tuple(prompt.split(IMAGE_PLACEHOLDER))
    if template.assistant.strip(SPACES) in prompt:
        before = template.system + template.user
        return (before, prompt) if has_image else (before + prompt,)
    return question_chunks(prompt, template=template, has_image=has_image, first_turn=True)


def question_chunks(question: str, *, template: PromptTemplate, has_image: bool, first_turn: bool) -> tuple[str, ...]:
    """Return the text of a turn as ``prompt_chunks`` does, with the template around it whatever the question has in it.

    Raises ``PromptError`` for an empty question.
    """
    _check_text(question)
    before = template.system + template.user if first_turn else template.user
    after = (template.image_suffix if has_image else "") + question.strip(SPACES) + template.assistant
    return (before, after) if has_image else (before + after,)


def check_prompt(prompt: str, *, has_image: bool) -> None:
    """Raise ``PromptError`` for an empty prompt, and for placeholders that do not match the image."""
    _check_text(prompt)
    placeholders = prompt.count(IMAGE_PLACEHOLDER)
    if placeholders > 1:
        raise PromptError(f"the prompt has {IMAGE_PLACEHOLDER} {placeholders} times; a turn takes one image")
    if placeholders and not has_image:
        raise PromptError(f"the prompt has {IMAGE_PLACEHOLDER} but no image is given")


def _check_text(prompt: object) -> None:
    """Raise ``PromptError`` for what is no text, or an empty one."""
    if not isinstance(prompt, str):
        raise PromptError(f"the prompt is {type(prompt).__name__}, and must be text")
    if not prompt.strip(SPACES):
        raise PromptError("the prompt is empty")
