"""Mistakes a user can make. Command lines turn them into one line and exit code 2; everything else is our bug."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Base class: the message says what is wrong, where, and what to do next."""


class PackageError(UserError):
    """A program, tokenizer or manifest that is missing, damaged or does not belong together."""


class ImageError(UserError):
    """A file that is not a picture, or one whose size no model can see."""


class PromptError(UserError):
    """A prompt, or a sampling option, that cannot be used."""


def exit_cleanly(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with its code; a user's mistake or a failing disk becomes one line and code 2."""
    try:
        code = main()
    except UserError as error:
        message = " ".join(str(error).split())
    except OSError as error:
        # Disk full, no permission, no such folder: the machine's state, not a bug of ours.
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        sys.exit(code)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
