"""The prompt of a checkpoint: its chat template, a Jinja program, as the pieces of text that the runners have.

Runners have no Jinja. So a template is asked for a few conversations here, and taken apart where the questions and
answers stand. Further conversations, put together from the pieces, must be what the template makes of them.
"""

from __future__ import annotations

import difflib
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_export.errors import CheckpointError
from llava_export.families.prompts import ChatPrompt
from llava_runner.contract import IMAGE_PLACEHOLDER, PromptTemplate
from llava_runner.documents import read_object, shown

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# The files in which transformers looks for a template, and the keys there; the first that is found counts.
FILES = (
    ("processor_config.json", "chat_template"),
    ("chat_template.json", "chat_template"),
    ("chat_template.jinja", None),
    ("additional_chat_templates/default.jinja", None),
    ("tokenizer_config.json", "chat_template"),
)

MAX_BYTES = 1 << 20  # of a template; published ones have a few thousand
MAX_SHOWN = 1000  # characters of a conversation in an error


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
    (Turn("first", "one"), Turn("  between spaces\n", "two"), Turn("\tlast ")),
    (*(Turn(f"Q{i}", f"A{i}", has_image=i % 2 > 0) for i in range(4)), Turn("Q4")),
)
SPACED = (Turn(" \tQaa\n ", has_image=True),)
SYSTEM = "Saa"
MAX_SECONDS = 5  # for a conversation, which takes a millisecond


@dataclass(frozen=True)
class ChatTemplate:
    """The text of a Jinja template, and the file that it was found in."""

    text: str
    path: Path


def find_chat_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template in a checkpoint's folder, or None.

    Where a file has several templates by name, the one named ``default`` is taken. Raises ``CheckpointError`` if none
    of them is, and for what is not text.
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
        if isinstance(found, Mapping) and found:
            if "default" not in found:
                names = ", ".join(map(shown, found))
                raise CheckpointError(
                    f"{path}: {key} has the templates {names}, and none is named default. Choose a prompt with "
                    "--prompt-template"
                )
            found = found["default"]
        if isinstance(found, str):
            return ChatTemplate(found, path)
        if found not in (None, {}):
            raise CheckpointError(f"{path}: {key} is {type(found).__name__}, not text")
    return None


def read_template(path: Path) -> ChatTemplate:
    """Return the template that is a file. Raises ``CheckpointError`` if it is not text, or too long."""
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} is no chat template: it is larger than {MAX_BYTES:,} bytes")
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


def chat_prompt(chat_template: ChatTemplate, *, tokens: SpecialTokens) -> ChatPrompt:
    """Return the pieces that make the same conversations as a chat template.

    Raises ``CheckpointError`` for a template that is no Jinja, fails, or makes conversations that the pieces cannot.
    """
    where = chat_template.path
    render = _Renderer(chat_template, tokens)
    first, question = render(FIRST), FIRST[0].question
    image_last = question in first.partition(tokens.image)[0]
    between = (question, tokens.image) if image_last else (tokens.image, question)
    before, rest = _split(first, between[0], where=where)
    image_separator, assistant = _split(rest, between[1], where=where)
    rest = render(THREE)
    gaps = []  # before the first question, between it and its answer, and so on
    for text in (text for turn in THREE for text in (turn.question, turn.answer) if text):
        gap, rest = _split(rest, text, where=where)
        gaps.append(gap)
    # The model itself writes what stands around an answer up to its last token, so that can be only spaces.
    before_answer = gaps[3].removeprefix(assistant)
    spaces, end, next_user = _split_at_token(gaps[2], {tokens.eos, *tokens.others} - {"", tokens.bos})
    if not gaps[3].startswith(assistant) or (before_answer + spaces).strip():
        raise _inexpressible(chat_template, f"an answer stands between {_cut(gaps[3])!r} and {_cut(gaps[2])!r}")
    user = _common_suffix(before, next_user)
    template = PromptTemplate(
        system=before.removesuffix(user),
        user=user,
        assistant=assistant,
        image_separator=image_separator,
        answer_end=end + next_user.removesuffix(user),
        image_last=image_last,
        trims=question in (spaced := render(SPACED)) and SPACED[0].question not in spaced,
    )
    pieces = ChatPrompt(
        template,
        before_answer=before_answer,
        around_system=_around_system(render, user, tokens),
        is_dated=render.is_dated,
    )
    render.strips_beside_image = template.trims
    for turns in (FIRST, FIRST_WITHOUT_IMAGE, THREE, *PROBES, SPACED):
        _compare(chat_template, render(turns), _assembled(turns, pieces, image=tokens.image, after_answer=spaces))
    return pieces


def _around_system(render: _Renderer, user: str, tokens: SpecialTokens) -> tuple[str, str] | None:
    """Return what stands around a system message, with the first question's ``user`` left out; None if none can be."""
    try:
        text, without = render(FIRST, system=SYSTEM), render(FIRST)
    except CheckpointError:
        return None
    before, found, rest = text.partition(SYSTEM)
    start = without.find(user + tokens.image)
    if not found or start < 0 or not rest.endswith(without[start:]):
        return None
    return before, rest[: len(rest) - len(without[start:])]


def _assembled(turns: Sequence[Turn], pieces: ChatPrompt, *, image: str, after_answer: str) -> str:
    """Return a conversation put together from pieces."""
    it = pieces.template
    text = it.system
    for i, turn in enumerate(turns):
        question = turn.question.strip() if it.trims else turn.question
        if turn.has_image:
            parts = (question, it.image_separator, image) if it.image_last else (image, it.image_separator, question)
            question = "".join(parts)
        text += (it.answer_end if i else "") + it.user + question + it.assistant
        if turn.answer is not None:
            text += pieces.before_answer + turn.answer + after_answer
    return text


def _split_at_token(text: str, tokens: Collection[str]) -> tuple[str, str, str]:
    """Return what stands before the first of some tokens, the token, and the rest. Without one, all is rest."""
    found = [(at, -len(token), token) for token in tokens if (at := text.find(token)) >= 0]
    at, _, token = min(found, default=(0, 0, ""))
    return text[:at], token, text[at + len(token) :]


def _common_suffix(first: str, second: str) -> str:
    """Return the longest end that two texts have in common."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return first[len(first) - length :]


def conversation(chat_template: ChatTemplate, turns: Sequence[Turn], *, tokens: SpecialTokens) -> str:
    """Return what a chat template makes of a conversation.

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
        self.is_dated = False  # whether the template writes today's date
        # Where a message is one text, it is made here. A template that trims it cannot reach what is behind the image.
        self.strips_beside_image = False
        try:
            self._template = _environment(self._date).from_string(chat_template.text)
        except TemplateSyntaxError as error:
            raise CheckpointError(f"{self._where} is not a Jinja template: line {error.lineno}: {error}") from error
        self._in_parts = True
        try:
            text = self(FIRST)
            self._in_parts = "{'type'" not in text and tokens.image in text  # not a printed list
        except CheckpointError:
            self._in_parts = False

    def __call__(self, turns: Sequence[Turn], *, system: str | None = None) -> str:
        """Return a conversation. Raises ``CheckpointError`` if the template fails."""
        messages: list[dict[str, Any]] = []
        if system is not None:
            messages.append({"role": "system", "content": self._content(system, has_image=False)})
        for turn in turns:
            messages.append({"role": "user", "content": self._content(turn.question, has_image=turn.has_image)})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": self._content(turn.answer, has_image=False)})
        try:
            with _time_limit():
                return self._template.render(
                    messages=messages,
                    add_generation_prompt=True,
                    bos_token=self._tokens.bos,
                    eos_token=self._tokens.eos,
                    tools=None,
                    documents=None,
                )
        except Exception as error:  # of any kind: the template is a program
            raise CheckpointError(f"{self._where} fails: {type(error).__name__}: {error}") from error

    def _date(self, form: str) -> str:
        self.is_dated = True
        return datetime.now().strftime(form)

    def _content(self, text: str, *, has_image: bool) -> Any:
        if self._in_parts:
            return [*([{"type": "image"}] if has_image else []), {"type": "text", "text": text}]
        if not has_image:
            return text
        return f"{self._tokens.image}\n{text.strip() if self.strips_beside_image else text}"


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise ``TimeoutError`` if the block takes more than ``MAX_SECONDS``. Only a main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"a conversation takes more than {MAX_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _environment(strftime_now: Callable[[str], str]) -> ImmutableSandboxedEnvironment:
    """Return Jinja as transformers sets it up for chat templates, in a sandbox."""
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
    environment.globals["strftime_now"] = strftime_now
    return environment


def _split(text: str, at: str, *, where: Path) -> tuple[str, str]:
    """Return what stands before and after ``at``. Raises ``CheckpointError`` if it is not there just once."""
    if text.count(at) != 1:
        raise CheckpointError(f"{where} makes {_cut(text)!r} of a conversation, which has {at} {text.count(at)} times")
    before, _, after = text.partition(at)
    return before, after


def _compare(chat_template: ChatTemplate, expected: str, found: str) -> None:
    """Raise ``CheckpointError``, with a diff, unless the conversations are equal."""
    if expected != found:
        before, after = expected.splitlines(), found.splitlines()
        diff = "\n".join(difflib.unified_diff(before, after, "the template", "the runners", lineterm="", n=1))
        raise _inexpressible(chat_template, f"a conversation would differ:\n{_cut(diff)}")


def _cut(text: str) -> str:
    """Return a text for an error, short, however long it is."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} [and {len(text) - MAX_SHOWN:,} more characters]"


def _inexpressible(chat_template: ChatTemplate, why: str) -> CheckpointError:
    return CheckpointError(
        f"{chat_template.path} makes prompts that the runners cannot: {why}. Choose a prompt with --prompt-template"
    )
