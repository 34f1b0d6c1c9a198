"""Damaged programs: their structure is checked at every start, their weights on request and when they are packed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random

import pytest

from tests.commands import llava_here
from tests.integration.llava_main import QUESTION, ask, command, packed_files


@pytest.fixture
def whole_program(package) -> bytes:
    return (package / "llava.pte").read_bytes()


def run_cpp(llava_main: Path, package: Path, *flags: str) -> tuple[int, str]:
    done = subprocess.run(
        command(llava_main, package, "--packed-cache-path=off", *flags), capture_output=True, text=True
    )
    return done.returncode, done.stderr


def run_python(_: Path, package: Path, *flags: str) -> tuple[int, str]:
    files = [f"--model-path={package}", f"--image={package}/image.png", f"--prompt={QUESTION}", *flags]
    done = llava_here("run", *files)
    return done.returncode, done.stderr


@pytest.mark.parametrize("run", [run_cpp, run_python])
def test_a_program_whose_structure_is_damaged_never_runs(run, llava_main, package, whole_program):
    size = int.from_bytes(whole_program[16:24], "little")
    random = Random(0)
    for _ in range(20 if run is run_cpp else 2):
        damaged = bytearray(whole_program)
        damaged[random.randrange(32, size)] ^= 1 << random.randrange(8)
        (package / "llava.pte").write_bytes(damaged)
        code, message = run(llava_main, package)
        assert code == 2 and message.endswith(
            "is damaged: its SHA-256 is not the one in llava.json. Copy or export it again.\n"
        )
        assert message.count("\n") == 1


@pytest.mark.parametrize("run", [run_cpp, run_python])
def test_damaged_weights_are_found_on_request(run, llava_main, package, whole_program):
    damaged = bytearray(whole_program)
    damaged[len(damaged) * 2 // 3] ^= 1
    (package / "llava.pte").write_bytes(damaged)
    assert run(llava_main, package)[0] == 0
    code, message = run(llava_main, package, "--check")
    assert code == 2 and "is damaged: its SHA-256" in message
    (package / "llava.json").unlink()
    code, message = run(llava_main, package, "--check")
    assert code == 2 and message.endswith("cannot be checked: llava.json is not next to it. Copy it, too.\n")


def test_a_damaged_program_is_refused_before_it_runs(llava_main, package):
    ask(llava_main, package)
    program = package / "llava.pte"
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 0xFF
    program.write_bytes(content)
    for packed in packed_files(package):
        packed.unlink()
    done = subprocess.run(command(llava_main, package), capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith("is damaged: its SHA-256 is not the one in llava.json. Copy or export it again.\n")
    assert not packed_files(package)
