"""Run an exported LLaVA package: ``Session.load("package").generate(image, prompt)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_runner.program import Program
    from llava_runner.session import Session

__all__ = ["Program", "Session"]


def __getattr__(name: str) -> Any:
    """Return a class of ``__all__``. Raises ``AttributeError`` for any other name."""
    # Imported at first use: neither `llava run --help` nor a program that reads the contract should wait for torch.
    if name == "Program":
        from llava_runner.program import Program

        return Program
    if name == "Session":
        from llava_runner.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
