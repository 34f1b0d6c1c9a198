"""The C++ runner as a library. Its tests run in a process of their own, see tests/engine/conftest.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from pytorch_tokenizers.llama2c import Llama2cTokenizer

from llava_runner.contract import MAX_LOGITS_TO_KEEP
from llava_runner.engine_library import LIBRARY
from llava_runner.session import Session
from llava_runner.tokenizer_file import load_tokenizer
from tests.commands import llava_here
from tests.integration.conftest import ROOT
from tests.integration.llava_main import QUESTION
from tests.runner.conftest import train_tokenizer
from tests.runner.fake_program import make_card
from tests.runner.sessions import REPEATING, template_card
from tests.runner.tiny_program import build_pte


def run_pytest(tests, *, confcutdir, basetemp, **variables):
    """Run tests in a process of their own, with variables of the environment."""
    flags = ["-q", "--confcutdir", confcutdir, "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", basetemp]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *flags, *tests],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **{key: str(value) for key, value in variables.items()}, "PYTEST_ADDOPTS": ""},
    )


def test_the_engine(native_build, tiny_package, scenes, tmp_path):
    folder = ROOT / "tests" / "engine"
    variables = {
        "LLAVA_ENGINE": native_build / LIBRARY,
        "LLAVA_TEST_PACKAGE": tiny_package.folder,
        "LLAVA_TEST_SCENES": scenes,
    }
    done = run_pytest([folder], confcutdir=folder, basetemp=tmp_path / "inner", **variables)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-3000:]


def test_sessions_answer_the_same_as_in_python(native_build, tmp_path):
    """The tests of sessions, a second time. See tests/runner/sessions.py."""
    folder = ROOT / "tests" / "runner"
    tests = [folder / f"test_session{part}.py" for part in ("", "_drafts", "_options", "_threads")]
    vocab_size = 420
    card = make_card(vocab_size=vocab_size, logits_to_keep=MAX_LOGITS_TO_KEEP)
    (tmp_path / REPEATING).write_bytes(build_pte(card, card_json=template_card(vocab_size), repeats=True))
    done = run_tests_of_runner(tests, native_build=native_build, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-3000:]
    assert re.search(r"\b([89]\d|1\d\d) passed", done.stdout) and "skipped" not in done.stdout


def test_the_server_answers_the_same_as_in_python(native_build, tmp_path):
    """The tests of the server's answers, a second time. Their conversations and answers are longer."""
    folder = ROOT / "tests" / "runner" / "serve"
    tests = [folder / f"test_{part}.py" for part in ("chat", "clients", "many_clients")]
    done = run_tests_of_runner(
        tests, native_build=native_build, folder=tmp_path, max_context_len=20_000, max_seq_len=512
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-3000:]
    assert re.search(r"\b[2-9]\d passed", done.stdout) and "skipped" not in done.stdout


def run_tests_of_runner(tests, *, native_build, folder, **card):
    """Run tests of the runner with the engine, and a program that has room for the cards that they make."""
    program, model = folder / "llava.pte", train_tokenizer(folder / "tokenizer.model")
    vocab_size = load_tokenizer(model).vocab_size
    program.write_bytes(build_pte(make_card(vocab_size=vocab_size, **card), card_json=template_card(vocab_size)))
    Llama2cTokenizer(str(model)).export(str(folder / "tokenizer.bin"))
    variables = {"LLAVA_ENGINE": native_build / LIBRARY, "LLAVA_TEST_PROGRAM": program}
    return run_pytest(tests, confcutdir=ROOT / "tests" / "runner", basetemp=folder / "inner", **variables)


@pytest.fixture(scope="module")
def installed(native_build, tmp_path_factory):
    """Return the folder that the wheel with the engine is installed to."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    libraries = [native_build / LIBRARY, *native_build.glob("libexecutorch*.so")]
    pack = [ROOT / "runner/deploy/pack_wheel.sh", sys.executable, folder, "linux_x86_64", *libraries]
    subprocess.run(pack, check=True, capture_output=True)
    (wheel,) = folder.iterdir()
    assert wheel.name.startswith("llava_runner-") and wheel.name.endswith("-py3-none-linux_x86_64.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def test_the_wheel_runs_without_torch(installed, tiny_package, tmp_path):
    with Session.load(tiny_package.folder) as session:
        expected = session.ask(tiny_package.folder / "image.png", QUESTION)
    code = (
        "import sys; sys.modules.update(torch=None, executorch=None, sentencepiece=None); "
        "import llava_runner; print(llava_runner.__file__); from llava_runner.command import main; main()"
    )
    words = ["run", tiny_package.folder, "--image", tiny_package.folder / "image.png", "--prompt", QUESTION]
    environment = {key: value for key, value in os.environ.items() if key != "LLAVA_ENGINE"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(installed)},
    )
    assert done.stdout == f"{installed / 'llava_runner/__init__.py'}\n{expected}\n", done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--engine", "cpp"], ["--engine", "python"]])
def test_the_command_computes_with_the_engine_where_it_is_built(flags, native_build, tiny_package):
    code = (
        "import sys; from llava_runner import engine_library; from llava_runner.command import main\n"
        "try: main()\nfinally: print(engine_library.is_loaded(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", tiny_package.folder, "--prompt", QUESTION, "--max-new-tokens", "3", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "LLAVA_ENGINE": str(native_build / LIBRARY)},
    )
    assert done.returncode == 0 and done.stderr.endswith(f"{'python' not in flags}\n"), done.stderr


def test_what_is_not_built_cannot_compute(tiny_package):
    done = llava_here("run", tiny_package.folder, "--prompt", QUESTION, "--engine", "cpp")
    assert done.returncode == 2 and done.stderr.startswith("error: the C++ engine is not here; runner/build.sh native ")


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
