"""Processes of the server's own, which run Python code with the modules of this one."""

from __future__ import annotations

import fcntl
import os
import select
import sys

END_WITH_PARENT = "from llava_runner.serve.child import end_with_parent; end_with_parent(); "


def child_command(code: str, *arguments: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
    """Return the command of a process that runs code, with ``sys`` imported and the arguments behind ``sys.argv[0]``.

    Modules are found where this process finds them, and in no folder that the process is started in.
    """
    folders = [os.fsdecode(folder) for folder in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {folders!a}; {code}", *arguments]


def end_with_parent() -> None:
    """End this process as soon as its parent is gone, also by SIGKILL: when nobody holds the other end of stdin.

    The system sends the signal SIGIO, which ends a process on Linux. A thread that waits would not get its turn while
    the model computes.
    """
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        sys.exit(1)  # it was gone before
