"""The project's own files agree with one another."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement

from llava_export.cli import COMMANDS

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings its forerunner
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNNER = tomllib.loads((ROOT / "runner/pyproject.toml").read_text())["project"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def pinned() -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_requirements_pin_what_the_project_declares():
    texts = PROJECT["dependencies"] + RUNNER["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    declared = {requirement.name: requirement for requirement in map(Requirement, texts)}
    del declared["llava-runner"]  # installed from the folder beside
    assert {requirement.name for requirement in pinned()} == declared.keys()
    for requirement in pinned():
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert declared[requirement.name].specifier.contains(specifier.version), requirement


def test_the_two_distributions_fit_together():
    """The exporter needs the runner of its own version, and both state the same of what both need."""
    assert f"llava-runner=={RUNNER['version']}" in PROJECT["dependencies"]
    assert PROJECT["version"] == RUNNER["version"]
    assert set(RUNNER["dependencies"]) <= set(PROJECT["dependencies"])


def commands(path: Path) -> list[list[str]]:
    """Return the words of every command in the code blocks of a page."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    shown = [block.replace("\\\n", " ") for language, block in blocks if language == "console"]
    lines = [line.partition("$ ")[2] for block in shown for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line]


def parsed(words: list[str]) -> bool:
    """Parse a command of this project; return whether it is one. Exits where the flags are wrong."""
    modules = {f"llava {command.name}": command.module for command in COMMANDS}
    modules |= {"python -m llava_export.export": "llava_export.cli.export", "llava-run": "llava_runner.cli"}
    for name, module in modules.items():
        if words[: len(name.split())] == name.split():
            import_module(module).build_parser().parse_args(words[len(name.split()) :])
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_of_the_documentation_parse(page, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # the files they name are not here
    found = [parsed(words) for words in commands(page)]
    assert any(found) or page.name not in ("README.md", "BENCHMARKS.md")


def tracked(*patterns: str) -> list[Path]:
    """Return the files that git tracks, or all that match where this is no checkout of git."""
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    return [path for pattern in patterns for path in ROOT.rglob(pattern) if ".venv" not in path.parts]


def test_no_file_is_long():
    files = tracked("*.py", "*.cpp", "*.h", "*.sh", "*.java", "*.kt", "*.swift", "*.html", "*.css", "*.js")
    assert len(files) > 150
    assert {path.name: count for path in files if (count := len(path.read_text().splitlines())) > 350} == {}


def test_functions_take_few_arguments_by_position():
    for path in tracked("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert len(node.args.posonlyargs + node.args.args) <= 8, f"{path.name}: {node.name}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", tracked("*.md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_resolve(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_android_sample_fits_the_engine():
    """It cannot be built here, so this is all that is compared."""
    sample = ROOT / "runner/android"
    gradle = (sample / "build.gradle.kts").read_text()
    script = (ROOT / "runner/deploy/build.sh").read_text()
    for in_gradle, in_script in ((r"minSdk = (\d+)", r"PLATFORM=android-(\d+)"), (r'"(arm64[^"]*)"', r"ABI=(\S+)")):
        assert re.findall(in_gradle, gradle)[0] == re.findall(in_script, script)[0]
    (activity,) = sample.rglob("*.kt")
    manifest = ElementTree.parse(sample / "src/main/AndroidManifest.xml")
    (name,) = [each.get("{http://schemas.android.com/apk/res/android}name") for each in manifest.iter("activity")]
    assert f".{activity.stem}" == name
    assert all((sample / folder).is_dir() for folder in re.findall(r'srcDir\("(.*)"\)', gradle))
    classes = re.findall(r"import org\.llava\.(\w+)", activity.read_text())
    assert classes and all((ROOT / f"runner/java/org/llava/{name}.java").exists() for name in classes)


def test_changelog_has_this_version():
    assert f"## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text()
