"""Damaged files and the C++ runner, built with the address and undefined-behavior sanitizers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import HOW_TO_GET_IT, ROOT, TARGETS, build, can_build
from tests.integration.conftest import lacking


@pytest.fixture(scope="module")
def sanitized(native_build) -> Path:
    """The folder of a build of the parts with sanitizers."""
    if not can_build():
        lacking("the fuzzers of the C++ runner", HOW_TO_GET_IT)
    return build("attention_test", "fuzz")


def test_attention_reads_and_writes_within_bounds(sanitized):
    done = subprocess.run([sanitized / "attention_test"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_quarter_of_a_minute_of_damaged_input_is_read_or_refused(sanitized):
    """`make fuzz` does the same for longer."""
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.25", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    tried = dict(re.findall(r"^(\w+): ([\d,]+) inputs, exit code 0$", done.stdout, re.MULTILINE))
    assert tried.keys() == set(TARGETS)
    assert all(int(count.replace(",", "")) > 100 for count in tried.values()), tried
