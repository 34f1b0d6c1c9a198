"""Command lines: one parser class and one way to run a command, for all commands of the project."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from llava_runner.errors import exit_cleanly

MAX_THREADS = 1024  # far more only take memory, and end the process when that is used up


class ArgumentParser(argparse.ArgumentParser):
    """A parser that takes flags with hyphens or underscores, but not abbreviated.

    A mistake is printed as one line on stderr, with exit code 2.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument("--version", action="version", version=version_line(), help="show the version and exit")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Replace the underscores in the names of flags by hyphens, then parse as argparse does."""
        return super().parse_known_args(with_hyphens(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        message = " ".join(message.removeprefix("argument ").split())
        message = re.sub(r"^(?:-\w/)?(--[\w-]+)(?:/--[\w-]+)*: ", r"\1: ", message)  # one name of several
        if message.endswith("expected one argument"):
            message += " (a value that begins with a hyphen is written --flag=value)"
        print(f"error: {message}; {self.prog} --help lists the options", file=sys.stderr)
        sys.exit(2)


def with_hyphens(arguments: Sequence[str]) -> list[str]:
    """Return a command line with hyphens in the names of its flags.

    Values keep their underscores: ``--image_path=a_b`` becomes ``--image-path=a_b``.
    """
    found: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return [*found, *arguments[i:]]
        name, equals, value = argument.partition("=")
        found.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return found


def positive_int(text: str) -> int:
    """Return an integer of at least 1. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def thread_count(text: str) -> int:
    """Return a number of threads. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    value = positive_int(text)
    if value > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{value} must be at most {MAX_THREADS}")
    return value


def path(text: str) -> Path:
    """Return a path. For the ``type`` of an argument: raises ``ArgumentTypeError`` if it is empty.

    An empty path is most often a variable of the shell that is not set.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def depths(text: str) -> tuple[int, ...]:
    """Return the depths in a list like ``0,600``. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    try:
        return tuple(int(depth) for depth in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 0,600") from None


def add_image_and_threads(parser: argparse.ArgumentParser, *, image_help: str) -> None:
    """Add ``--image`` and ``--threads``, each also by its older name."""
    parser.add_argument("--image", "--image-path", type=path, metavar="PATH", help=image_help)
    parser.add_argument(
        "--threads",
        "--cpu-threads",
        type=thread_count,
        metavar="N",
        help="threads to compute with (default: as many as there are fast cores)",
    )


def run_command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None
) -> NoReturn:
    """Parse ``argv``, or the process's own arguments if it is None. Call ``run`` with them and exit with its code."""

    def parse_and_run() -> int | None:
        try:
            arguments = parser.parse_args(argv)  # which looks at files, too, and prints help and version
        except SystemExit as stop:
            return int(stop.code or 0)
        return run(arguments)

    exit_cleanly(parse_and_run)


def version_line() -> str:
    """Return one line with the versions of ExecuTorch and of the packages of this project that are installed."""
    found = []
    for name in ("llava-export", "llava-runner", "executorch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # a device has no exporter, and a checkout need not be installed
            continue
    return ", ".join(found)
