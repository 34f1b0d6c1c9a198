"""``python -m llava_export.export``: the published spelling of ``llava export``."""

from __future__ import annotations

from llava_export.cli.export import main

if __name__ == "__main__":
    main(prog="python -m llava_export.export")
