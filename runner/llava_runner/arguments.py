"""Command lines: one parser class and one way to run a command, for all commands of the project."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from llava_runner.checks import MAX_LOGPROBS, MAX_SEED, MAX_THREADS
from llava_runner.draft import DRAFT_MAX_AT_MOST
from llava_runner.engine_library import ENGINES
from llava_runner.errors import complain, exit_cleanly
from llava_runner.paths import with_home

# The C++ runner reads numbers by the same rules. Python's own functions also take 1_0, spaces, other digits and "nan".
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
REAL_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LARGEST, MAX_DIGITS = 2**31 - 1, 20
UNUSED_DRAFT = (
    "--draft-model-path is not used: the program gives the logits of one token a call, so it can check no guess; "
    "export it again"
)


class ArgumentParser(argparse.ArgumentParser):
    """A parser that takes flags with hyphens or underscores, but not abbreviated. ``llava_main`` reads flags the same.

    What follows a flag that takes one value is its value, even if it begins with a hyphen. Of a flag that is given
    twice, the last counts, unless it collects its values. A mistake is printed as one line on stderr, with exit code 2.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument("--version", action="version", version=version_line(), help="show the version and exit")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does. Print one line and exit if there is an argument too many."""
        found, rest = self.parse_known_args(args, namespace)
        for extra in rest:
            if extra != "--":  # which older Pythons leave there
                self.error(f"'{extra}' is one argument too many")
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Spell each flag in the one way that leaves argparse no choice, then parse as argparse does."""
        return super().parse_known_args(self._spelled_out(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        message = " ".join(message.removeprefix("argument ").split())
        message = re.sub(r"^(?:-\w/)?(--[\w-]+)(?:/--[\w-]+)*: ", r"\1: ", message)  # one name of several
        message = re.sub(r"^the following arguments are required: (?:-\w/)?([^,/]+).*", r"\1 is missing", message)
        complain(f"{message}; {self.prog} --help lists the options")
        sys.exit(2)

    def _spelled_out(self, arguments: Sequence[str]) -> list[str]:
        """Return a command line with each flag as ``--name=value``, or as ``--name`` if it takes no value."""
        found: list[str] = []
        rest = iter(arguments)
        for argument in rest:
            if argument == "--":
                return [*found, argument, *rest]
            if not argument.startswith("-"):
                found.append(argument)
                continue
            name, equals, value = argument.partition("=")
            if name.startswith("--"):
                name = name.replace("_", "-")
            action = self._option_string_actions.get(name)
            if action is None:
                self.error(f"there is no option {name}")
            if action.nargs == 0 and isinstance(action.const, bool):
                if equals and value not in ("true", "false"):
                    self.error(f"{name}: '{value}' is neither true nor false")
                found = [each for each in found if each != name]
                found += [name] if value != "false" else []
            elif action.nargs == 0 and equals:
                self.error(f"{name} takes no value")
            elif action.nargs == 0:
                return [name]  # help or version, whatever else there is
            elif action.nargs is None and not equals:
                following = next(rest, None)
                if following is None:
                    self.error(f"{name} needs a value")
                found.append(f"{name}={following}")
            else:
                found.append(name + equals + value)
        return found

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Return the value of a flag. Older Pythons lose one that is ``--``."""
        if action.option_strings and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ``ArgumentError`` for a value that is not among the choices, in the same words in every Python."""
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"'{value}' is unknown; choose from {choices}")


def whole_number(text: str) -> int:
    """Return an integer of 32 bits. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    value = _integer(text)
    if abs(value) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is out of range")
    return value


def positive_int(text: str) -> int:
    """Return an integer of at least 1. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def thread_count(text: str) -> int:
    """Return a number of threads. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    value = whole_number(text)
    if not 1 <= value <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{value} must be from 1 to {MAX_THREADS}")
    return value


def logprob_count(text: str) -> int:
    """Return how many likely tokens to tell. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    value = whole_number(text)
    if not 0 <= value <= MAX_LOGPROBS:
        raise argparse.ArgumentTypeError(f"{value} must be from 0 to {MAX_LOGPROBS}")
    return value


def draft_count(text: str) -> int:
    """Return how many tokens to guess at a time. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    value = whole_number(text)
    if not 0 <= value <= DRAFT_MAX_AT_MOST:
        raise argparse.ArgumentTypeError(f"{value} must be from 0 to {DRAFT_MAX_AT_MOST}")
    return value


def seed(text: str) -> int:
    """Return a seed for sampling. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    value = _integer(text)
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to 2^64 - 1")
    return value


def real_number(text: str) -> float:
    """Return a finite number. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    if not REAL_NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    value = float(text)
    if math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is out of range")
    return value


def _integer(text: str) -> int:
    """Return an integer. One of very many digits, which Python would take long to read, becomes one of fewer."""
    if not WHOLE_NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    digits = text.lstrip("+-0") or "0"
    return (-1 if text.startswith("-") else 1) * int(digits if len(digits) <= MAX_DIGITS else digits[: MAX_DIGITS + 1])


def path(text: str) -> Path:
    """Return a path. For the ``type`` of an argument: raises ``ArgumentTypeError`` if it is empty.

    An empty path is most often a variable of the shell that is not set. A shell expands ``~``, but not in
    ``--flag=~/path``.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return with_home(text)


def depths(text: str) -> tuple[int, ...]:
    """Return the depths in a list like ``0,600``. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    found = text.split(",")
    if not all(map(WHOLE_NUMBER.fullmatch, found)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of whole numbers like 0,600")
    return tuple(map(whole_number, found))


def add_image_and_threads(parser: argparse.ArgumentParser, *, image_help: str, several: bool = False) -> None:
    """Add ``--image`` and ``--threads``, each also by its older name. With ``several``, the images are a list."""
    many: dict[str, Any] = {"action": "append", "default": []} if several else {}
    parser.add_argument("--image", "--image-path", type=path, metavar="PATH", help=image_help, **many)
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``, also by its older name."""
    parser.add_argument(
        "--threads",
        "--cpu-threads",
        type=thread_count,
        metavar="N",
        help="threads to compute with (default: as many as there are fast cores)",
    )


def add_draft_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--draft-model-path``, also by another name."""
    parser.add_argument(
        "--draft-model-path",
        "--model-draft",
        type=path,
        metavar="PATH",
        help="a package with the same tokenizer, whose small model guesses (default: what was said before is looked "
        "up)",
    )


def note_unused_draft(draft_model_path: Path | None, *, logits_to_keep: int) -> None:
    """Print a note if a draft was named for a model that can check no guess."""
    if draft_model_path and logits_to_keep == 1:
        print(f"note: {UNUSED_DRAFT}", file=sys.stderr)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine``."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="what computes: the C++ runner, or ExecuTorch's Python runtime (default: the first where it is built)",
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
