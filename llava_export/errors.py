"""Mistakes that a user of the exporter can make. Command lines print each in one line and exit with code 2.

The mistakes of a user of the runner are in ``llava_runner.errors``.
"""

from __future__ import annotations

from llava_runner.errors import UserError


class ConfigError(UserError):
    """A model name or a ``config.json`` that this project cannot turn into a model."""


class CheckpointError(UserError):
    """Weights or tokenizer files that are missing, damaged, or do not fit ``config.json``."""


class RecipeError(UserError):
    """A quantization recipe that cannot be applied to the model."""


class ExportError(UserError):
    """An export that cannot be done as asked: its lengths, output folder or file name, or a file that is no export."""
