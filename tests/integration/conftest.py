"""Packages and builds of the C++ runner to test with. Each is made once a run, also by several processes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import pytest

from llava_export.builtin import CHECKPOINTS
from llava_export.pte.agreement import agreement_here
from llava_export.pte.export import Exported, calibrate_for, calibration_folder, export
from llava_export.pte.options import STAMPED, Options
from llava_export.pte.plan import Plan, plan
from llava_export.recipe import RECIPES
from llava_export.stages import Stages
from llava_runner import bench, cli
from llava_runner.session import Session
from tests.engine.test_c_interface import NEW_TOKENS
from tests.integration.llava_main import command
from training import questions

ROOT = Path(__file__).parents[2]
SCENES = range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + 50)


def lacking(what: str, how: str) -> NoReturn:
    """Skip the test, and say why. Fail instead where everything is meant to be tested (``LLAVA_TEST_ALL=1``)."""
    message = f"{what} cannot be built here: {how}"
    if os.environ.get("LLAVA_TEST_ALL"):
        pytest.fail(message)
    pytest.skip(message)


def build_runner(target: str) -> Path:
    """Build the C++ runner for a target of ``runner/build.sh``. Return the folder with its programs."""
    done = subprocess.run([ROOT / "runner/build.sh", target], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return ROOT / "cmake-out" / target


@pytest.fixture(scope="session")
def native_build(once) -> Path:
    """Build the C++ runner for this machine. Return the folder with its programs."""
    headers = ("CLI/CLI.hpp", "nlohmann/json.hpp", "jpeglib.h", "zlib.h", "xxhash.h", "pcre2.h", "utf8proc.h")
    if not shutil.which("g++") or not all((Path("/usr/include") / name).exists() for name in headers):
        packages = "g++ libcli11-dev lib{jpeg,tiff,webp,pcre2,utf8proc,xxhash}-dev zlib1g-dev nlohmann-json3-dev"
        lacking("the C++ runner", f"apt-get install {packages}")
    return once("native", lambda: build_runner("native"))


@pytest.fixture(scope="session")
def llava_main(native_build) -> Path:
    """Return the C++ runner for this machine."""
    return native_build / "llava_main"


@pytest.fixture(scope="session")
def aarch64_build(once) -> Path:
    """Build the C++ runner for 64-bit ARM, if it can also be run here. Return the folder with its programs."""
    libraries = Path("/usr/lib/aarch64-linux-gnu")
    if not shutil.which("aarch64-linux-gnu-g++") or not all(
        (libraries / name).exists() for name in ("libjpeg.a", "libpcre2-8.a", "libutf8proc.a")
    ):
        lacking(
            "the C++ runner for ARM",
            "dpkg --add-architecture arm64 && apt-get update && "
            "apt-get install g++-aarch64-linux-gnu lib{jpeg,tiff,webp,pcre2,utf8proc}-dev:arm64 zlib1g-dev:arm64",
        )
    if not shutil.which("qemu-aarch64"):
        lacking("what runs programs for ARM", "apt-get install qemu-user libstdc++6:arm64")
    return once("aarch64", lambda: build_runner("aarch64"))


@pytest.fixture(scope="session")
def phone_build(aarch64_build, once) -> Path:
    """Pack the C++ runner for phones, which takes the programs for 64-bit ARM. Return the folder with the result."""
    return once("phone", lambda: build_runner("phone"))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line on stderr, without what differs between the runners: which command's ``--help`` is named."""
        (line,) = self.notes
        assert self.out == "" and line.startswith("error: "), self
        return re.sub(r"; [\w. -]*--help lists the options$", "", line)

    @property
    def notes(self) -> list[str]:
        """What is on stderr besides timings and the note that weights are packed."""
        return [line for line in self.err.splitlines() if not re.match("llava_print_timings|note: packing", line)]


Both = Callable[..., tuple[Ended, Ended]]


# Options of exports that several tests share: of "deep", a built-in model, and "deep_with_biases_and_tied_head".
EIGHT_BITS: dict[str, Any] = {
    "recipe": "8da8w",
    "embedding_bits": 4,
    "vision": "8da4w",
    "group_size": 32,
    "partitioners": 1,
}
CALIBRATED: dict[str, Any] = {"algorithm": "awq-gptq", "calibration_samples": 16}
SEVERAL_SCHEMES: dict[str, Any] = {
    "group_size": 32,
    "exceptions": {
        "text_decoder.layers.0.mlp.down_proj": "8da8w",  # in front of the layers that are copied
        "text_decoder.layers.1.mlp.down_proj": "8da8w",
        "text_decoder.layers.2.self_attn.qkv_proj": "8da8w",
        "text_decoder.layers.3.self_attn.o_proj": "8da8w",  # behind them
        "vision_encoder.vision_tower.layers.1.mlp.fc1": "8da4w",
    },
}


@dataclass(frozen=True)
class Package:
    """An exported package, the checkpoint it came from, and the stages of the export."""

    model: str
    exported: Exported
    stages: Stages

    @property
    def program(self) -> Path:
        """Return the path of the program."""
        return self.exported.program

    @property
    def folder(self) -> Path:
        """Return the folder of the package."""
        return self.program.parent


@contextmanager
def in_this_process(function: Callable[..., Any], *arguments: Any) -> Iterator[Callable[[Callable[[], None]], Any]]:
    """Stand in for ``in_background``: the function runs where its result is awaited."""
    yield lambda on_step: function(*arguments, on_step=on_step)


@contextmanager
def without_processes() -> Iterator[None]:
    """Let exports record the float answer in this process, inside a ``with`` block.

    Each would start two others, and importing PyTorch and transformers in them takes ten seconds. Exports that are
    tested as commands start them.
    """
    with (
        patch("llava_export.pte.export.in_background", in_this_process),
        patch("llava_export.pte.golden.agreement", lambda reopen, question: agreement_here(reopen(), question)),
    ):
        yield


@pytest.fixture(scope="session")
def package_of(checkpoint_of, once, tmp_path_factory) -> Callable[..., Package]:
    """Return a function that exports a random checkpoint by its shape, or a built-in one by its name.

    Further arguments are the options of the export. The same call again returns the same package. Each process has a
    copy of its own, as the runners leave packed weights in it.
    """
    packages: dict[str, Package] = {}

    def copy_calibration(planned: Plan, folder: Path) -> None:
        """Let an export go on with layers that were calibrated once: sums differ in their last bits from run to run."""
        made = tmp_path_factory.mktemp("calibration") / "layers"

        def calibrate() -> Path:
            calibrate_for(planned, folder=made, stages=Stages())
            return made

        key = f"calibration {planned.checkpoint.name} {planned.options.recipe} {planned.options.calibration_samples}"
        shutil.copytree(once(key, calibrate), calibration_folder(folder, "llava.pte"))

    def make(
        name: str,
        recipe: str = "8da4w",
        *,
        partitioners: int = 2,
        lowering: str = STAMPED,
        golden: bool = True,
        calibration_samples: int | None = None,
        **changes: Any,
    ) -> Package:
        def make_it() -> Package:
            model = name if name in CHECKPOINTS else str(checkpoint_of(name))
            stages = Stages()
            with stages.stage("open checkpoint"):
                options = Options(
                    recipe=RECIPES[recipe].with_changes(**changes),
                    partitioners=partitioners,
                    lowering=lowering,
                    golden=golden,
                    artifacts=True,
                    calibration_samples=calibration_samples,
                    text_only=name == "language_model",
                )
                planned = plan(model, options)
            folder = tmp_path_factory.mktemp(name)
            if options.recipe.calibrates:
                copy_calibration(planned, folder)
            with without_processes():
                exported = export(planned, output_dir=folder, pte_name="llava.pte", stages=stages)
            return Package(model, exported, stages)

        key = repr((name, recipe, partitioners, lowering, golden, calibration_samples, sorted(changes.items())))
        if key not in packages:
            made: Package = once(key, make_it)
            folder = shutil.copytree(made.folder, tmp_path_factory.mktemp(name) / "package")
            packages[key] = replace(made, exported=replace(made.exported, program=folder / made.program.name))
        return packages[key]

    return make


@pytest.fixture(scope="session")
def tiny_package(package_of) -> Package:
    """Return the built-in model with the default recipe, as ``make demo`` exports it."""
    return package_of("tiny-llava")


@pytest.fixture(scope="session")
def language_model(package_of) -> Package:
    """Return a small language model alone, which can draft for ``tiny_package``: it has the same tokenizer."""
    return package_of("language_model")


@pytest.fixture
def package(tiny_package, tmp_path) -> Path:
    """Return the folder of a copy of the package without packed weights."""
    return Path(shutil.copytree(tiny_package.folder, tmp_path / "package", ignore=shutil.ignore_patterns("*.packed")))


@pytest.fixture(scope="session")
def expected(llava_main, tiny_package) -> str:
    """Return the answer of the C++ runner about the sample image, without packed weights."""
    done = subprocess.run(
        command(llava_main, tiny_package.folder, "--packed-cache-path=off"), capture_output=True, text=True
    )
    assert done.returncode == 0 and "circle" in done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def scenes(tiny_package, once, tmp_path_factory) -> Path:
    """Return the path of scenes with the Python runner's answers, in JSON, beside their images."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("scenes")
        found = []
        with Session.load(tiny_package.folder) as session:
            for seed in SCENES:
                image, question, _ = questions.question_for(seed)
                name = f"{seed}.png"
                image.save(folder / name)
                text = session.ask(image, question, max_new_tokens=NEW_TOKENS)
                found.append({"name": name, "question": question, "text": text, "ids": list(session.last.ids)})
        path = folder / "scenes.json"
        path.write_text(json.dumps(found))
        return path

    return once("scenes of the engine", make)


@pytest.fixture
def both(native_build, capfd, monkeypatch) -> Both:
    """Return a function that runs a command line in Python, in this process, and in C++."""

    def run(arguments: Sequence[str], *, stdin: bytes = b"", program: str = "llava_main") -> tuple[Ended, Ended]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments) if program == "llava_main" else bench.main()
        python = Ended(int(stop.value.code or 0), *capfd.readouterr())
        done = subprocess.run([native_build / program, *arguments], input=stdin, capture_output=True)
        return python, Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
