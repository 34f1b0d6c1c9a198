"""Tables as a terminal shows them."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table


def printed(table: Table, *, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()
