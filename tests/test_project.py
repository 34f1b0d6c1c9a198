"""The project's own files agree with one another."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from llava_export import export
from llava_export.benchmark import __main__ as benchmark
from llava_runner import cli

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings its forerunner
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def pinned() -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_requirements_pin_what_the_project_declares():
    declared = {
        requirement.name: requirement
        for requirement in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    }
    assert {requirement.name for requirement in pinned()} == declared.keys()
    for requirement in pinned():
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert declared[requirement.name].specifier.contains(specifier.version), requirement


def commands(program: str) -> list[list[str]]:
    """Arguments of every call of a program in the README's code blocks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    shown = [block.replace("\\\n", " ") for language, block in blocks if language == "console"]
    lines = [line.partition("$ ")[2] for block in shown for line in block.splitlines()]
    return [
        shlex.split(line, comments=True)[len(program.split()) :] for line in lines if line.startswith(program + " ")
    ]


@pytest.mark.parametrize(
    ("program", "parser"),
    [
        ("python -m llava_export.export", export.build_parser()),
        ("python -m llava_export.benchmark", benchmark.build_parser()),
        ("llava-run", cli.build_parser()),
    ],
    ids=["export", "benchmark", "llava-run"],
)
def test_readme_commands_parse(program, parser):
    found = commands(program)
    assert found
    for arguments in found:
        parser.parse_args(arguments)


def test_changelog_has_this_version():
    assert f"## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text()
