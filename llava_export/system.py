"""What the operating system knows and does: memory, disk space, and a process that works in parallel."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
Step = Callable[[], None]


def return_free_memory() -> None:
    """Return memory that Python and torch have freed to the system.

    The C library keeps freed memory for later use. After lowering, that is hundreds of megabytes in the gaps between
    small objects that are still alive. On systems other than Linux with glibc this function does nothing.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def use_huge_pages() -> None:
    """Make torch ask Linux for pages of 2 MiB. Call this before torch allocates its first tensor.

    Clearing the 4 KiB pages of a new tensor one by one can take longer than reading and multiplying its values.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def available_memory() -> int | None:
    """Return the bytes that processes can still use without swapping, or None where the system does not tell."""
    return min(_memory_limits(), default=None)


def free_disk(folder: Path) -> int | None:
    """Return the free bytes on the disk of ``folder``. The folder need not exist yet."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def readable_size(count: int) -> str:
    """Return a number of bytes as text in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


@contextmanager
def in_background(function: Callable[..., Result], *arguments: Any) -> Iterator[Callable[[Step], Result]]:
    """Run ``function(*arguments, on_step=...)`` in a process of its own while the ``with`` block runs.

    Yields a function that waits for the result and returns it, or raises the exception that ``function`` raised. It
    calls its argument once for each step that ``function`` reports. Function, arguments and result must be picklable.
    The process ends with the block, finished or not. Raises ``ChildProcessError`` when somebody else ended it.

    Until the caller waits, torch uses half of the processors in each process: two thread pools on the same processors
    wait for each other at every matrix product. Once the caller waits, the function gets all processors.
    """
    import torch

    processors = torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    awaited = context.Event()
    process = context.Process(target=_run, args=(sender, awaited, function, arguments), daemon=True)
    process.start()
    sender.close()
    torch.set_num_threads(max(1, processors - processors // 2))

    def wait(on_step: Step) -> Result:
        awaited.set()
        while True:
            try:
                kind, value = receiver.recv()
            except EOFError:
                process.join()
                raise ChildProcessError(f"{function.__name__} was ended from outside ({process.exitcode})") from None
            if kind == "result":
                return value
            if kind == "error":
                raise value
            on_step()

    try:
        yield wait
    finally:
        torch.set_num_threads(processors)
        process.terminate()
        process.join()


def _run(sender: Connection, awaited: Event, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call the function in the background process, and send its steps and its result to the caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the caller ends this one
    import torch

    processors = torch.get_num_threads()

    def on_step() -> None:
        sender.send(("step", None))
        torch.set_num_threads(processors if awaited.is_set() else half)

    half = max(1, processors // 2)
    torch.set_num_threads(half)
    try:
        result = function(*arguments, on_step=on_step)
    except Exception as error:
        sender.send(("error", error))
    else:
        sender.send(("result", result))


def _memory_limits() -> Iterator[int]:
    """Yield every limit of free memory that applies, in bytes: of the machine, and of a container."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        yield int(limit) - int((group / "memory.current").read_text())
