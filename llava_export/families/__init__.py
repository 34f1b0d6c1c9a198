"""The checkpoint families this project reads, one file each. A new one is a file and an entry in ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_export.errors import ConfigError
from llava_export.families.family import Family
from llava_export.families.llava15 import LLAVA_15

FAMILIES = (LLAVA_15,)


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``; raises ``ConfigError`` that lists the supported ones."""
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    supported = ", ".join(f"{family.name} (model_type {'/'.join(family.model_types)})" for family in FAMILIES)
    raise ConfigError(f"config.json has model_type {model_type!r}; supported: {supported}")
