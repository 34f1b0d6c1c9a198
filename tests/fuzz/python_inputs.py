"""Feeds damaged inputs to every parser of the Python part: ``python -m tests.fuzz.python_inputs --minutes 10``.

A parser must take an input or raise a ``UserError``, within 10 seconds and 2 GiB. Anything else is printed, its input
is saved, and the exit code is 1. The same ``--seed`` gives the same inputs.

The parsers run in a process of their own, which may die: then the input that it had last is saved, and another process
goes on.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from llava_runner.errors import UserError

SECONDS = 10
MEMORY = 2 << 30
INPUTS_AT_ONCE = 10  # of one parser, before the next one has its turn
CURRENT = "current"  # the name, in the scratch folder, of the file that has the input at work
FAILED = 3  # the exit code of the parsers' process if one of them failed; others say that the process died
DONE = "done"  # the name of the file that has the number of inputs so far


def main() -> int:
    """Run as the command line says. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run (default: %(default)s)")
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="how many inputs to make at most")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the inputs (default: the time)")
    parser.add_argument("--target", action="append", help="the parser to feed; may be repeated (default: all)")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"), help="folder for inputs that fail")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)  # says that this is the process that may die
    arguments = parser.parse_args()
    if arguments.scratch:
        from tests.fuzz.targets import cut_off_network

        cut_off_network()
        return feed(arguments)
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        return supervise(arguments, Path(scratch))


def supervise(arguments: argparse.Namespace, scratch: Path) -> int:
    """Run the parsers in processes of their own until the time is over. Return the exit code."""
    end = time.monotonic() + 60 * arguments.minutes
    failed, left, seed = False, arguments.inputs, arguments.seed
    while True:
        options = [
            "--minutes",
            (end - time.monotonic()) / 60,
            "--inputs",
            left,
            "--seed",
            seed,
            "--save",
            arguments.save,
        ]
        options += [word for target in arguments.target or () for word in ("--target", target)]
        command = [sys.executable, "-m", __spec__.name if __spec__ else "tests.fuzz.python_inputs"]
        code = subprocess.run([*command, *map(str, options), "--scratch", str(scratch)]).returncode
        if code in (0, FAILED):
            return int(failed or code == FAILED)
        failed = True
        current = scratch / CURRENT
        if not current.exists():
            print(f"the parsers' process ended with {code} before its first input", flush=True)
            return 1
        print(
            f"FAILED: the process ended with {code}; its input is {save(current.read_bytes(), 'died', arguments.save)}"
        )
        left, seed = left - int((scratch / DONE).read_text()), seed + 1
        if time.monotonic() > end or left <= 0:
            return 1


def feed(arguments: argparse.Namespace) -> int:
    """Feed inputs to the parsers, and print how many each took and refused. Return 0 or ``FAILED``."""
    from tests.fuzz.targets import targets

    warnings.simplefilter("ignore")
    stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries log about damaged inputs
    sys.stderr = stderr
    faulthandler.enable(stderr)
    shutil.rmtree(arguments.scratch / "seeds", ignore_errors=True)
    (arguments.scratch / "seeds").mkdir()
    found = targets(arguments.scratch / "seeds")
    names = arguments.target or list(found)
    end = time.monotonic() + 60 * arguments.minutes
    taken: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    failures = count = round_number = 0
    limit_memory()
    while time.monotonic() < end and count < arguments.inputs:
        name = names[round_number % len(names)]
        generator = random.Random(f"{arguments.seed} {round_number}")
        round_number += 1
        folder = arguments.scratch / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found[name].prepare(folder)
        for _ in range(min(INPUTS_AT_ONCE, arguments.inputs - count)):
            target = found[name]
            content = target.mutate(generator.choice(target.seeds), generator)
            (arguments.scratch / CURRENT).write_bytes(content)
            count += 1
            (arguments.scratch / DONE).write_text(str(count))
            path = folder / target.name
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=stderr)
            start = time.process_time()
            try:
                target.read(path)
                taken[name] += 1
            except UserError:
                refused[name] += 1
            except BaseException:
                failures += 1
                print(f"FAILED: {name}: {save(content, name, arguments.save)}\n{traceback.format_exc()}", flush=True)
            finally:
                faulthandler.cancel_dump_traceback_later()
            if time.process_time() - start > SECONDS:
                failures += 1
                print(f"FAILED: {name} took over {SECONDS} s: {save(content, name, arguments.save)}", flush=True)
    for name in names:
        print(f"{name:<26} {taken[name]:>8,} taken {refused[name]:>8,} refused")
    print(f"{count:,} inputs, {failures} failures", flush=True)
    return FAILED if failures else 0


def limit_memory() -> None:
    """Let the process have 2 GiB more than it has now. More is a ``MemoryError``, which is a failure."""
    status = Path("/proc/self/statm")
    if status.exists():
        import resource

        now = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def save(content: bytes, name: str, folder: Path) -> Path:
    """Write an input that failed to a folder. Return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '-')}-{time.time_ns()}"
    path.write_bytes(content)
    return path


if __name__ == "__main__":
    sys.exit(main())
