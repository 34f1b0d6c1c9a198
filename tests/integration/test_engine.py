"""The C++ runner as a library. Its tests run in a process of their own, see tests/engine/conftest.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from llava_runner.engine import LIBRARY
from tests.integration.conftest import ROOT


def test_the_engine(native_build, tiny_package, scenes, tmp_path):
    variables = {
        "LLAVA_ENGINE": native_build / LIBRARY,
        "LLAVA_TEST_PACKAGE": tiny_package.folder,
        "LLAVA_TEST_SCENES": scenes,
    }
    folder = ROOT / "tests" / "engine"
    flags = ["-q", "--confcutdir", folder, "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", tmp_path / "inner"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags, folder],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **{key: str(value) for key, value in variables.items()}, "PYTEST_ADDOPTS": ""},
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-3000:]


@pytest.mark.parametrize("first", ["engine", "program"])
def test_the_other_runner_is_refused_in_the_same_process(first, native_build, tiny_package):
    engine = f"Engine({str(tiny_package.folder)!r}, library=Path({str(native_build / LIBRARY)!r}))"
    program = f"Program.open({str(tiny_package.program)!r})"
    steps = [engine, program] if first == "engine" else [program, engine]
    code = (
        "from pathlib import Path; from llava_runner.engine import Engine; from llava_runner.program import Program; "
        f"one = {steps[0]}; two = {steps[1]}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("is in this process already")


def test_sessions_of_several_threads_leave_nothing_behind(native_build, tiny_package, tmp_path):
    """CONTRIBUTING.md says how to build the same program with sanitizers."""
    cmake = [sys.executable, "-m", "cmake"]
    build = subprocess.run(
        [*cmake, "--build", native_build / "build", "--target", "engine_stress"], capture_output=True
    )
    assert build.returncode == 0, build.stderr
    rounds, threads = "67", "3"  # 201 lives of a session
    done = subprocess.run(
        [native_build / "build/engine_stress", tiny_package.folder, tiny_package.folder / "image.png", rounds, threads],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "LD_LIBRARY_PATH": str(native_build)},
    )
    result = re.fullmatch(r"0 failures, (-?\d+) KiB more\n", done.stdout)
    assert result and done.returncode == 0, done.stdout + done.stderr
    assert int(result[1]) < 20_000
    assert list(tmp_path.iterdir()) == []
