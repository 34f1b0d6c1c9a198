"""The C++ runner for 64-bit ARM, under qemu: the answers of this machine's Python runner."""

from __future__ import annotations

import platform
import subprocess

from tests.integration.parity import assert_same_answers


def emulator() -> list[str]:
    # The processor of a Raspberry Pi 5.
    return [] if platform.machine() == "aarch64" else ["qemu-aarch64", "-cpu", "cortex-a76"]


def test_the_answers_are_the_same(aarch64_build, tiny_package, tmp_path):
    command = [*emulator(), aarch64_build / "llava_main"]
    assert_same_answers(command, tiny_package.program, scenes=2, folder=tmp_path)


def test_attention_on_neon_is_what_its_definition_says(aarch64_build):
    step = "7"  # not a divisor of how many sizes, heads, lengths or starts are combined, so all of them occur
    done = subprocess.run([*emulator(), aarch64_build / "build/attention_test", step], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0 of 120 shapes failed\n")
