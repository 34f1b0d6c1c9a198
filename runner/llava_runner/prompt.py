"""The text of one turn of a conversation, before and after its image."""

from __future__ import annotations

from llava_runner.contract import IMAGE_PLACEHOLDER, PromptTemplate
from llava_runner.errors import PromptError


def prompt_chunks(
    prompt: str, *, template: PromptTemplate, has_image: bool, first_turn: bool = True
) -> tuple[str, ...]:
    """Return the text of one turn: ``(before, after)`` the image, or ``(text,)`` if there is no image.

    A prompt with ``<image>`` in it is the whole turn, and is only split there. A prompt with the assistant's cue
    (``ASSISTANT:``) in it is used unchanged, after the system sentence, ``USER: `` and the image. Any other prompt is a
    plain question, and the template is put around it.

    Tokenize each part on its own, as in the models' training. Raises ``PromptError`` for an empty prompt, and for
    placeholders that do not match the image.
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
