"""What the operating system knows and does: memory, disk space, and a process that works in parallel."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from llava_export.errors import ExportError

Result = TypeVar("Result")
DEVICES = ("cpu", "cuda")  # torch's names of what computes
Step = Callable[[], None]


class GroupFiles(NamedTuple):
    """The names of a control group's files: its limit, what is used, and what of that is the content of files."""

    limit: str
    used: str
    files: tuple[str, str]


PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60  # version 1 writes a number near 2^63 where there is none
V1 = GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
V2 = GroupFiles("memory.max", "memory.current", ("active_file", "inactive_file"))


def check_device(device: str) -> None:
    """Raise ``ExportError`` if torch cannot compute on one of ``DEVICES`` here."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ExportError("--device cuda: torch finds no GPU here")


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

    Yields a function that waits for the result and returns it. It calls its argument once for each step that
    ``function`` reports. Function, arguments and result must be picklable. The process ends with the block, finished or
    not.

    What ``function`` raises is raised here, and ``ChildProcessError`` when somebody else ended the process. Neither
    waits for the end of the block: the caller is interrupted, as by Ctrl-C, and the block is left at once.

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
    messages: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    failure = _Failure()
    listener = threading.Thread(
        target=_listen, args=(receiver, process, function.__name__, messages, failure), daemon=True
    )
    listener.start()

    def wait(on_step: Step) -> Result:
        failure.expect()
        awaited.set()
        while True:
            kind, value = messages.get()
            if kind == "result":
                return value
            if kind == "error":
                raise value
            on_step()

    try:
        try:
            yield wait
        finally:
            failure.expect()
    except BaseException as error:
        if failure.error is not None and error is not failure.error:
            raise failure.error from None
        raise
    finally:
        torch.set_num_threads(processors)
        process.terminate()
        process.join()
        listener.join()
    if failure.error is not None:
        raise failure.error


class _Interrupted(BaseException):
    """Leaves the block whose background process failed. Like Ctrl-C it is no ``Exception``."""


class _Failure:
    """What ended a background process too early. It interrupts the thread that made it, unless that expects it."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._is_expected = False
        self._thread = ctypes.c_ulong(threading.get_ident())

    def expect(self) -> None:
        """Interrupt nobody from now on."""
        with self._lock:
            self._is_expected = True
        if self.error is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, None)  # in case it has not come yet

    def set(self, error: BaseException) -> None:
        """Interrupt the thread with this error."""
        with self._lock:
            if not self._is_expected:
                self.error = error
                # Not by a signal, which would do nothing where SIGINT is ignored, as under nohup.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, ctypes.py_object(_Interrupted))


def _listen(
    receiver: Connection,
    process: BaseProcess,
    name: str,
    messages: SimpleQueue[tuple[str, Any]],
    failure: _Failure,
) -> None:
    """Pass on what the background process sends, and what ended it, until it has no more to say."""
    while True:
        try:
            kind, value = receiver.recv()
        except (EOFError, OSError):
            process.join()
            kind, value = "error", ChildProcessError(f"{name} was ended from outside ({process.exitcode})")
        except Exception as error:  # an exception that cannot be unpickled
            kind, value = "error", error
        messages.put((kind, value))
        if kind == "error":
            failure.set(value)
        if kind != "step":
            return


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
    """Yield every limit of free memory that applies, in bytes: of the machine, and of each control group above us."""
    meminfo = PROC / "meminfo"
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    for folder in _control_groups():
        names = V2 if (folder / V2.limit).exists() else V1
        try:
            text = (folder / names.limit).read_text().strip()
            limit = NO_LIMIT if text == "max" else int(text)
            used = int((folder / names.used).read_text())
            lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # a root group has no limit, and another kernel may have other files
            continue
        if limit < NO_LIMIT:
            # The content of files counts as used, but the system drops it when memory is needed.
            yield limit - used + sum(int(lines.get(name, 0)) for name in names.files)


def _control_groups() -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process's memory, from its own to the outermost."""
    groups = PROC / "self" / "cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        # In a container the path is often that of the machine, and the container's own group is the root.
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root) and folder.exists())
