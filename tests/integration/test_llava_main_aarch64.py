"""The C++ runner for 64-bit ARM, under qemu: the answers of this machine's Python runner."""

from __future__ import annotations

import platform
import subprocess

from llava_runner.session import Session
from tiny import questions


def emulator() -> list[str]:
    # The processor of a Raspberry Pi 5.
    return [] if platform.machine() == "aarch64" else ["qemu-aarch64", "-cpu", "cortex-a76"]


def test_the_answers_are_the_same(aarch64_build, tiny_package, tmp_path):
    session = Session.load(tiny_package.program)
    for seed in range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + 5):
        image, question, _ = questions.question_for(seed)
        path = tmp_path / "scene.png"
        image.save(path)
        expected = "".join(session.generate(path, question))
        flags = [f"--model_path={tiny_package.program}", f"--image_path={path}", f"--prompt={question}"]
        done = subprocess.run([*emulator(), aarch64_build / "llava_main", *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == expected + "\n", (seed, question)


def test_attention_on_neon_is_what_its_definition_says(aarch64_build):
    done = subprocess.run([*emulator(), aarch64_build / "build/attention_test"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
