"""Compares what the two runners make of the files of a folder.

$ python -m tests.compare_images FOLDER [--parts PATH]

Prints a table of the files that only one runner reads, that give other bytes, or that take over 10 s of a processor or
1.5 GiB. The part of the C++ runner that prepares images is built by ``runner/build.sh native``. Each file is measured
in a process of its own. Exits with 1 if the table has rows.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_runner.errors import ImageError
from llava_runner.image import prepare_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_SIZE = 336
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


def by_llava_run(
    path: Path,
    *,
    image_size: int,
    image_aspect_ratio: str,
    image_resize: int | None = None,
    image_resample: str = "bicubic",
) -> Prepared:
    """Prepare an image by the Python runner. Any error but an ``ImageError`` is raised."""
    try:
        pixels = prepare_image(
            path,
            image_size=image_size,
            image_mean=CLIP_MEAN,
            image_aspect_ratio=image_aspect_ratio,
            image_resize=image_resize,
            image_resample=image_resample,
        )
    except ImageError as error:
        return Prepared(None, str(error))
    return Prepared(pixels.tobytes())


def by_llava_main(
    parts: Path,
    paths: Sequence[Path],
    *,
    image_size: int,
    image_aspect_ratio: str,
    image_resize: int | None = None,
    image_resample: str = "bicubic",
) -> list[Prepared]:
    """Prepare images by the C++ runner, in one process. Raises ``RuntimeError`` if it fails."""
    done = subprocess.run(
        [parts, "images", str(image_size), image_aspect_ratio, str(image_resize or image_size), image_resample],
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
    """One file in a process of its own: the processors' time in seconds, and the peak of memory in bytes."""

    code: int
    output: bytes
    error: str
    seconds: float
    peak: int

    @property
    def decision(self) -> str:
        """The decision in a word."""
        return {0: "read", 2: "refused"}.get(self.code, f"CRASH ({self.code})")


def measure(run: Callable[[int, int], None]) -> Measured:
    """Measure a process that ``run`` becomes, or ends, in a minute at most. It gets descriptors to write to."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                run(output.fileno(), error.fileno())
            except BaseException:
                os.write(error.fileno(), traceback.format_exc().encode())
            os._exit(1)
        _, status, usage = os.wait4(child, 0)
        output.seek(0)
        error.seek(0)
        return Measured(
            os.waitstatus_to_exitcode(status),
            output.read(),
            error.read().decode(errors="replace").strip(),
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * 1024,
        )


def measured_by_llava_run(path: Path) -> Measured:
    """Measure the Python runner."""

    def run(output: int, error: int) -> None:
        prepared = by_llava_run(path, image_size=IMAGE_SIZE, image_aspect_ratio="pad")
        with os.fdopen(output, "wb", closefd=False) as stream:
            stream.write(prepared.pixels or b"")
        os.write(error, prepared.message.encode(errors="replace"))
        os._exit(2 if prepared.pixels is None else 0)

    return measure(run)


def measured_by_llava_main(path: Path, parts: Path) -> Measured:
    """Measure the C++ runner."""

    def run(output: int, error: int) -> None:
        os.dup2(output, 1)
        os.dup2(error, 2)
        os.execv(parts, [str(parts), "image", str(path), str(IMAGE_SIZE), "pad"])

    return measure(run)


def rows(path: Path, parts: Path) -> list[str]:
    """Return what is to be said of a file."""
    by_python, by_cpp = measured_by_llava_run(path), measured_by_llava_main(path, parts)
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
    arguments = parser.parse_args()
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
