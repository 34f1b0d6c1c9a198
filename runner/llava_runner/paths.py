"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def with_home(text: str) -> Path:
    """Return a path with the user's home folder in place of ``~`` at its beginning."""
    home = os.environ.get("HOME")
    return Path(home + text[1:] if home and (text == "~" or text.startswith("~/")) else text)
