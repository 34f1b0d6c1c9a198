"""``python -m tests.fuzz --minutes 10``: feed damaged input to every parser, and keep what was found.

The fuzzers of the C++ runner are built with clang, libFuzzer and sanitizers (``runner/cpp/tests/fuzz.cpp``). An input
may take 10 seconds and 2 GiB. What makes one fail lies in ``cmake-out/fuzz/failed``. Inputs that reached new code lie
in ``cmake-out/fuzz/corpus``, and the next run begins with them. The Python parsers follow, by
``tests.fuzz.python_inputs``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import cmake
import executorch

from tests.fuzz.corpus import write_corpus

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cmake-out/fuzz"
TARGETS = ("image", "tensor", "tokenizer", "prompt", "byte_level", "card", "program", "manifest")
SHARES = {"image": 4}  # of the time; it has most of the code. The others have one
PYTHON_SHARES = 4
HOW_TO_GET_IT = "apt-get install clang libclang-rt-14-dev"
PYTHON_FUZZER = "tests.fuzz.python_inputs"


def main() -> int:
    """Run all fuzzers. Return 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=10, help="how long the fuzzers run together (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="0, the default, stands for another one each time")
    arguments = parser.parse_args()
    if not can_build():
        parser.error(f"clang with libFuzzer is missing: {HOW_TO_GET_IT}")
    build("fuzz")
    workers = os.cpu_count() or 1
    shares = sum(SHARES.get(target, 1) for target in TARGETS) + PYTHON_SHARES
    seconds = arguments.minutes * 60 * workers / shares
    with TemporaryDirectory() as seeds, ThreadPoolExecutor(workers) as pool:
        write_corpus(Path(seeds))
        work = [
            pool.submit(run, target, Path(seeds), seconds=SHARES.get(target, 1) * seconds, seed=arguments.seed)
            for target in TARGETS
        ]
        work.append(pool.submit(run_python, seconds=PYTHON_SHARES * seconds, seed=arguments.seed))
        failed = [future for future in work if not future.result()]
    return 1 if failed else 0


def can_build() -> bool:
    """Return whether clang is installed, and libFuzzer with it."""
    if not shutil.which("clang++"):
        return False
    program = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'
    command = ["clang++", "-fsanitize=fuzzer", "-x", "c++", "-", "-o", os.devnull]
    return subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0


def build(*targets: str) -> Path:
    """Build parts of the C++ runner with clang, libFuzzer and sanitizers. Return the folder with the programs.

    Raises ``CalledProcessError``, with the output of what failed.
    """
    tool = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
    sdk = next(iter(executorch.__path__))
    options = ["-DCMAKE_CXX_COMPILER=clang++", "-DLLAVA_FUZZ=ON", f"-DCMAKE_PREFIX_PATH={sdk}"]
    for command in (
        [tool, "-S", str(ROOT / "runner/cpp"), "-B", str(FOLDER), *options],
        [tool, "--build", str(FOLDER), "--parallel", str(os.cpu_count()), "--target", *targets],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            print(done.stdout, file=sys.stderr)
            done.check_returncode()
    return FOLDER


def run(target: str, seeds: Path, *, seconds: float, seed: int) -> bool:
    """Run one fuzzer. Print how many inputs it tried, or how it failed, and return whether all were well."""
    corpus, failures = FOLDER / "corpus" / target, FOLDER / "failed"
    for folder in (corpus, failures):
        folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        limits = [f"-max_total_time={max(1, round(seconds))}", "-timeout=10", "-rss_limit_mb=2048", f"-seed={seed}"]
        command = [str(FOLDER / "fuzz"), str(corpus), str(seeds / target), *limits]
        command += ["-print_final_stats=1", f"-artifact_prefix={failures}/{target}-"]
        environment = {**os.environ, "LLAVA_FUZZ_TARGET": target, "TMPDIR": scratch}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    tried = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    print(f"{target}: {int(tried[1]) if tried else 0:,} inputs, exit code {done.returncode}", flush=True)
    if done.returncode != 0:
        print(done.stderr[-6000:], file=sys.stderr, flush=True)
    return done.returncode == 0


def run_python(*, seconds: float, seed: int) -> bool:
    """Run the fuzzer of the Python parsers. Return whether all inputs were read or refused."""
    options = ["--minutes", f"{seconds / 60:.3f}", "--save", str(FOLDER / "failed")]
    command = [sys.executable, "-m", PYTHON_FUZZER, *options, *(["--seed", str(seed)] if seed else [])]
    return subprocess.run(command, cwd=ROOT).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
