"""The checkpoint families this project reads, one file each. A new one is a file and an entry in ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_export.errors import ConfigError
from llava_export.families.family import Family
from llava_export.families.llava15 import LLAVA_15, LLAVA_15_ORIGINAL
from llava_export.families.mobilevlm import MOBILEVLM

FAMILIES = (LLAVA_15_ORIGINAL, LLAVA_15, MOBILEVLM)


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``; raises ``ConfigError`` that lists the supported ones."""
    for family in FAMILIES:
        if family.answers_to(config):
            return family
    types: dict[str, dict[str, None]] = {}
    for family in FAMILIES:
        types.setdefault(family.name, {}).update(dict.fromkeys(family.model_types))
    supported = ", ".join(f"{name} (model_type {'/'.join(names)})" for name, names in types.items())
    raise ConfigError(f"config.json has model_type {config.get('model_type')!r}; supported: {supported}")
