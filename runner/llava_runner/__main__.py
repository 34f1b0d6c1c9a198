"""The command ``python -m llava_runner``, which is the same as ``llava run``."""

from __future__ import annotations

from llava_runner.cli import main

main(prog="python -m llava_runner")
