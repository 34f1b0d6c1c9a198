"""The text of one turn of a conversation, before and after its image."""

from __future__ import annotations

from dataclasses import dataclass

from llava_runner.contract import IMAGE_PLACEHOLDER, PromptTemplate
from llava_runner.errors import PromptError

SPACES = " \t\n\r\f\v"  # the same in the C++ runner: Python's strip() knows more of them
# What a chat template's ``trim`` removes: Python's own idea of spaces.
TRIMMED = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class Span:
    """A part of a turn's text. Only in what ``is_template``, special tokens are tokens: a user's text is text."""

    text: str
    is_template: bool


# The text before an image, after it, or of a turn without one. Its parts are tokenized as one text.
Chunk = tuple[Span, ...]


def prompt_chunks(prompt: str, *, template: PromptTemplate, has_image: bool) -> tuple[Chunk, ...]:
    """Return the text of a first turn: ``(before, after)`` the image, or ``(text,)`` if there is no image.

    A prompt with ``<image>`` in it is the whole turn, and is only split there. A prompt with the assistant's cue
    (``ASSISTANT:``) in it is used unchanged, after the system sentence, ``USER: `` and the image with its start and
    end. Special tokens are recognized in both. Any other prompt is a plain question, and the template is put around it.

    Raises ``PromptError`` as ``check_prompt`` does.
    """
    check_prompt(prompt, has_image=has_image)
    if IMAGE_PLACEHOLDER in prompt:
        return tuple(_chunk(text) for text in prompt.split(IMAGE_PLACEHOLDER))
    if template.assistant.strip(SPACES) in prompt:
        before = template.system + template.user
        if not has_image:
            return (_chunk(before + prompt),)
        return _chunk(before + template.image_start), _chunk(template.image_end + prompt)
    return question_chunks(prompt, template=template, has_image=has_image, first_turn=True)


def question_chunks(question: str, *, template: PromptTemplate, has_image: bool, first_turn: bool) -> tuple[Chunk, ...]:
    """Return the text of a turn as ``prompt_chunks`` does, with the template around it whatever the question has in it.

    A later turn begins with the end of the answer before. Raises ``PromptError`` for an empty question.
    """
    _check_text(question)
    asked = Span(question.strip(TRIMMED) if template.trims else question, is_template=False)
    before = (template.system if first_turn else template.answer_end) + template.user
    if not has_image:
        return ((*_chunk(before), asked, *_chunk(template.assistant)),)
    start, end, separator = template.image_start, template.image_end, template.image_separator
    if template.image_last:
        return (*_chunk(before), asked, *_chunk(separator + start)), _chunk(end + template.assistant)
    return _chunk(before + start), (*_chunk(end + separator), asked, *_chunk(template.assistant))


def check_prompt(prompt: str, *, has_image: bool) -> None:
    """Raise ``PromptError`` for an empty prompt, and for placeholders that do not match the image."""
    _check_text(prompt)
    placeholders = prompt.count(IMAGE_PLACEHOLDER)
    if placeholders > 1:
        raise PromptError(f"the prompt has {IMAGE_PLACEHOLDER} {placeholders} times; a turn takes one image")
    if placeholders and not has_image:
        raise PromptError(f"the prompt has {IMAGE_PLACEHOLDER} but no image is given")


def chunk_text(chunk: Chunk) -> str:
    """Return the text of a chunk."""
    return "".join(span.text for span in chunk)


def _chunk(text: str) -> Chunk:
    """Return a chunk of the template's text, which may be empty."""
    return (Span(text, is_template=True),) if text else ()


def _check_text(prompt: object) -> None:
    """Raise ``PromptError`` for what is no text, or an empty one."""
    if not isinstance(prompt, str):
        raise PromptError(f"the prompt is {type(prompt).__name__}, and must be text")
    if not prompt.strip(SPACES):
        raise PromptError("the prompt is empty")
