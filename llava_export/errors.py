"""Mistakes a user of the exporter can make, beside those of the runner; command lines print them in one line."""

from __future__ import annotations

from llava_runner.errors import UserError


class ConfigError(UserError):
    """A model name or a ``config.json`` that this project cannot turn into a model."""


class CheckpointError(UserError):
    """Weights or tokenizer files that are missing, damaged, or do not fit the config beside them."""


class RecipeError(UserError):
    """A quantization recipe that cannot be applied to the model."""


class ExportError(UserError):
    """An export that cannot be done as asked: lengths, output folder, program name."""
