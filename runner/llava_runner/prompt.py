"""The text of one turn of a conversation, around its images."""

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


# The text before, between or after images, or of a turn without one. Its parts are tokenized as one text.
Chunk = tuple[Span, ...]


def prompt_chunks(prompt: str, *, template: PromptTemplate, num_images: int) -> tuple[Chunk, ...]:
    """Return the text of a first turn, in one chunk more than it has images: each image stands between two.

    A prompt with ``<image>`` in it is the whole turn, and is only split there. A prompt with the assistant's cue
    (``ASSISTANT:``) in it is used unchanged, after the system sentence, ``USER: `` and the images with their start and
    end. Special tokens are recognized in both. Any other prompt is a plain question, and the template is put around it.

    Raises ``PromptError`` as ``check_prompt`` does.
    """
    check_prompt(prompt, num_images=num_images)
    if IMAGE_PLACEHOLDER in prompt:
        return tuple(_chunk(text) for text in prompt.split(IMAGE_PLACEHOLDER))
    if template.assistant.strip(SPACES) in prompt:
        return _with_images(_chunk(template.system + template.user), _chunk(prompt), template, num_images)
    return question_chunks(prompt, template=template, num_images=num_images, first_turn=True)


def question_chunks(question: str, *, template: PromptTemplate, num_images: int, first_turn: bool) -> tuple[Chunk, ...]:
    """Return the text of a turn as ``prompt_chunks`` does, with the template around it whatever the question has in it.

    A later turn begins with the end of the answer before. Raises ``PromptError`` for an empty question.
    """
    _check_text(question)
    asked = Span(question.strip(TRIMMED) if template.trims else question, is_template=False)
    before = _chunk((template.system if first_turn else template.answer_end) + template.user)
    after = _chunk(template.assistant)
    if template.image_last:
        return _with_images((*before, asked), after, template, num_images, front=template.image_separator)
    return _with_images(before, (asked, *after), template, num_images, back=template.image_separator)


def check_prompt(prompt: str, *, num_images: int) -> None:
    """Raise ``PromptError`` for an empty prompt, and for one with ``<image>``, but not as often as there are images."""
    _check_text(prompt)
    placeholders = prompt.count(IMAGE_PLACEHOLDER)
    if placeholders and not num_images:
        raise PromptError(f"the prompt has {IMAGE_PLACEHOLDER} but no image is given")
    if placeholders not in (0, num_images):
        raise PromptError(
            f"the prompt has {IMAGE_PLACEHOLDER} {placeholders} times, and the number of images is {num_images}"
        )


def chunk_text(chunk: Chunk) -> str:
    """Return the text of a chunk."""
    return "".join(span.text for span in chunk)


def _chunk(text: str) -> Chunk:
    """Return a chunk of the template's text, which may be empty."""
    return (Span(text, is_template=True),) if text else ()


def _with_images(
    before: Chunk, after: Chunk, template: PromptTemplate, num_images: int, *, front: str = "", back: str = ""
) -> tuple[Chunk, ...]:
    """Return the chunks around images that stand between two texts.

    Each image has the template's start and end around it, and ``front`` and ``back`` around these.
    """
    chunks = [before]
    for _ in range(num_images):
        chunks[-1] = (*chunks[-1], *_chunk(front + template.image_start))
        chunks.append(_chunk(template.image_end + back))
    return *chunks[:-1], (*chunks[-1], *after)


def _check_text(prompt: object) -> None:
    """Raise ``PromptError`` for what is no text, or an empty one."""
    if not isinstance(prompt, str):
        raise PromptError(f"the prompt is {type(prompt).__name__}, and must be text")
    if not prompt.strip(SPACES):
        raise PromptError("the prompt is empty")
