"""The programs in docs/guides/embed.md, built and started by the commands there, answer as the Python runner."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cmake
import pytest

from llava_runner.engine_library import LIBRARY
from llava_runner.session import Session
from tests.integration.conftest import ROOT, lacking
from tests.integration.llava_main import PACKING

GUIDE = ROOT / "docs/guides/embed.md"
PREFIX = "/usr/local"  # where the guide installs to; the tests take another folder
QUESTIONS = ("What is in the image?", "How many shapes are there?")  # of the guide
FILES = {"c": "ask.c", "cmake": "CMakeLists.txt", "cpp": "ask.cpp", "java": "Ask.java", "python": "ask.py"}


@dataclass(frozen=True)
class Section:
    """The files and the commands of a section of the guide."""

    files: dict[str, str]
    commands: list[str]

    @classmethod
    def read(cls, title: str) -> Section:
        """Read a section by its title."""
        text = GUIDE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
        blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        commands = [line for language, block in blocks if language == "console" for line in block.splitlines()]
        files = {FILES[language]: block for language, block in blocks if language in FILES}
        assert all(name in FILES.values() for name in re.findall(r"^// (\w+\.\w+):", text, flags=re.MULTILINE))
        return cls(files, [line.removeprefix("$ ") for line in commands])


@pytest.fixture(scope="module")
def installed(native_build, tmp_path_factory) -> Path:
    """Return the folder that the guide's command installs to."""
    prefix = tmp_path_factory.mktemp("prefix")
    build, install = Section.read("Build and install it").commands
    assert build == "runner/build.sh native"  # which native_build has done
    run(install, prefix=prefix, folder=ROOT)
    return prefix


@pytest.fixture(scope="module")
def answers(tiny_package) -> list[str]:
    """Return what the Python runner answers to the questions, which are one conversation."""
    with Session.load(tiny_package.folder) as session:
        first = session.ask(tiny_package.folder / "image.png", QUESTIONS[0])
        return [first, "".join(session.chat(QUESTIONS[1]))]


@pytest.fixture
def folder(tiny_package, tmp_path) -> Path:
    """Return a folder with the package and the image that the guide's commands name."""
    (tmp_path / "package").symlink_to(tiny_package.folder)
    shutil.copy(tiny_package.folder / "image.png", tmp_path / "photo.jpg")
    return tmp_path


def run(command: str, *, prefix: Path, folder: Path, returncode: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of the guide with another prefix."""
    environment = {
        **os.environ,
        "PATH": f"{cmake.CMAKE_BIN_DIR}:{os.environ['PATH']}",
        "PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig",
        "CMAKE_PREFIX_PATH": str(prefix),
    }
    words = ["bash", "-c", command.replace(PREFIX, str(prefix))]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == returncode, f"{command}\n{done.stdout}{done.stderr}"
    return done


@pytest.mark.parametrize(
    ("language", "tool", "package"),
    [("C", "pkg-config", "pkg-config"), ("C++", "make", "make"), ("Java", "javac", "default-jdk-headless")],
    ids=["c", "cpp", "java"],
)
def test_a_program_answers_as_the_python_runner(language, tool, package, installed, folder, answers):
    if not shutil.which(tool):
        lacking(f"the guide's program in {language}", f"apt-get install {package}")
    section = Section.read(f"In {language}")
    for name, content in section.files.items():
        (folder / name).write_text(content)
    *builds, start = section.commands
    for command in builds:
        run(command, prefix=installed, folder=folder)
    done = run(start, prefix=installed, folder=folder)
    assert done.stdout.splitlines() == answers[: 2 if language == "C++" else 1]
    assert done.stderr in ("", f"{PACKING}\n")  # the first start of a process's package packs its weights

    wrong = run(start.replace("photo.jpg", "package/llava.json"), prefix=installed, folder=folder, returncode=2)
    assert re.fullmatch(r"error: the image .*\n", wrong.stderr)
    used = run(start.split(" package ")[0], prefix=installed, folder=folder, returncode=2)
    assert "usage: " in used.stderr


def test_the_program_in_python_needs_no_torch(native_build, folder, answers):
    (folder / "ask.py").write_text(Section.read("In Python, without torch").files["ask.py"])
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path('ask.py')"
    variables = {"LLAVA_ENGINE": str(native_build / LIBRARY), "PYTHONPATH": str(ROOT / "runner")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.stdout == answers[0], done.stderr
    assert (folder / "conversation").stat().st_size > 1000


@pytest.mark.parametrize("language", ["C", "C++"])
def test_a_program_with_the_engine_linked_in_answers_the_same(language, installed, folder, answers):
    if not shutil.which("pkg-config") or not shutil.which("make"):
        lacking("the guide's programs", "apt-get install pkg-config make")
    section = Section.read(f"In {language}")
    for name, content in section.files.items():
        (folder / name).write_text(content.replace("::llava_engine)", "::llava_engine_static)"))
    *builds, start = section.commands
    if language == "C":
        builds = Section.read("Linked into the program").commands
        builds = [command.replace("cc ", "cc -Wl,--as-needed ") for command in builds]  # as some systems' compilers do
    for command in builds:
        run(command, prefix=installed, folder=folder)
    needed = run(f"readelf -d {start.split()[0]}", prefix=installed, folder=folder).stdout
    assert "libexecutorch" in needed and "libllava_engine" not in needed
    done = run(start, prefix=installed, folder=folder)
    assert done.stdout.splitlines() == answers[: 2 if language == "C++" else 1]
    wrong = run(start.replace("photo.jpg", "package/llava.json"), prefix=installed, folder=folder, returncode=2)
    assert re.fullmatch(r"error: the image .*\n", wrong.stderr)


def test_only_the_functions_of_the_header_are_visible(installed):
    header = (installed / "include/llava.h").read_text()
    functions = set(re.findall(r"^LLAVA_API .*?\b(llava_\w+)\(", header.replace("status\n", "status "), re.MULTILINE))
    assert "llava_ask" in functions
    for command in ("nm -D libllava_engine.so", "nm libllava_engine.a"):
        names = run(f"{command} --extern-only --defined-only", prefix=installed, folder=installed / "lib").stdout
        assert set(re.findall(r"^\w+ \w (\w+)$", names, re.MULTILINE)) == functions


def test_all_that_is_installed_is_used_where_it_lies(installed):
    """Nothing refers to the folder of the build, so the installed folder can be copied to another place."""
    for file in installed.rglob("*"):
        if file.is_file():
            assert os.fsencode(ROOT / "cmake-out") not in file.read_bytes(), file
