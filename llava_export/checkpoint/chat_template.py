"""The prompt of a checkpoint: its chat template, a Jinja program, as the four pieces of text that the runners have.

Runners have no Jinja. So a template is asked for a few conversations here, and taken apart where the questions and
answers stand. Further conversations, put together from the pieces, must be what the template makes of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_export.errors import CheckpointError
from llava_runner.contract import IMAGE_PLACEHOLDER, PromptTemplate
from llava_runner.documents import read_object

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# The files in which transformers looks for a template, and the keys there; the first that is found counts.
FILES = (
    ("chat_template.jinja", None),
    ("chat_template.json", "chat_template"),
    ("processor_config.json", "chat_template"),
    ("tokenizer_config.json", "chat_template"),
)


@dataclass(frozen=True)
class Turn:
    """A question, with an image or without, and the answer; None for the answer that is still to come."""

    question: str
    answer: str | None = None
    has_image: bool = False


# What pieces are found from, and what they are tried with.
FIRST = (Turn("Qaa", has_image=True),)
FIRST_WITHOUT_IMAGE = (Turn("Qaa"),)
THREE = (Turn("Qaa", "Abb", has_image=True), Turn("Qcc", "Add"), Turn("Qee"))
PROBES = (
    (Turn("What is this?", "A blue circle.", has_image=True), Turn("Where?", "Left.", has_image=True), Turn("Sure?")),
    (Turn("Two\nlines, and 'quotes'", '{"a": [1]}'), Turn("{{ no }} {% code %}", has_image=True)),
    (Turn("Ünïcödé \N{GRINNING FACE}", "\N{CJK UNIFIED IDEOGRAPH-7334}"), Turn("last")),
)


@dataclass(frozen=True)
class ChatTemplate:
    """The text of a Jinja template, and the file that it was found in."""

    text: str
    path: Path


def find_chat_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template in a checkpoint's folder, or None. Raises ``CheckpointError`` if it is not text.

    Where a file has several templates by name, the one named ``default`` is taken.
    """
    for name, key in FILES:
        path = folder / name
        if not path.is_file():
            continue
        if key is None:
            return read_template(path)
        found = read_object(path, error=CheckpointError).get(key)
        if isinstance(found, list):
            found = {it.get("name"): it.get("template") for it in found if isinstance(it, Mapping)}
        if isinstance(found, Mapping):
            found = found.get("default")
        if isinstance(found, str):
            return ChatTemplate(found, path)
        if found is not None:
            raise CheckpointError(f"{path}: {key} is {type(found).__name__}, not text")
    return None


def read_template(path: Path) -> ChatTemplate:
    """Return the template that is a file. Raises ``CheckpointError`` if it is not text."""
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from error


@dataclass(frozen=True)
class SpecialTokens:
    """The texts of a checkpoint's special tokens: of the beginning, of the end, of an image, and of all others."""

    bos: str
    eos: str
    image: str = IMAGE_PLACEHOLDER
    others: Collection[str] = ()


def prompt_template(chat_template: ChatTemplate, *, tokens: SpecialTokens) -> PromptTemplate:
    """Return the pieces that make the same conversations as a chat template.

    Raises ``CheckpointError`` for a template that is no Jinja, fails, or makes conversations that the pieces cannot.
    """
    where = chat_template.path
    render = _Renderer(chat_template, tokens)
    before, rest = _split(render(FIRST), tokens.image, where=where)
    image_suffix, assistant = _split(rest, FIRST[0].question, where=where)
    rest = render(THREE)
    gaps = []  # before the first question, between it and its answer, and so on
    for text in (text for turn in THREE for text in (turn.question, turn.answer) if text):
        gap, rest = _split(rest, text, where=where)
        gaps.append(gap)
    # Spaces around an answer are up to the model.
    before_answer = gaps[1].removeprefix(assistant)
    after_answer, eos, user = gaps[2].partition(tokens.eos)
    if not eos or (before_answer + after_answer).strip(" "):
        raise _inexpressible(chat_template, f"an answer stands between {gaps[1]!r} and {gaps[2]!r}")
    if not before.endswith(user):
        raise _inexpressible(chat_template, f"the first question follows {before!r}, and later ones {user!r}")
    template = PromptTemplate(
        system=before[: len(before) - len(user)], user=user, assistant=assistant, image_suffix=image_suffix
    )
    for piece in (before, image_suffix, assistant):
        for token in (tokens.bos, tokens.eos, *tokens.others):
            if token and token in piece:
                raise _inexpressible(chat_template, f"it has the special token {token} in {piece!r}")
    for turns in (FIRST, FIRST_WITHOUT_IMAGE, THREE, *PROBES):
        text = template.system
        for turn in turns:
            text += user + (tokens.image + image_suffix if turn.has_image else "") + turn.question + assistant
            if turn.answer is not None:
                text += before_answer + turn.answer + after_answer + eos
        _compare(chat_template, render(turns), text)
    return template


def conversation(chat_template: ChatTemplate, turns: Sequence[Turn], *, tokens: SpecialTokens) -> str:
    """Return what a chat template makes of a conversation, without the token at its beginning.

    Raises ``CheckpointError`` if the template is no Jinja, or fails.
    """
    return _Renderer(chat_template, tokens)(turns)


class _Renderer:
    """Makes conversations by a chat template. The content of a message is a list of parts, or text, as it likes."""

    def __init__(self, chat_template: ChatTemplate, tokens: SpecialTokens) -> None:
        """Compile the template. Raises ``CheckpointError`` if it is no Jinja."""
        from jinja2 import TemplateSyntaxError

        self._where = chat_template.path
        self._tokens = tokens
        try:
            self._template = _environment().from_string(chat_template.text)
        except TemplateSyntaxError as error:
            raise CheckpointError(f"{self._where} is not a Jinja template: line {error.lineno}: {error}") from error
        self._in_parts = True
        try:
            text = self(FIRST)
            self._in_parts = "{'type'" not in text and tokens.image in text  # not a printed list
        except CheckpointError:
            self._in_parts = False

    def __call__(self, turns: Sequence[Turn]) -> str:
        """Return a conversation without its first token. Raises ``CheckpointError`` if the template fails."""
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": self._content(turn.question, has_image=turn.has_image)})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": self._content(turn.answer, has_image=False)})
        try:
            text = self._template.render(
                messages=messages,
                add_generation_prompt=True,
                bos_token=self._tokens.bos,
                eos_token=self._tokens.eos,
                tools=None,
                documents=None,
            )
        except Exception as error:  # of any kind: the template is a program
            raise CheckpointError(f"{self._where} fails: {type(error).__name__}: {error}") from error
        return text.removeprefix(self._tokens.bos)

    def _content(self, text: str, *, has_image: bool) -> Any:
        if self._in_parts:
            return [*([{"type": "image"}] if has_image else []), {"type": "text", "text": text}]
        return f"{self._tokens.image}\n{text}" if has_image else text


def _environment() -> ImmutableSandboxedEnvironment:
    """Return Jinja as transformers sets it up for chat templates, in a sandbox."""
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    class Generation(Extension):
        """The tag ``generation``, with which transformers marks answers for training. What it encloses stays."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _split(text: str, at: str, *, where: Path) -> tuple[str, str]:
    """Return what stands before and after ``at``. Raises ``CheckpointError`` if it is not there just once."""
    if text.count(at) != 1:
        raise CheckpointError(f"{where} makes {text!r} of a conversation, which has {at} {text.count(at)} times")
    before, _, after = text.partition(at)
    return before, after


def _compare(chat_template: ChatTemplate, expected: str, found: str) -> None:
    """Raise ``CheckpointError``, with a diff, unless the conversations are equal."""
    if expected != found:
        before, after = expected.splitlines(), found.splitlines()
        diff = "\n".join(difflib.unified_diff(before, after, "the template", "the runners", lineterm="", n=1))
        raise _inexpressible(chat_template, f"a conversation would differ:\n{diff}")


def _inexpressible(chat_template: ChatTemplate, why: str) -> CheckpointError:
    return CheckpointError(
        f"{chat_template.path} makes prompts that the runners cannot: {why}. Choose a prompt with --prompt-template"
    )
