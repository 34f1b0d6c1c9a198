"""Mistakes that a user can make. A command prints them as one line and exits with code 2; other errors are our bugs."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn


class UserError(Exception):
    """The base class of all such mistakes. The message says what is wrong, where, and what to do next."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The message as a terminal shows it: one line, and more where there are several reasons."""
        return (str(self),)


class PackageError(UserError):
    """A program, tokenizer or manifest that is missing or damaged, or that does not belong to the others."""


class ImageError(UserError):
    """A file that is not an image, or an image of a size that the model cannot take."""


class StateError(UserError):
    """A saved conversation that cannot be written or read, is damaged, or is of another program."""


class PromptError(UserError):
    """A prompt, or a sampling option, that cannot be used."""


class Terminated(BaseException):
    """The system, or somebody, asked the process to end. Like Ctrl-C it is no ``Exception``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_cleanly(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with the code it returns.

    A ``UserError`` or an ``OSError`` becomes a message on stderr and exit code 2. Where the reader of stdout has gone,
    the exit is silent, with code 141. Ctrl-C gives code 130, and SIGTERM and SIGHUP give 143 and 129, after everything
    that was begun is cleaned up.
    """
    open_standard_streams()
    _print_any_name()
    try:
        with _termination_raises():
            code = main()
            sys.stdout.flush()  # a disk that is full, or a pipe that is closed, is noticed here
    except UserError as error:
        lines = error.lines
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        # The disk is full, a permission is missing, a folder does not exist: not a bug of ours.
        _discard_stdout()
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        lines = (text,)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Terminated as ended:
        sys.exit(128 + ended.number)
    else:
        sys.exit(code)
    complain(*lines)
    sys.exit(2)


def _print_any_name() -> None:
    """Make stdout write what it cannot encode as escapes like \\udcff: names of files need not be UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def complain(*lines: str) -> None:
    """Print a mistake on stderr, each of ``lines`` as one. Where stderr cannot be written there is nobody to tell."""
    with suppress(OSError):
        print("error:", "\n".join(" ".join(line.split()) for line in lines), file=sys.stderr, flush=True)


def open_standard_streams() -> None:
    """Open what is closed of stdin, stdout and stderr to nowhere, as in a service.

    Otherwise the next file that is opened would be one of them, and what is printed would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free: this one
    replace_missing_streams()


def replace_missing_streams() -> None:
    """Give Python a stdout and a stderr that go nowhere where it has none, as in a service."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 -- for as long as the process runs


@contextmanager
def _termination_raises() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise ``Terminated`` while the ``with`` block runs, so that it can clean up.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Further signals do not disturb the cleaning.
    """

    def end(number: int, frame: object) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                previous[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _discard_stdout() -> None:
    """Let what is still in stdout's buffer go nowhere: it cannot be written, and Python would try when it ends."""
    with suppress(AttributeError, OSError, ValueError):  # no stdout, or none of the system's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
