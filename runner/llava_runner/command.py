"""The console script ``llava``, which finds a subcommand and runs it.

``llava run`` and ``llava serve`` are this package's own. Another distribution adds subcommands by the entry point
``commands`` of the group ``llava``: a sequence of ``Command``. ``llava_export`` does. So the runner needs to know
nothing of the exporter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import NoReturn

from llava_runner.errors import complain, exit_cleanly

EPILOG = """
llava COMMAND --help explains a command.
Flags may be written with hyphens or underscores.

example, without a download:
  llava export --model tiny-llava --output-dir demo --with-artifacts
  llava verify demo
  llava run demo --image demo/image.png --prompt "What is in the image?"
"""
ALONE = """
The other commands, like llava export, come with llava-export. Only llava-runner
is installed here. llava run --help explains the command.
Flags may be written with hyphens or underscores.

example:
  llava run package --image photo.jpg --prompt "What is in the image?"
"""


@dataclass(frozen=True)
class Command:
    """A subcommand: its name, the module whose ``main(argv, prog=...)`` runs it, and a summary for the help page."""

    name: str
    module: str
    summary: str


RUN = Command("run", "llava_runner.cli", "ask a package about an image")
SERVE = Command("serve", "llava_runner.serve.cli", "open a page and OpenAI's API on a package")


def installed_commands() -> tuple[Command, ...]:
    """Return the subcommands of what is installed, in the order of the help page."""
    found = [RUN, SERVE]
    for point in entry_points(group="llava", name="commands"):
        found = list(point.load())  # with these where they belong among them
    return tuple(found)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``llava`` with ``argv``, or with the process's own arguments, and exit."""
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    commands = {command.name: command for command in installed_commands()}
    if name == "help" and arguments:
        name, arguments = arguments[0], ["--help"]
    if name in ("-h", "--help", "help"):
        exit_cleanly(lambda: print(usage(tuple(commands.values()))))
    if name == "--version":
        from llava_runner.arguments import version_line

        exit_cleanly(lambda: print(version_line()))
    if name not in commands:
        alone = "" if _has_exporter(tuple(commands.values())) else "; the others come with llava-export"
        complain(f"{name!r} is not a command; choose from {', '.join(commands)}{alone}")
        sys.exit(2)
    import_module(commands[name].module).main(arguments, prog=f"llava {name}")
    raise AssertionError("a command exits by itself")


def usage(commands: Sequence[Command]) -> str:
    """Return the help page of ``llava``."""
    lines = ["usage: llava COMMAND [option ...]", "", "LLaVA vision-language models on a device.", "", "commands:"]
    lines += [f"  {command.name:<10} {command.summary}" for command in commands]
    return "\n".join(lines) + "\n" + (EPILOG if _has_exporter(commands) else ALONE).rstrip()


def _has_exporter(commands: Sequence[Command]) -> bool:
    """Return whether there are commands of other distributions, too."""
    return any(command not in (RUN, SERVE) for command in commands)


if __name__ == "__main__":
    main()
