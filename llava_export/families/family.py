"""What sets one checkpoint family apart from another: data, and one function that reads its ``config.json``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llava_export.config import LlavaConfig
from llava_runner.contract import PromptTemplate


def renamed(key: str, names: Iterable[tuple[str, str]]) -> str | None:
    """By the first of the (pattern, replacement) pairs that matches; None if none does."""
    for pattern, replacement in names:
        name, matches = re.subn(pattern, replacement, key, count=1)
        if matches:
            return name
    return None


@dataclass(frozen=True, kw_only=True)
class Family:
    """``model_types`` are the values of ``model_type`` in ``config.json`` that it answers to, with a ``marker`` only if
    the config has that key, too. Under ``tower_key`` it names the vision tower, which may be a checkpoint of its own:
    ``parse_config`` gets that one's config, or None where there is no such key. ``check_keys`` raises ``ConfigError``
    when the keys of the weights show that they are not the config's.

    ``key_map`` renames a checkpoint's keys to the model's parameters: the first pattern that matches the start of a key
    is replaced. ``unused_parameters`` match renamed keys that the model has no use for. ``question`` is asked about the
    sample image for the golden record.
    """

    name: str
    model_types: tuple[str, ...]
    parse_config: Callable[[Mapping[str, Any], Mapping[str, Any] | None], LlavaConfig]
    key_map: tuple[tuple[str, str], ...]
    unused_parameters: tuple[str, ...]
    prompt: PromptTemplate
    image_aspect_ratio: str
    question: str
    marker: str | None = None
    tower_key: str | None = None
    check_keys: Callable[[Mapping[str, Any], Iterable[str]], None] = lambda config, keys: None

    def answers_to(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in self.model_types and (self.marker is None or self.marker in config)

    def rename(self, key: str) -> str | None:
        """The model's name for a checkpoint's key, or None for a key of no known part."""
        return renamed(key, self.key_map)

    def is_unused(self, fqn: str) -> bool:
        return any(re.search(pattern, fqn) for pattern in self.unused_parameters)
