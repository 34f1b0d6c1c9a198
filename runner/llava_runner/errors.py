"""Mistakes that a user can make. A command prints them as one line and exits with code 2; other errors are our bugs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """The base class of all such mistakes. The message says what is wrong, where, and what to do next."""


class PackageError(UserError):
    """A program, tokenizer or manifest that is missing or damaged, or that does not belong to the others."""


class ImageError(UserError):
    """A file that is not an image, or an image of a size that the model cannot take."""


class PromptError(UserError):
    """A prompt, or a sampling option, that cannot be used."""


def exit_cleanly(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with the code it returns.

    A ``UserError`` or an ``OSError`` becomes one line on stderr and exit code 2, Ctrl-C exit code 130.
    """
    try:
        code = main()
    except UserError as error:
        message = " ".join(str(error).split())
    except OSError as error:
        # The disk is full, a permission is missing, a folder does not exist: not a bug of ours.
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        message = " ".join(text.split())
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        sys.exit(code)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
