"""Command lines: one parser class and one way to run a command, for all commands of the project."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from llava_runner.errors import exit_cleanly


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose flags may be written with underscores or hyphens, but not abbreviated.

    A mistake is one line on stderr and exit code 2.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument("--version", action="version", version=version_line(), help="show the version and exit")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, after underscores in the names of flags became hyphens."""
        return super().parse_known_args(with_hyphens(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        message = " ".join(message.removeprefix("argument ").split())
        print(f"error: {message}; {self.prog} --help lists the options", file=sys.stderr)
        sys.exit(2)


def with_hyphens(arguments: Sequence[str]) -> list[str]:
    """Return a command line with hyphens in the names of its flags: ``--image_path=a_b`` is ``--image-path=a_b``."""
    found: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return [*found, *arguments[i:]]
        name, equals, value = argument.partition("=")
        found.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return found


def positive_int(text: str) -> int:
    """Return an integer of at least 1. To be used as the ``type`` of an argument."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def run_command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None
) -> NoReturn:
    """Parse ``argv``, or the process's own arguments, then call ``run`` with them and exit with its code."""
    arguments = parser.parse_args(argv)
    exit_cleanly(lambda: run(arguments))


def version_line() -> str:
    """Return the versions of what is installed of this project, and of ExecuTorch."""
    found = []
    for name in ("llava-export", "llava-runner", "executorch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # the exporter on a device, or all of it in a checkout that is not installed
            continue
    return ", ".join(found)
