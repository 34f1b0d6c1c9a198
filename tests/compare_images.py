"""Compares what the two runners make of the files of a folder.

$ python -m tests.compare_images FOLDER [--parts PATH]

Prints a table of the files that only one runner reads, that give other bytes, or that take over 10 s or 1.5 GiB. The
C++ runner's part that prepares images is built by ``runner/build.sh native``. A file is measured in a process of its
own. Exits with 1 if the table has rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_runner.errors import ImageError
from llava_runner.image import prepare_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
MAX_SECONDS, MAX_BYTES = 10, 1536 << 20
PARTS = Path("cmake-out/native/build/parts")


@dataclass(frozen=True)
class Prepared:
    """What a runner made of a file: pixels ``uint8 [3, S, S]``, or the message with which it refused it."""

    pixels: bytes | None
    message: str = ""

    def agree(self, other: Prepared) -> bool:
        """Return True for the same decision and pixels."""
        return self.pixels == other.pixels


def by_llava_run(path: Path, *, image_size: int, image_aspect_ratio: str) -> Prepared:
    """Prepare an image by the Python runner. Any error but an ``ImageError`` is raised."""
    try:
        pixels = prepare_image(path, image_size=image_size, image_mean=CLIP_MEAN, image_aspect_ratio=image_aspect_ratio)
    except ImageError as error:
        return Prepared(None, str(error))
    return Prepared(pixels.tobytes())


def by_llava_main(parts: Path, paths: Sequence[Path], *, image_size: int, image_aspect_ratio: str) -> list[Prepared]:
    """Prepare images by the C++ runner, in one process. Raises ``RuntimeError`` if it fails."""
    done = subprocess.run(
        [parts, "images", str(image_size), image_aspect_ratio],
        input=b"".join(os.fsencode(path) + b"\0" for path in paths),
        capture_output=True,
    )
    if done.returncode:
        raise RuntimeError(f"{parts} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    found, rest = [], memoryview(done.stdout)
    while rest:
        end = bytes(rest[:65536]).index(b"\n")
        line, rest = bytes(rest[:end]), rest[end + 1 :]
        if line.startswith(b"refused "):
            found.append(Prepared(None, line[8:].decode(errors="replace")))
        else:
            found.append(Prepared(bytes(rest[: int(line)])))
            rest = rest[int(line) :]
    return found


@dataclass(frozen=True)
class Measured:
    """One file in a process of its own: what came of it, the time in seconds, and the peak of memory in bytes."""

    code: int
    output: bytes
    error: str
    seconds: float
    peak: int

    @property
    def decision(self) -> str:
        """The decision in a word."""
        return {0: "read", 2: "refused"}.get(self.code, f"CRASH ({self.code})")


def measure(command: Sequence[str | Path]) -> Measured:
    """Run a command and measure it. After a minute it is ended."""
    begin = time.monotonic()
    process = subprocess.Popen(["timeout", "60", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    output, error = process.stdout.read(), process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024
    return Measured(process.returncode, output, error.strip(), time.monotonic() - begin, peak)


def rows(path: Path, parts: Path) -> list[str]:
    """Return what is to be said of a file."""
    size = "336"
    by_python = measure([sys.executable, "-m", "tests.compare_images", "--one", path])
    by_cpp = measure([parts, "image", path, size, "pad"])
    found = []
    if by_python.decision != by_cpp.decision or "CRASH" in by_python.decision:
        last = (by_python.error or by_cpp.error).splitlines()[-1:]
        found.append(f"Python {by_python.decision}, C++ {by_cpp.decision}: {''.join(last)}")
    elif by_python.output != by_cpp.output:
        found.append("other bytes")
    for name, measured in (("Python", by_python), ("C++", by_cpp)):
        if measured.seconds > MAX_SECONDS or measured.peak > MAX_BYTES:
            found.append(f"{name}: {measured.seconds:.1f} s, {measured.peak / 2**30:.2f} GiB")
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare what the two runners make of the files of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", type=Path, default=PARTS, help=f"the C++ runner's parts (default: {PARTS})")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # prepare a file, and write its pixels
    arguments = parser.parse_args()
    if arguments.one:
        prepared = by_llava_run(arguments.folder, image_size=336, image_aspect_ratio="pad")
        sys.stdout.buffer.write(prepared.pixels or b"")
        print(prepared.message, file=sys.stderr)
        return 2 if prepared.pixels is None else 0
    paths = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    differing = 0
    for path in paths:
        for row in rows(path, arguments.parts):
            differing += 1
            print(f"{path.relative_to(arguments.folder)}\t{row}", flush=True)
    print(f"{len(paths)} files, {differing} rows", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
