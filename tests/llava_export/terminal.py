"""Tables as a terminal shows them."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table


def printed(table: Table, *, width: int) -> str:
    """Return a table as text, as a terminal of ``width`` columns shows it."""
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()
