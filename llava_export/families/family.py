"""What one checkpoint family differs in from another: mostly data, and a function that reads its ``config.json``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llava_export.config import LlavaConfig
from llava_export.families.prompts import ChatPrompt
from llava_runner.documents import JsonObject


def renamed(key: str, names: Iterable[tuple[str, str]]) -> str | None:
    """Return ``key`` renamed by the first of the (pattern, replacement) pairs that matches, or None if none does."""
    for pattern, replacement in names:
        name, matches = re.subn(pattern, replacement, key, count=1)
        if matches:
            return name
    return None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints that are read in the same way.

    A checkpoint belongs to the family when its ``config.json`` fits ``model_types`` and ``markers``.

    - ``name``: what users and the model card call the family. Several layouts of one family share it.
    - ``model_types``: the values of ``model_type`` in ``config.json`` that the family has.
    - ``markers``: keys of which ``config.json`` must have one, too; empty if the ``model_type`` is enough.
    - ``tower_key``: the key under which ``config.json`` names a vision tower that may be a checkpoint of its own; None
      if the checkpoint always has the vision tower inside.
    - ``parse_config``: a function from ``config.json``, and the vision tower's own config, to the model's sizes. The
      second argument is None if ``tower_key`` is None, and where no vision tower was found: then everything else is
      checked. It raises ``ConfigError`` for what the modules cannot compute.
    - ``check_keys``: a function of ``config.json`` and the checkpoint's keys. It raises ``ConfigError`` if the weights
      are those of another config. None if there is nothing to check.
    - ``key_map``: (pattern, replacement) pairs from the checkpoint's keys to the names of the model's parameters. The
      first pattern that matches is replaced, once. A key that none matches is an error.
    - ``unused_parameters``: patterns of renamed keys that a checkpoint may have and the model does not use.
    - ``prompt``: what the model was trained with.
    - ``chunks_are_texts``: whether the code that trained it tokenizes what follows an image as a text of its own.
    - ``image_aspect_ratio``: how a runner makes an image square, as in ``llava_runner.contract.ModelCard``, where the
      checkpoint has no image processor's file; None if ``config.json`` says it.
    - ``question``: what is asked about the sample image for the golden record.
    """

    name: str
    model_types: tuple[str, ...]
    markers: tuple[str, ...] = ()
    tower_key: str | None = None
    parse_config: Callable[[JsonObject, JsonObject | None], LlavaConfig]
    check_keys: Callable[[JsonObject, Iterable[str]], None] | None = None
    key_map: tuple[tuple[str, str], ...]
    unused_parameters: tuple[str, ...]
    prompt: ChatPrompt
    chunks_are_texts: bool
    image_aspect_ratio: str | None
    question: str

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint with this ``config.json`` belongs to the family."""
        return config.get("model_type") in self.model_types and (
            not self.markers or any(name in config for name in self.markers)
        )

    def rename(self, key: str) -> str | None:
        """Return the model's name for a checkpoint's key, or None for a key of no known part."""
        return renamed(key, self.key_map)

    def is_unused(self, fqn: str) -> bool:
        """Return whether a checkpoint may have this tensor, named as in the model, though the model does not use it."""
        return any(re.search(pattern, fqn) for pattern in self.unused_parameters)
