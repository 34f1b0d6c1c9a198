"""Commands as a user types them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llava_runner import command


def llava(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``llava`` with these arguments in a process of its own. Return its exit code and what it printed."""
    words = [sys.executable, "-m", "llava_runner.command", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, **options)


def llava_here(*arguments: object, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """Return what ``llava`` does, from this process, in a terminal of so many columns.

    A process of its own takes seconds to import PyTorch. So this is for what does not depend on the process.
    """
    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, {"COLUMNS": str(columns)}):
        try:
            command.main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def script(name: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run an installed console script with these arguments. Return its exit code and what it printed."""
    words = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, **options)
