"""Writes the pages that are made from code and results.

They are docs/reference/cli.md, docs/BENCHMARKS.md, README's table, docs/RECIPES.md, and the advice in the guide.

Usage, in the root of a checkout:
    python -m docs.generate
    python -m docs.generate --check     (exit code 1 if a page is not up to date)
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.page import PAGE, README, RESULTS
from benchmarks.page_text import render
from benchmarks.readme import with_table
from benchmarks.recipes.page import pages as recipe_pages
from llava_export.cli import COMMANDS
from llava_runner.command import usage

CLI_PAGE = Path(__file__).parent / "reference" / "cli.md"
COLUMNS = 80
HEAD = """# Command line

Made from the parsers by `make docs`. Flags may be written with hyphens or underscores.
"""
TAIL = """
## Other spellings

| | |
|---|---|
| `python -m llava_export.export` | `llava export` |
| `test_pte PTE [IMAGE]` | `llava verify PTE [--image IMAGE]` |
| `test_gguf DIR` | `llava verify DIR` |
| `llava-run --model_path=PTE`, `python -m llava_runner` | `llava run PTE` |
"""


def cli_page() -> str:
    """Return the page of all commands with their help."""
    os.environ["COLUMNS"] = str(COLUMNS)
    os.environ["NO_COLOR"] = "1"
    sections = [HEAD, block(usage(COMMANDS))]
    for command in COMMANDS:
        parser = import_module(command.module).build_parser(f"llava {command.name}")
        sections += [f"\n## llava {command.name}\n", block(parser.format_help())]
    return "\n".join([*sections, TAIL])


def block(text: str) -> str:
    """Return text as a code block."""
    return f"```text\n{text.rstrip()}\n```"


def main() -> int:
    """Write the pages, or check them. Return the exit code."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    pages = {CLI_PAGE: cli_page(), PAGE: render(results), README: with_table(README.read_text("utf-8"), results)}
    pages |= recipe_pages()
    if "--check" not in sys.argv[1:]:
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        return 0
    outdated = [path for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    for path in outdated:
        print(f"{path} is not up to date: make docs", file=sys.stderr)
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
