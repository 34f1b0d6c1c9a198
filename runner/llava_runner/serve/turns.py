"""The messages of a request as turns of a conversation: questions with their images, and answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from llava_runner.serve.refusal import unusable
from llava_runner.serve.schema import MAX_IMAGES, ContentPart, Message

SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class PreparedImage:
    """An image as the vision encoder reads it. Equal ones have the same digest.

    ``pixels`` are ``uint8 [3, H, W]``. A conversation that is only remembered has the digest alone.
    """

    digest: bytes
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, pixels: np.ndarray) -> PreparedImage:
        """Return the image with these pixels."""
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(pixels.tobytes())
        return cls(digest.digest(), pixels)

    def remembered(self) -> PreparedImage:
        """Return the image without its pixels."""
        return PreparedImage(self.digest)


@dataclass(frozen=True)
class Question:
    """What the user says in one turn. Its images come where the model's template has them."""

    text: str
    images: tuple[PreparedImage, ...] = ()


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: Question
    answer: str

    def remembered(self) -> Turn:
        """Return the turn without pixels."""
        images = tuple(image.remembered() for image in self.question.images)
        return Turn(Question(self.question.text, images), self.answer)


@dataclass(frozen=True)
class Dialogue:
    """The turns so far, and the question to answer now."""

    past: tuple[Turn, ...]
    question: Question


def image_urls(messages: Sequence[Message]) -> list[str]:
    """Return the URLs of all images, in order. Raises ``Refusal`` for too many, and where an answer has one."""
    found = []
    for i, message in enumerate(messages):
        for j, part in enumerate(_parts(message)):
            place = f"messages[{i}].content[{j}]"
            if part.type == "text" and part.text is None:
                raise unusable("a part of type text needs a text", param=place)
            if part.type == "image_url":
                if part.image_url is None:
                    raise unusable("a part of type image_url needs an image_url with a url", param=place)
                if message.role != "user":
                    raise unusable("only messages of the user can have images", param=place)
                found.append(part.image_url.url)
    if len(found) > MAX_IMAGES:
        raise unusable(f"there are {len(found)} images; at most {MAX_IMAGES} are taken", param="messages")
    return found


def dialogue(messages: Sequence[Message], images: Sequence[PreparedImage]) -> Dialogue:
    """Return the conversation of messages, whose images are given in order.

    System messages come first, and are put before the first question: the model's template has its own system
    sentence. Raises ``Refusal`` where questions and answers do not alternate, or the last message is no question.
    """
    system = []
    rest = list(enumerate(messages))
    while rest and rest[0][1].role in SYSTEM_ROLES:
        system.append(_text(rest.pop(0)[1]))
    for place, (i, message) in enumerate(rest):
        _check_role(message, i, expected="assistant" if place % 2 else "user")
    if len(rest) % 2 == 0:
        raise unusable("the last message must be one of the user", param="messages")
    following = iter(images)
    questions = [_question(message, lambda: next(following)) for _, message in rest[::2]]
    first = "\n\n".join(text for text in (*system, questions[0].text) if text)
    questions[0] = Question(first, questions[0].images)
    answers = [_text(message) for _, message in rest[1::2]]
    past = tuple(Turn(question, answer) for question, answer in zip(questions, answers, strict=False))
    return Dialogue(past, questions[-1])


def _check_role(message: Message, place: int, *, expected: str) -> None:
    """Raise ``Refusal`` for a message that is not of the role that is due."""
    if message.role in SYSTEM_ROLES:
        raise unusable("a system message must come before all others", param=f"messages[{place}].role")
    if message.role != expected:
        raise unusable(
            f"messages of user and assistant must alternate, and this one must be of the {expected}",
            param=f"messages[{place}].role",
        )


def _question(message: Message, next_image: Callable[[], PreparedImage]) -> Question:
    """Return what the user says in a message."""
    images = tuple(next_image() for part in _parts(message) if part.type == "image_url")
    return Question(_text(message), images)


def _text(message: Message) -> str:
    """Return the text of a message. Several parts are lines."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text or "" for part in message.content if part.type == "text")


def _parts(message: Message) -> list[ContentPart]:
    """Return the parts of a message, none where it is only a text."""
    return [] if isinstance(message.content, str) else message.content
