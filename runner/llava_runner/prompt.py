"""How a turn of a conversation is spelled around its image."""

from __future__ import annotations

from llava_runner.contract import IMAGE_PLACEHOLDER, PromptTemplate
from llava_runner.errors import PromptError


def prompt_chunks(
    prompt: str, *, template: PromptTemplate, has_image: bool, first_turn: bool = True
) -> tuple[str, ...]:
    """Spell one turn: ``(text,)`` without an image, ``(before, after)`` the image with one.

    Three kinds of prompt: one with ``<image>`` in it spells the whole turn itself and is only split there; one with
    the assistant's cue (``ASSISTANT:``) in it is what follows the image, literally; any other is a plain question,
    which gets the template around it. Each chunk is to be tokenized on its own, as the models were trained.

    Raises ``PromptError`` for an empty prompt, and for placeholders that do not match the image given.
    """
    if not prompt.strip():
        raise PromptError("the prompt is empty")
    placeholders = prompt.count(IMAGE_PLACEHOLDER)
    if placeholders > 1:
        raise PromptError(f"the prompt has {IMAGE_PLACEHOLDER} {placeholders} times; a turn takes one image")
    if placeholders and not has_image:
        raise PromptError(f"the prompt has {IMAGE_PLACEHOLDER} but no image is given")
    if placeholders:
        return tuple(prompt.split(IMAGE_PLACEHOLDER))

    before = template.system + template.user if first_turn else template.user
    after = prompt
    if template.assistant.strip() not in prompt:
        after = (template.image_suffix if has_image else "") + prompt.strip() + template.assistant
    return (before, after) if has_image else (before + after,)
