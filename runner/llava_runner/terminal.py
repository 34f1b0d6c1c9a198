"""A conversation on a terminal: questions on stdin, one a line, and three commands. ``llava_main`` has the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO

from llava_runner.errors import ImageError, PromptError, complain
from llava_runner.image import load_image
from llava_runner.image.kinds import ImageSource
from llava_runner.paths import with_home
from llava_runner.prompt import SPACES

MAX_LINE = 1 << 16  # bytes; no context holds a longer question
WORD_AND_REST = re.compile(r"^([^ \t\n\r\f\v]*)[ \t\n\r\f\v]*(.*?)[ \t\n\r\f\v]*$", re.DOTALL)
COMMANDS = "/image PATH, /reset and /quit"

Ask = Callable[[Sequence[ImageSource], str], None]


def converse(
    lines: BinaryIO, *, images: Sequence[ImageSource], ask: Ask, reset: Callable[[], None], cue: str = "> "
) -> None:
    """Take questions from ``lines`` until they end, or until ``/quit``.

    ``ask`` is called with each question, and with the images that were named since the last question. ``reset`` is
    called for ``/reset``. A line that cannot be used is told on stderr, and the conversation goes on. ``cue`` is
    printed before each line is read, and the last is followed by a new line; an empty one leaves stdout to the answers.
    """
    while True:
        print(cue, end="", flush=True)
        try:
            line = read_line(lines)
            if line is None:
                print("\n" if cue else "", end="")
                return
            command, rest = WORD_AND_REST.findall(line)[0]
            if command == "/quit":
                return
            if command == "/reset":
                reset()
                images = ()
                print("note: all is forgotten, the image too", file=sys.stderr)
            elif command == "/image":
                images = [open_image(rest)]
                print(f"note: the next question is about {rest}", file=sys.stderr)
            elif command.startswith("/"):
                raise PromptError(f"{command} is no command; {COMMANDS} are. A space before it makes it a question.")
            elif not line.strip(SPACES):
                raise PromptError("the question is empty; /quit ends the conversation")
            else:
                shown, images = images, ()
                try:
                    ask(shown, line)
                except PromptError:
                    images = shown  # for the next question
                    raise
        except (PromptError, ImageError) as error:
            complain(str(error))


def open_image(path: str) -> ImageSource:
    """Return the image in a file. Raises ``PromptError`` if none is named, and ``ImageError`` for the file's faults."""
    if not path:
        raise PromptError("/image takes the path of an image")
    try:
        return load_image(with_home(path))
    except OSError as error:  # such as a name that is too long
        raise ImageError(f"{path}: {error.strerror}") from error


def read_line(lines: BinaryIO) -> str | None:
    """Return the next line without its end, or None after the last.

    Raises ``PromptError`` for a line of more than ``MAX_LINE`` bytes, which is read to its end, and for one that is not
    UTF-8 or has a zero byte.
    """
    line = lines.readline(MAX_LINE + 1)
    if not line:
        return None
    if len(line) > MAX_LINE and not line.endswith(b"\n"):
        while line and not line.endswith(b"\n"):
            line = lines.readline(MAX_LINE)
        raise PromptError(f"the line has more than {MAX_LINE} bytes")
    line = line.rstrip(b"\r\n")
    if b"\0" in line:
        raise PromptError(f"the line has a zero byte, at byte {line.index(0)}")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise PromptError(f"the line is not UTF-8 at byte {error.start}") from None
