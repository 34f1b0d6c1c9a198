"""Commands as a user types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def llava(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``llava`` with these arguments in a process of its own. Return its exit code and what it printed."""
    command = [sys.executable, "-m", "llava_runner.command", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def script(name: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run an installed console script with these arguments. Return its exit code and what it printed."""
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)
